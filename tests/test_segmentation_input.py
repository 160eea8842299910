"""Segmentations as inputs: exact places, codes, what is refused, and organs that a PET network is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
import torch
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.config import Config
from dicomnode.errors import InputRefused
from dicomnode.execution import processing
from dicomnode.reading import segmentations, volumes
from dicomnode.results import marking
from model_zoo import ct_tissues, registry
from model_zoo.bundle import BundleError, Model
from model_zoo.simulate.pet import low_dose
from model_zoo.simulate.pet.low_dose import REGIONS
from model_zoo.simulate.pet.torso import draw_torso
from model_zoo.training.recipe import seeded
from pipelines import ct_regions, organ_regions, standard_dose_pet
from pipelines.contract import Case, Grid, Image, Labels, Measurement, Note, Refused, Segment, Volume
from pipelines.isotropic import make_isotropic_transform
from tests.bundles import centred_grid
from tests.dciodvfy import find_errors
from tests.findings import NOW
from tests.installed import pin_installed
from tests.pet_series import write_pet, write_pet_bundle
from tests.segmentation_files import write_segmentation
from tests.series import write_slices

LIVER, LUNG, T5 = ("Liver", "10200004"), ("Lung", "39607008"), ("T5 vertebra", "56401006")
SEGMENTS = {1: LIVER, 2: LUNG, 3: T5}


def _draw_labels(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return three boxes without any symmetry, away from the first and last slices, which a writer leaves out."""
    labels = np.zeros(shape, np.uint8)
    k, j, i = shape
    labels[2 : k // 2, 1 : j // 3, 2 : i // 4] = 1
    labels[k // 3 : k - 3, j // 2 : j - 4, i // 2 : i - 1] = 2
    labels[3:5, j // 2 : j - 1, 3 : i // 3] = 3
    return labels


def _sample(labels: Labels, grid: Grid) -> NDArray[np.uint16]:
    """Return the labels at the voxels of ``grid``, 0 where the segmentation has no frame."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)[..., ::-1].reshape(-1, 3)
    mm = index @ grid.affine_mm[:3, :3].T + grid.affine_mm[:3, 3]
    own = np.linalg.solve(labels.grid.affine_mm[:3, :3], (mm - labels.grid.affine_mm[:3, 3]).T).T
    assert np.abs(own - np.rint(own)).max() < 1e-2
    i, j, k = np.rint(own).astype(int).T
    inside = np.all([(x >= 0) & (x < n) for x, n in zip((k, j, i), labels.data.shape, strict=True)], axis=0)
    found = np.zeros(len(mm), np.uint16)
    found[inside] = labels.data[k[inside], j[inside], i[inside]]
    return found.reshape(grid.shape)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique, left-handed"])
def test_every_voxel_has_its_segment_where_it_lies_in_the_patient(kind: str, orientation: str, tmp_path: Path) -> None:
    grid = centred_grid(orientation, (25.0, 12.5, 8.0))
    truth = _draw_labels(grid.shape)
    sources = write_slices(tmp_path / "in", grid, np.zeros(grid.shape, np.uint16))
    path = write_segmentation(tmp_path / "seg.dcm", sources, truth, SEGMENTS, kind=kind)
    labels, facts, header = segmentations.read([path])
    assert np.array_equal(_sample(labels, volumes.read(sources).volume.grid), _sample_truth(truth, sources, grid))
    assert {s.number: (s.label, s.type.value) for s in labels.segments} == SEGMENTS
    assert facts["algorithms"] == ("AUTOMATIC Organs",)
    assert "PixelData" not in header


def _sample_truth(truth: NDArray[np.uint8], sources: list[Path], grid: Grid) -> NDArray[np.uint16]:
    return _sample(Labels(truth.astype(np.uint16), grid, ()), volumes.read(sources).volume.grid)


def _write_overlap(folder: Path, sources: list[Path], shape: tuple[int, int, int]) -> Path:
    masks = np.zeros((*shape, 2), np.uint8)
    masks[2:6, 2:6, 2:6, 0] = masks[4:8, 4:8, 4:8, 1] = 1
    return write_segmentation(folder / "overlap.dcm", sources, masks, {1: LIVER, 2: LUNG})


def _write_fractional(folder: Path, sources: list[Path], shape: tuple[int, int, int]) -> Path:
    return write_segmentation(folder / "f.dcm", sources, np.full(shape, 0.5, np.float32), {1: LIVER}, kind="FRACTIONAL")


def _write_image(folder: Path, sources: list[Path], shape: tuple[int, int, int]) -> Path:
    return sources[0]


def _write_unknown_number(folder: Path, sources: list[Path], shape: tuple[int, int, int]) -> Path:
    path = write_segmentation(folder / "u.dcm", sources, _draw_labels(shape), SEGMENTS, kind="LABELMAP")
    ds = dcmread(path)
    ds.SegmentSequence = [item for item in ds.SegmentSequence if item.get("SegmentNumber") != 2]
    ds.save_as(path, enforce_file_format=True)
    return path


REFUSED: dict[str, tuple[Callable[[Path, list[Path], tuple[int, int, int]], Path], str]] = {
    "overlap": (_write_overlap, "no label map can be made of it .*overlap"),
    "fractions": (_write_fractional, r"Segmentation Type \(0062,0001\) is FRACTIONAL"),
    "an image": (_write_image, "is no Segmentation Storage"),
    "a number without a segment": (_write_unknown_number, r"segments \[2\], which Segment Sequence"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_two_readings_is_refused_by_name(what: str, tmp_path: Path) -> None:
    grid = centred_grid("axial", (25.0, 12.5, 8.0))
    sources = write_slices(tmp_path / "in", grid, np.zeros(grid.shape, np.uint16))
    write, words = REFUSED[what]
    with pytest.raises(InputRefused, match=words):
        segmentations.read([write(tmp_path, sources, grid.shape)])


def test_two_objects_are_not_one_segmentation(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="2 instances were given"):
        segmentations.read([tmp_path / "a.dcm", tmp_path / "b.dcm"])


def test_segmentations_of_other_programs(kit: Path) -> None:
    folder = kit / "dicom" / "dcmqi-reference-objects" / "segmentations"
    labels, _, _ = segmentations.read([folder / "liver.dcm"])
    (segment,) = labels.segments
    assert (segment.label, segment.type.value, segment.type.scheme) == (*LIVER, "SCT")  # the file says SRT T-62000
    truth = sitk.ReadImage(str(folder / "liver_seg.nrrd"))
    assert int((labels.data == 1).sum()) == int((sitk.GetArrayFromImage(truth) > 0).sum())
    k, j, i = (int(n) for n in np.argwhere(labels.data == 1)[1000])
    x, y, z = (labels.grid.affine_mm @ [i, j, k, 1])[:3]
    assert truth[truth.TransformPhysicalPointToIndex((float(x), float(y), float(z)))] > 0
    with pytest.raises(InputRefused, match="its frames lie on a slide"):
        segmentations.read([kit / "dicom" / "highdicom-test-files" / "seg_image_sm_dots.dcm"])


SPACING_MM = 4.0
DOSE = 0.02


@pytest.fixture(scope="module")
def torso() -> low_dose.Pair:
    """Return a simulated torso at a fiftieth of the dose."""
    body = draw_torso(seeded(3), shape=(56, 72, 104), spacing_mm=SPACING_MM, middle_mm=(0, 0, 310), lesions=2)
    return low_dose.draw_surrogate_pair(low_dose.make_torso(body, 1), DOSE, seeded(1), noise=0.1)


def _make_volume(image: torch.Tensor) -> Volume:
    k, j, i = image.shape
    return Volume(4000 * image.numpy(), Grid((k, j, i), np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])), "Bq/ml")


def _make_labels(regions: torch.Tensor, grid: Grid) -> Labels:
    category = organ_regions.ORGANS
    names = {number: name for number, name in enumerate(REGIONS, start=1) if name in category}
    segments = tuple(
        Segment(number, name, _code("123037004"), _code(category[name][0])) for number, name in names.items()
    )
    data = np.where(np.isin(regions.numpy(), list(names)), regions.numpy(), 0)
    return Labels(data.astype(np.uint16), grid, segments)


def _code(value: str) -> Any:
    from pipelines.contract import Code

    return Code(value, "SCT", "")


def _restore(model: Model, pet: Volume, labels: Labels | None, same_frame: bool | None = True) -> list[Any]:
    inputs: dict[str, Any] = {"pet": pet} | ({"organs": labels} if labels else {})
    facts = {"modality": "PT", "organs": {"same_frame": same_frame, "algorithms": ("MANUAL",)}}
    options = standard_dose_pet.Options(dose_fraction=DOSE, check_dose=False)
    return standard_dose_pet.run(Case(inputs, facts), model, options, 1, lambda done, step: None)


def _find(findings: list[Any], kind: type[Any], name: str) -> Any:
    return next(f for f in findings if isinstance(f, kind) and f.name == name)


@pytest.mark.slow
def test_the_shipped_network_restores_a_torso_better_when_told_its_organs(torso: low_dose.Pair) -> None:
    try:
        model = registry.load("standard_dose_pet")
    except BundleError as error:
        pytest.skip(f"no shipped weights: {error}")
    pet, truth = _make_volume(torso.low), 4000 * torso.target.numpy()
    labels = _make_labels(torso.regions, pet.grid)
    errors = {}
    for name, told in (("alone", None), ("organs", labels)):
        found = _restore(model, pet, told)
        image = _find(found, Image, "standard dose").volume.data
        errors[name] = float(np.sqrt(np.mean((image - truth)[torso.regions.numpy() > 0] ** 2)))
    assert errors["organs"] < 0.97 * errors["alone"]
    liver = [f for f in found if isinstance(f, Measurement) and f.group == "liver"]
    assert {f.name for f in liver} >= {"activity mean", "activity max", "activity peak"}
    assert liver[0].site is not None
    assert liver[0].site.value == "10200004"


@pytest.fixture(scope="module")
def blur(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("models")
    write_pet_bundle(root)
    return registry.load("standard_dose_pet", root=root)


def test_organs_of_another_frame_or_outside_the_body_are_not_used_and_the_note_says_so(
    torso: low_dose.Pair, blur: Model
) -> None:
    pet = _make_volume(torso.low)
    labels = _make_labels(torso.regions, pet.grid)
    away = pet.grid.affine_mm.copy()
    away[0, 3] += 400
    outside = replace(labels, grid=Grid(pet.grid.shape, away))
    for told, frame, words in (
        (labels, None, "does not name the PET's frame of reference"),
        (labels, False, "does not name the PET's frame of reference"),
        (outside, True, "% of the segmented organs lie in the PET's body; they were not used"),
    ):
        found = _restore(blur, pet, told, frame)
        assert words in _find(found, Note, "regions").text
        assert not [f for f in found if isinstance(f, Measurement) and f.group == "liver"]
    used = _find(_restore(blur, pet, labels), Note, "regions").text
    assert used.startswith("Organs from the segmentation of the examination (MANUAL): lungs, heart, liver")


def _make_ct(torso: low_dose.Pair, grid: Grid) -> Volume:
    """Return a CT of the torso: lungs, bone and soft tissue by its regions, air outside."""
    hu = np.full(grid.shape, -1000.0, np.float32)
    hu[torso.target.numpy() > 0.05 * float(torso.target.mean())] = 40.0
    for name, value in (("lungs", -750.0), ("spine", 500.0), ("bone", 500.0)):
        hu[torso.regions.numpy() == REGIONS.index(name) + 1] = value
    return Volume(hu, grid, "[hnsf'U]")


def test_few_organs_serve_for_numbers_and_leave_the_ct_to_the_network(torso: low_dose.Pair, blur: Model) -> None:
    pet = _make_volume(torso.low)
    labels, ct = _make_labels(torso.regions, pet.grid), _make_ct(torso, pet.grid)
    liver = replace(labels, data=np.where(labels.data == REGIONS.index("liver") + 1, labels.data, 0).astype(np.uint16))
    isotropic = make_isotropic_transform(pet.grid, SPACING_MM)
    known = replace(blur, settings={"regions": [*REGIONS, *ct_tissues.NAMES]})
    told = {}
    for name, organs in (("all", labels), ("liver", liver)):
        found = organ_regions.find_organs(organs, pet, {"same_frame": True})
        tissues = ct_regions.find_ct_tissues(ct, pet, {"modality": "CT", "same_frame": True})
        maps = standard_dose_pet.resample_region_maps([found, tissues], isotropic, known)
        assert maps is not None
        told[name] = {region for region, each in zip(known.settings["regions"], maps, strict=True) if each.any()}
    assert told["all"] == set(organ_regions.ORGANS) & told["all"]
    assert len(told["all"]) >= 5
    assert told["liver"] <= set(ct_tissues.NAMES)
    assert "lung by CT" in told["liver"]
    text = _find(_restore(blur, pet, liver), Note, "regions").text
    assert text.endswith("liver. Fewer than 5: they serve for numbers only.")


def test_a_segmentation_without_a_known_organ_is_refused(torso: low_dose.Pair, blur: Model) -> None:
    pet = _make_volume(torso.low)
    labels = _make_labels(torso.regions, pet.grid)
    others = tuple(replace(each, type=_code("12738006")) for each in labels.segments)  # brain
    with pytest.raises(Refused, match="none of the organs"):
        _restore(blur, pet, replace(labels, segments=others))


@pytest.mark.slow
def test_a_job_reads_the_organs_of_the_study_and_its_results_refer_to_them(
    torso: low_dose.Pair, tmp_path: Path
) -> None:
    write_pet_bundle(tmp_path / "models")
    pet = _make_volume(torso.low)

    def name_frame(_: int, ds: Dataset) -> None:
        ds.FrameOfReferenceUID = "1.2.3.4.5"

    paths = write_pet(tmp_path / "pet", pet.grid, pet.data, edit=name_frame)
    labels = _make_labels(torso.regions, pet.grid)
    named = {s.number: (s.label, s.type.value) for s in labels.segments}
    numbers = np.zeros(max(named) + 1, np.uint8)
    numbers[sorted(named)] = range(1, len(named) + 1)  # BINARY numbers its segments from 1
    organs = write_segmentation(
        tmp_path / "seg.dcm", paths, numbers[labels.data], {int(numbers[n]): named[n] for n in sorted(named)}
    )
    config = Config.model_validate({"node": {"data_dir": str(tmp_path)}, "worker": {"device": "cpu"}})
    task = processing.Task(
        "key", "standard_dose_pet", "", {"check_dose": False}, {"match": paths, "organs": [organs]}, 1, NOW
    )
    result = processing.run_task(pin_installed(task, config), config, progress=lambda done, step: None)
    measured = {(m["name"], m["group"]): m["value"] for m in result.report["measurements"]}
    inside = torso.regions.numpy() == REGIONS.index("liver") + 1
    suv = measured["SUVmean of the input", "liver"] / measured["SUVbw factor", ""]
    assert suv == pytest.approx(float(pet.data[inside].mean()), rel=0.02)
    uid = dcmread(organs, stop_before_pixels=True).SOPInstanceUID
    for number, ds in enumerate(result.objects):
        marking.check_marks(ds)
        assert find_errors(ds, tmp_path / f"{number}.dcm") == []
    assert any(uid in ds.to_json() for ds in result.objects)
