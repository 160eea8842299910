"""The CT of a PET/CT: its tissues are found, match the PET, are measured and given to a network that was trained with
them; a CT that does not belong to the PET is not used.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from torch import Tensor, nn

from dicomnode import uids
from dicomnode.config import Config
from dicomnode.execution import processing
from model_zoo import ct_tissues
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.imaging import blur
from model_zoo.simulate.pet.torso import ORGANS, Torso, draw_torso
from model_zoo.standard_dose import OUT_CHANNELS
from model_zoo.training.recipe import seeded
from pipelines import ct_regions, standard_dose_pet
from pipelines.contract import Case, Grid, Measurement, Note, Refused, Volume
from pipelines.uptake import find_body
from tests.bundles import write_anatomy_bundle
from tests.findings import NOW
from tests.installed import pin_installed
from tests.pet_series import write_pet, write_pet_bundle
from tests.scanner import make_grid
from tests.series import unpack_series, write_slices

pytestmark = pytest.mark.training

FACTS: dict[str, Any] = {"modality": "PT", "units": "BQML", "corrections": ("ATTN", "DECY"), "suv_bw_per_unit": 2.5e-4}
CT_MM, PET_MM = 3.0, 6.0
CT_GRID = make_grid("axial", (60, 104, 140), (CT_MM,) * 3, (-210.0, -156.0, 5.0))
PET_GRID = make_grid("axial", (30, 52, 70), (PET_MM,) * 3, (-208.5, -154.5, 6.5))


@pytest.fixture(scope="module")
def torso() -> Torso:
    return draw_torso(seeded(3), shape=CT_GRID.shape, spacing_mm=CT_MM, middle_mm=(0.0, 0.0, 380.0), lesions=0)


@pytest.fixture(scope="module")
def ct(torso: Torso) -> Volume:
    hu = ct_tissues.attenuation_to_hounsfield(torso.mu_per_cm.numpy())
    return Volume(hu.astype(np.float32), CT_GRID, "[hnsf'U]")


@pytest.fixture(scope="module")
def pet(torso: Torso) -> Volume:
    coarse = nn.functional.avg_pool3d(4e3 * torso.activity[None], 2)[0]
    data = blur(coarse, 6.0, (PET_MM,) * 3, normalised=True).numpy()
    return Volume(np.asarray(data, np.float32), PET_GRID, "Bq/ml")


class Recorder(nn.Module):
    """Network that returns its image and records the region maps that it received."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Tensor | None] = []

    def forward(self, x: Tensor, embedding: Tensor, tokens: None, maps: Tensor | None) -> Tensor:
        self.received.append(maps)
        answer = torch.zeros(len(x), OUT_CHANNELS, *x.shape[2:])
        answer[:, 2] = 60.0
        return answer


def _model(*regions: str) -> tuple[Model, Recorder]:
    recorder = Recorder()
    settings = {"regions": list(regions), "spacings_mm": [PET_MM, PET_MM]}
    return Model("standard_dose_pet", "0", "", {}, recorder, settings, "cpu"), recorder


def _run(model: Model, pet: Volume, ct: Volume, **facts: Any) -> list[Any]:
    case = Case({"pet": pet, "ct": ct}, FACTS | {"ct": {"modality": "CT", "same_frame": True} | facts})
    return standard_dose_pet.run(case, model, standard_dose_pet.Options(), 0, lambda done, step: None)


def test_tissues_have_the_ct_numbers_of_the_literature_and_an_attenuation_map_has_them_too() -> None:
    hu = np.array([-1000, -951, -949, -700, -191, -189, -100, -31, -29, 0, 40, 149, 151, 1200])
    assert ct_tissues.classify(hu).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    mu_per_cm = np.array([0.0, 0.026, 0.087, 0.096, 0.13])  # air, lung, fat, soft tissue, bone of the simulator
    assert ct_tissues.classify(ct_tissues.attenuation_to_hounsfield(mu_per_cm)).tolist() == [0, 1, 2, 3, 4]
    assert ct_tissues.attenuation_to_hounsfield(np.array([0.096])) == pytest.approx(0, abs=1e-6)
    low, high = ct_tissues.attenuation_to_hounsfield(9.6e-5 * np.array([1046.9, 1047.1]))  # where the two lines meet
    assert (low, high) == pytest.approx((46.9, 47.1), abs=1.0)


