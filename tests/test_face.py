"""Removal of faces from images of heads: the brain stays complete, tissue in front of it goes, doubt is a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode import cli
from dicomnode.config.results import DefacedResultsConfig, ResultsConfig
from dicomnode.deidentify import defacing
from dicomnode.reading import volumes
from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.structures import number
from pipelines import anatomy, face
from pipelines.contract import Case, Finding, Grid, Image, Measurement, Refused, Segmentation, Volume
from tests.bundles import SPACING_MM, phantom, phantom_grid, write_anatomy_bundle
from tests.findings import PROVENANCE
from tests.identifying import write_profile
from tests.peers import write_config
from tests.scanner import ORIENTATIONS, make_grid
from tests.series import write_slices

pytestmark = pytest.mark.training

NOSE = np.s_[2:9, 0:3, 20:28]
HAIR = np.s_[45:47, 40:50, 20:28]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the anatomy bundle that knows the phantom."""
    root = tmp_path_factory.mktemp("bundles")
    write_anatomy_bundle(root)
    return root


@pytest.fixture(scope="module")
def model(bundles: Path) -> Model:
    return registry.load_from(registry.find("anatomy", None, bundles), device="cpu")


def head() -> Volume:
    """Return the phantom with a face before and below the brain and hair above and behind; no structure has them."""
    values, structure = phantom()
    values = values.copy()
    for place in (NOSE, HAIR):
        region = values[place]
        region[structure[place] == 0] = 0.1
    return Volume(values, phantom_grid(), "1", SPACING_MM)


def ball(
    grid: Grid, centre_mm: tuple[float, float, float], radius_mm: float
) -> np.ndarray[tuple[int, int, int], np.dtype[np.bool_]]:
    k, j, i = np.indices(grid.shape)
    places = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ grid.affine_mm.T
    found: np.ndarray[tuple[int, int, int], np.dtype[np.bool_]] = (
        np.linalg.norm(places[..., :3] - centre_mm, axis=-1) <= radius_mm
    )
    return found


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_what_goes_is_the_same_place_in_the_patient_in_any_orientation(orientation: str) -> None:
    grid = make_grid(orientation, (50, 60, 64), (4.0, 4.0, 4.0), (0, 0, 0))
    middle = grid.affine_mm[:3, :3] @ [31.5, 29.5, 24.5]
    grid.affine_mm[:3, 3] = -middle
    brain = ball(grid, (0, 0, 0), 50)
    removed = face.make_face_mask(brain, grid).find_removed_voxels(grid)
    nose, chin, hair, neck = ((0, -85, -25), (0, -50, -80), (0, 60, 60), (0, 30, 65))
    assert not (removed & brain).any()
    assert not (removed & ball(grid, (0, 0, 0), 57)).any(), "nor what is within the margin"
    for place in (nose, chin):
        nearby = ball(grid, place, 5)
        assert not nearby.any() or removed[nearby].all()
    for place in (hair, neck):
        nearby = ball(grid, place, 5)
        assert not removed[nearby].any()


def test_the_brain_of_the_phantom_stays_and_its_nose_goes(model: Model) -> None:
    volume = head()
    mask = face.find_face(volume, model)
    removed = mask.find_removed_voxels(volume.grid)
    found = anatomy.segment_head(volume, model)
    assert not (removed & found.mask()).any()
    assert removed[NOSE].all()
    assert not removed[HAIR].any()


def test_the_same_image_loses_the_same(model: Model) -> None:
    one, two = (face.find_face(head(), model).share for _ in range(2))
    assert np.array_equal(one, two)


def test_doubt_about_the_anatomy_is_a_refusal(model: Model) -> None:
    volume = head()
    upside_down = Grid(volume.grid.shape, volume.grid.affine_mm @ np.diag([1.0, -1, -1, 1]))
    with pytest.raises(Refused, match="do not lie as the header says"):
        face.find_face(replace(volume, grid=upside_down), model)
    tiny = Grid(volume.grid.shape, np.diag([0.6, 0.6, 0.6, 1.0]) @ volume.grid.affine_mm)
    with pytest.raises(Refused):
        face.find_face(replace(volume, grid=tiny), model)
    with pytest.raises(Refused, match="body part is KNEE"):
        face.find_face(volume, model, {"modality": "MR", "body_part": "KNEE"})


def findings(volume: Volume) -> list[Finding]:
    labels = Segmentation("mask", (volume.data > 0.5).astype(np.uint8), volume.grid, (), "Mask", SPACING_MM)
    return [Image("image", volume, "Image", SPACING_MM), labels, Measurement("number", 1.0, "1")]


def test_a_form_without_faces_has_none_in_its_images(model: Model) -> None:
    volume = head()
    case, made = Case({"head": volume}, {"modality": "MR"}), findings(volume)
    defaced, provenance = defacing.remove_faces(DefacedResultsConfig(), made, case, PROVENANCE, lambda: model)
    picture = defaced[0]
    assert isinstance(picture, Image)
    assert picture.volume.data[5, 2, 24] == volume.data.min() < volume.data[5, 2, 24]
    assert list(defaced[1:]) == made[1:]
    assert provenance.parameters["face"] == "removed", "so that no UID is that of an image with a face"
    assert defacing.remove_faces(ResultsConfig(), made, case, PROVENANCE, lambda: model) == (made, PROVENANCE)


def test_without_a_look_at_the_head_nothing_is_said_to_be_removed(model: Model) -> None:
    volume = head()
    case, made = Case({"pet": volume}, {"modality": "PT"}), findings(volume)
    assert defacing.remove_faces(DefacedResultsConfig(), made, case, PROVENANCE, lambda: model) == (made, PROVENANCE)


def test_the_command_takes_the_face_out_of_a_series(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = head()
    stored = np.round(volume.data * 1000).astype(np.uint16)
    sent = write_slices(tmp_path / "in", volume.grid, stored)
    write_profile(tmp_path)
    profile = {"name": "research", "key_file": "../research.key", "deface": True}
    config = write_config(tmp_path / "node", deidentify=[profile], worker={"device": "cpu"})
    (tmp_path / "node" / "data" / "models").parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "node" / "data" / "models").symlink_to(bundles)
    arguments = [
        "--config",
        str(config),
        "deidentify",
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--profile",
        "research",
    ]
    assert cli.main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(sent)
    copies = sorted((tmp_path / "out").iterdir())
    before, after = volumes.read(sent).volume, volumes.read(copies).volume
    assert np.allclose(before.grid.affine_mm, after.grid.affine_mm)
    removed = after.data != before.data
    assert removed[NOSE].all()
    assert after.data[removed].max() == before.data.min()
    assert not removed[HAIR].any()
    assert {header(path).RecognizableVisualFeatures for path in copies} == {"NO"}
    codes = {item.CodeValue for item in header(copies[0]).DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113102"}


def header(path: Path) -> Dataset:
    return dcmread(path, stop_before_pixels=True)


def test_the_cortex_is_where_the_check_of_front_and_back_looks() -> None:
    _, labels = phantom()
    front, back = (np.nonzero(labels == number(f"{name} cortex"))[1].mean() for name in ("frontal", "occipital"))
    assert front < back