def test_the_layer_between_air_and_tissue_is_no_lung() -> None:
    labels = np.zeros((12, 20, 20), np.uint8)
    labels[:, 3:17, 3:17], labels[:, 4:16, 4:16] = 1, 3
    labels[2:9, 6:12, 6:12] = 1
    found = ct_tissues.remove_thin_lung(labels)
    assert (found == 1).sum() == 7 * 6 * 6
    assert np.array_equal(found[labels != 1], labels[labels != 1])


def test_the_tissues_of_a_ct_lie_where_the_body_has_them(torso: Torso, ct: Volume, pet: Volume) -> None:
    found = ct_regions.find_ct_tissues(ct, pet, {"same_frame": True})
    organ = torso.organ.numpy().reshape(30, 2, 52, 2, 70, 2)
    truth = {1: ["lungs"], 2: ["fat"], 4: ["spine", "bone"]}
    for number, organs in truth.items():
        expected = np.isin(organ, [ORGANS.index(name) for name in organs]).mean(axis=(1, 3, 5)) > 0.5
        dice = 2 * ((found.on_pet == number) & expected).sum() / ((found.on_pet == number).sum() + expected.sum())
        assert dice > 0.9, organs
    assert found.dice > 0.9
    assert found.is_registered


def test_a_network_is_told_nothing_of_the_head_by_ct() -> None:
    """A skull of 10 cm radius stands above a torso; maps hold voxels farther than 4 cm from what bone encloses."""
    grid = make_grid("axial", (100, 60, 60), (4.0,) * 3, (0.0, 0.0, 0.0))
    k, j, i = (4.0 * x for x in np.ogrid[:100, :60, :60])
    from_middle = np.sqrt((k - 280) ** 2 + (j - 120) ** 2 + (i - 120) ** 2)
    labels = np.where(from_middle < 104, 3, 0).astype(np.uint8)
    labels[(from_middle > 92) & (from_middle <= 100)] = 4
    labels[:40, 10:50, 5:55] = 3
    labels[:40, 40:44, 28:32] = 4  # a spine
    found = ct_regions.CtTissues(labels, grid, 1.0, True)
    maps = found.resample_fractions(list(ct_tissues.NAMES), grid)
    with_regions = maps.sum(dim=(0, 2, 3)) > 0
    assert bool(with_regions[:34].all())
    assert not bool(with_regions[42:].any())
    assert "nothing by CT" in found.description
    torso = ct_regions.CtTissues(labels[:40], make_grid("axial", (40, 60, 60), (4.0,) * 3, (0.0, 0.0, 0.0)), 1.0, True)
    assert "nothing by CT" not in torso.description


def test_couch_and_air_about_the_body_are_no_tissue(ct: Volume, pet: Volume) -> None:
    with_couch = ct.data.copy()
    with_couch[:, -4:-3, 10:-10] = 100.0  # a shell
    with_couch[:, -3:, 10:-10] = -900.0  # on foam
    bare = ct_regions.find_ct_tissues(ct, pet, {})
    couched = ct_regions.find_ct_tissues(replace(ct, data=with_couch), pet, {})
    assert float((bare.on_pet != couched.on_pet).mean()) < 1e-3


@pytest.mark.usefixtures("as_the_network_answers")
def test_a_network_is_told_the_tissues_that_it_knows_and_only_those(ct: Volume, pet: Volume) -> None:
    trained, recorder = _model("liver", *ct_tissues.NAMES)
    findings = _run(trained, pet, ct)
    (maps,) = recorder.received
    assert maps is not None
    found = ct_regions.find_ct_tissues(ct, pet, {})
    network_maps = maps[0, :, : PET_GRID.shape[0], : PET_GRID.shape[1], : PET_GRID.shape[2]].numpy()
    assert not network_maps[0].any()
    for number in range(1, 5):
        assert np.array_equal(network_maps[number] > 0.5, found.on_pet == number)
    ignorant, silent = _model("liver", "bone")
    again = _run(ignorant, pet, ct)
    assert silent.received == [None]
    assert _means(again) == pytest.approx(_means(findings), rel=1e-3)


def _means(findings: list[Any]) -> dict[str, float]:
    return {f.group: f.value for f in findings if isinstance(f, Measurement) and f.name == "SUVmean"}


def test_the_report_has_the_uptake_of_each_tissue_with_its_code(ct: Volume, pet: Volume) -> None:
    findings = _run(_model()[0], pet, ct, contrast_agent=True)
    means = _means(findings)
    assert set(means) == {"body", *ct_tissues.NAMES}
    assert means["fat by CT"] < means["soft tissue by CT"]
    assert means["lung by CT"] < means["soft tissue by CT"]
    sites = {f.group: f.site.value for f in findings if isinstance(f, Measurement) and f.site is not None}
    assert sites["lung by CT"] == "39607008"
    assert "bone may hold vessels" in _words(findings)


def _words(findings: list[Any]) -> str:
    return next(f.text for f in findings if isinstance(f, Note) and f.name == "regions")


def test_a_ct_of_another_frame_or_another_body_is_not_used_and_that_is_said(ct: Volume, pet: Volume) -> None:
    model, silent = _model(*ct_tissues.NAMES)
    findings = _run(model, pet, ct, same_frame=False)
    assert "another frame of reference (0020,0052)" in _words(findings)
    assert set(_means(findings)) == {"body"}
    affine = CT_GRID.affine_mm.copy()
    affine[:3, 3] += [180.0, 60.0, 0.0]
    findings = _run(model, pet, replace(ct, grid=Grid(CT_GRID.shape, affine)), same_frame=None)
    assert "does not lie upon that of the PET" in _words(findings)
    assert set(_means(findings)) == {"body"}
    assert silent.received == [None, None]
    with pytest.raises(Refused, match="the input ct is MR in 1, not a CT"):
        _run(model, pet, replace(ct, unit="1"), modality="MR")


def _write_ct(folder: Path, ct: Volume, *, frame: str) -> list[Path]:
    def edit(_: int, ds: Dataset) -> None:
        ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-1024", "HU"
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = uids.derive("study", "pet"), uids.derive("frame", frame)

    stored = np.clip(np.round(ct.data + 1024), 0, 4095).astype(np.uint16)
    return write_slices(folder, ct.grid, stored, edit=edit, key="ct")


@pytest.mark.parametrize("frame", ["pet", "another"])
def test_a_job_with_pet_and_ct_reports_tissues_where_they_share_a_frame(
    frame: str, ct: Volume, pet: Volume, tmp_path: Path
) -> None:
    write_pet_bundle(tmp_path / "models")
    write_anatomy_bundle(tmp_path / "models")
    inputs = {
        "match": write_pet(tmp_path / "pet", PET_GRID, pet.data),
        "ct": _write_ct(tmp_path / "ct", ct, frame=frame),
    }
    config = Config.model_validate({"node": {"data_dir": str(tmp_path)}, "worker": {"device": "cpu"}})
    task = processing.Task("key", "standard_dose_pet", "", {}, inputs, 1, NOW)
    produced = processing.run_task(pin_installed(task, config), config, progress=lambda done, step: None)
    groups = {each.get("group") for each in produced.report["measurements"]}
    assert ("lung by CT" in groups) == (frame == "pet")
    assert json.dumps(produced.report)


def test_the_body_of_the_kit_s_whole_body_pet_is_found_in_a_ct_made_of_it(tmp_path: Path) -> None:
    """The kit has no CT. The test makes one of water wherever this PET has its body, with the PET's real geometry."""
    from dicomnode.reading import volumes

    try:
        archive = data_root() / "pet" / "tcia-sts001-fdg-wholebody" / "raw_bqml.tar.xz"
    except FileNotFoundError as error:
        pytest.skip(str(error))
    pet = volumes.read(unpack_series(archive, tmp_path)).volume
    body = find_body(pet)
    finer = pet.grid.affine_mm @ np.diag([0.5, 0.5, 1, 1])
    finer[:3, 3] = (pet.grid.affine_mm @ [-0.25, -0.25, 0, 1])[:3]
    water: NDArray[np.float32] = np.where(body.repeat(2, axis=1).repeat(2, axis=2), 0, -1000).astype(np.float32)
    k, j, i = pet.grid.shape
    found = ct_regions.find_ct_tissues(Volume(water, Grid((k, 2 * j, 2 * i), finer), "[hnsf'U]"), pet, {})
    assert found.dice > 0.97
    assert float((found.on_pet == 3).mean() / body.mean()) == pytest.approx(1, abs=0.05)
