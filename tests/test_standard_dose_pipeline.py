"""Low-dose PET to standard dose, by a network that blurs: geometry, units, activity, measurements and refusals.

``test_head_regions.py`` adds an MR, ``test_standard_dose_end_to_end.py`` the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from pydicom.dataset import Dataset
from scipy import ndimage
from torch import nn

from dicomnode.config import Config
from dicomnode.errors import InputRefused
from dicomnode.execution import processing
from model_zoo import registry, standard_dose
from model_zoo.bundle import Model
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.standard_dose import EMBEDDING, IN_CHANNELS, OUT_CHANNELS
from pipelines import standard_dose_pet, uptake
from pipelines.contract import Case, Grid, Image, Measurement, Note, ParametricMap, Refused, Segmentation, Volume
from tests.bundles import centred_grid, write_anatomy_bundle
from tests.findings import NOW
from tests.installed import pin_installed
from tests.pet_series import FACTOR, write_pet, write_pet_bundle
from tests.scanner import ORIENTATIONS, make_grid

pytestmark = pytest.mark.training

Array = NDArray[np.float32]
FACTS = {"modality": "PT", "units": "BQML", "corrections": ("ATTN", "DECY"), "suv_bw_per_unit": 2.5e-4}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a node's data folder with two bundles: the blur, and the anatomy of a phantom."""
    data = tmp_path_factory.mktemp("data")
    write_pet_bundle(data / "models")
    write_anatomy_bundle(data / "models")
    return data


@pytest.fixture(scope="module")
def blur(bundles: Path) -> Model:
    helper = registry.load("anatomy", root=bundles / "models")
    return replace(registry.load("standard_dose_pet", root=bundles / "models"), helpers={"anatomy": helper})


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("identity")
    write_pet_bundle(root, copy=0)
    return registry.load("standard_dose_pet", root=root)


def _make_grid(
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0), shape: tuple[int, int, int] = (24, 40, 44)
) -> Grid:
    return make_grid("axial", shape, spacing_mm, (-60.0, -55.0, 12.0))


def _make_body(grid: Grid, *, noise: float = 0.1, hot_bq_ml: float = 40e3, sd_mm: float = 5.0) -> Array:
    """Return the Bq/ml of a cylinder with a hot spot off its middle, and noise."""
    k, j, i = np.indices(grid.shape)
    places = np.einsum("xn,n...->x...", grid.affine_mm[:3], np.stack([i, j, k, np.ones_like(i)]))
    middle = (grid.affine_mm @ [*((n - 1) / 2 for n in reversed(grid.shape)), 1])[:3]
    away = places - middle[:, None, None, None]
    inside = 1 / (1 + np.exp((np.hypot(away[0], away[1]) - 48) / 2))
    spot = (away - np.array([15.0, -12.0, 6.0])[:, None, None, None]) ** 2
    body = 5e3 * inside + hot_bq_ml * np.exp(-spot.sum(axis=0) / (2 * sd_mm**2))
    grain = np.random.default_rng(4).normal(size=grid.shape)
    return np.asarray(np.maximum(body * (1 + noise * grain), 0), np.float32)


@dataclass(frozen=True)
class RunResult:
    """The findings of a run by kind and name."""

    image: Array
    sd: Array
    low: NDArray[np.uint8]
    measured: dict[str, Measurement]
    grouped: dict[tuple[str, str], Measurement]
    notes: dict[str, str] = field(default_factory=dict)


def _run(model: Model, pet: Volume, facts: dict[str, Any] | None = None, **options: Any) -> RunResult:
    case = Case({"pet": pet}, FACTS if facts is None else facts)
    findings = standard_dose_pet.run(case, model, standard_dose_pet.Options(**options), 0, lambda done, step: None)
    (image,) = [f.volume for f in findings if isinstance(f, Image)]
    (sd,) = [f.volume for f in findings if isinstance(f, ParametricMap)]
    (low,) = [f for f in findings if isinstance(f, Segmentation)]
    for grid in (image.grid, sd.grid, low.grid):
        assert grid is pet.grid
    assert image.unit == sd.unit == pet.unit
    measured = [f for f in findings if isinstance(f, Measurement)]
    return RunResult(
        image.data, sd.data, low.labels, {m.name: m for m in measured if not m.group},
        {(m.group, m.name): m for m in measured}, {f.name: f.text for f in findings if isinstance(f, Note)},
    )  # fmt: skip


@pytest.mark.usefixtures("as_the_network_answers")
def test_a_network_that_changes_nothing_gives_the_input_back(identity: Model) -> None:
    pet = Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml")
    found = _run(identity, pet)
    assert np.allclose(found.image, pet.data, rtol=1e-4, atol=2.0)
    assert found.measured["total activity ratio"].value == pytest.approx(1, abs=1e-4)
    assert found.measured["activity correction"].value == 1
    assert found.measured["largest local change"].value < 1e-2
    assert found.grouped["body", "SUVmean bias"].value == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_is_hot_stays_where_it_is_in_any_orientation(orientation: str, identity: Model) -> None:
    grid = centred_grid(orientation, (3.3, 4.7, 4.7))
    pet = Volume(_make_body(grid, noise=0.0), grid, "Bq/ml")
    found = _run(identity, pet)
    hot = np.unravel_index(int(pet.data.argmax()), pet.data.shape)
    assert np.unravel_index(int(found.image.argmax()), pet.data.shape) == hot
    assert found.image.max() == pytest.approx(pet.data.max(), rel=0.03)
    assert found.measured["voxels of the network"].value == pytest.approx(3.3, abs=0.01)
    body = pet.data > 4e3
    assert float(np.abs(found.image - pet.data)[ndimage.binary_erosion(body, iterations=2)].max()) < 500


def test_the_unit_does_not_matter(blur: Model) -> None:
    low = _make_body(_make_grid())
    one, other = (
        _run(blur, Volume(c * low, _make_grid(), unit)) for c, unit in ((np.float32(1), "Bq/ml"), (2e-4, "g/ml"))
    )
    assert np.allclose(other.image, 2e-4 * one.image, rtol=1e-3, atol=1e-3)
    assert np.allclose(other.sd, 2e-4 * one.sd, rtol=1e-3, atol=1e-3)
    assert np.array_equal(other.low, one.low)


def test_noise_falls_and_the_uncertain_region_is_where_the_sd_is_large(blur: Model) -> None:
    pet = Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml")
    found = _run(blur, pet, low_confidence=0.1)
    flat = (slice(4, 20), slice(18, 24), slice(12, 18))
    assert found.image[flat].std() < 0.3 * pet.data[flat].std()
    body = uptake.find_body(pet)
    level = 0.5 * found.image[body].mean()
    assert np.array_equal(found.low == 1, body & (found.sd > 0.1 * np.maximum(found.image, level)))
    assert not _run(blur, pet, low_confidence=50.0).low.any()


def test_the_blend_mixes_image_and_input_and_their_doubt(blur: Model) -> None:
    pet = Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml")
    full, part, none = (_run(blur, pet, blend=w) for w in (1.0, 0.25, 0.0))
    assert np.allclose(part.image, 0.75 * pet.data + 0.25 * full.image, rtol=1e-4, atol=1)
    assert np.allclose(none.image, pet.data, rtol=1e-5)
    assert np.allclose(part.sd, 0.75 * none.sd + 0.25 * full.sd, rtol=1e-3, atol=1)


def test_the_noise_is_measured_in_the_image() -> None:
    generator = torch.Generator().manual_seed(3)
    expected = 4e3 * torch.linspace(1, 4, 48)[:, None, None].expand(48, 48, 48)
    true_sd = 0.12 * 4e3 * (expected / 4e3) ** 0.7
    found = standard_dose.estimate_noise_sd(expected + true_sd * torch.randn(expected.shape, generator=generator))
    assert float((found / true_sd)[4:-4].mean()) == pytest.approx(1, abs=0.1)
    assert float((found / true_sd)[4:-4].std()) < 0.1


@pytest.fixture
def measure(blur: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[[Volume, Array], dict[str, float]]:
    """Return a function: what the pipeline measures on an image where its network's answer is ``mean``.

    The image's voxels are isotropic, so that the network's grid is the image's own. Its noise is 500 Bq/ml.
    """
    monkeypatch.setattr(standard_dose, "estimate_noise_sd", lambda low: torch.full_like(low, 500.0))

    def measure(pet: Volume, mean: Array) -> dict[str, float]:
        answer = torch.from_numpy(mean), torch.full(mean.shape, 100.0)
        monkeypatch.setattr(standard_dose, "restore", lambda *_, **__: answer)
        return {name: m.value for name, m in _run(blur, pet).measured.items()}

    return measure


def test_total_activity_is_restored_when_it_is_off_and_left_alone_when_it_is_not(
    measure: Callable[[Volume, Array], dict[str, float]],
) -> None:
    pet = Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml")
    off, near = (measure(pet, np.float32(c) * pet.data) for c in (1.1, 1.005))
    assert (off["activity correction"], off["total activity ratio"]) == pytest.approx((1 / 1.1, 1), rel=1e-4)
    assert (near["activity correction"], near["total activity ratio"]) == pytest.approx((1, 1.005), rel=1e-4)
    with pytest.raises(Refused, match="no activity is left"):
        measure(pet, 0 * pet.data)


def test_activity_invented_inside_or_outside_the_body_shows_in_the_numbers(
    measure: Callable[[Volume, Array], dict[str, float]],
) -> None:
    grid = _make_grid(shape=(24, 64, 68))
    pet = Volume(_make_body(grid), grid, "Bq/ml")
    honest = measure(pet, pet.data)
    outside, inside = pet.data.copy(), pet.data.copy()
    outside[8:14, 2:6, 2:6] += 2e4
    inside[10:14, 30:34, 20:24] += 2e4
    assert honest["activity outside the body"] == pytest.approx(0, abs=1e-6)
    assert measure(pet, outside)["activity outside the body"] > 1
    assert measure(pet, inside)["largest local change"] > 20 > 1 > honest["largest local change"]


def test_suv_is_measured_where_it_is_known_and_the_reason_told_where_not(blur: Model) -> None:
    pet = Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml")
    register = _run(blur, pet)
    unknown = _run(blur, pet, {"units": "BQML", "suv_unknown_because": "Patient's Weight (0010,1030) is not stated"})
    suv, activity = register.grouped["body", "SUVmean"], unknown.grouped["body", "activity mean"]
    assert (suv.unit, activity.unit) == ("g/ml{SUVbw}", "Bq/ml")
    assert suv.value == pytest.approx(2.5e-4 * activity.value)
    assert suv.site is not None
    assert "Weight (0010,1030) is not stated" in unknown.notes["SUV"]
    assert "0.00025 g/ml per unit" in register.notes["SUV"]
    assert "SUVbw factor" not in unknown.measured
    assert "Corrected Image (0028,0051) is not stated" in unknown.notes["attenuation"]


def test_the_note_says_where_the_dose_fraction_came_from(blur: Model) -> None:
    pet = Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml")
    assert "the default" in _run(blur, pet).notes["dose fraction"]
    assert "0.25 of the standard dose: set for this route" in _run(blur, pet, dose_fraction=0.25).notes["dose fraction"]
    assert "told no regions" in _run(blur, pet).notes["regions"]
    for options in ({"dose_fraction": 0.0}, {"blend": 1.5}, {"dose": 0.1}):
        with pytest.raises(ValidationError):
            standard_dose_pet.Options(**options)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "MR": ({"modality": "MR"}, r"Modality \(0008,0060\) of this series is MR"),
    "a perfusion map": ({"units": "MLMINML"}, r"Units \(0054,1001\) are MLMINML"),
    "a dynamic series": ({"series_type": ("DYNAMIC", "IMAGE")}, "DYNAMIC/IMAGE"),
    "a projection": ({"series_type": ("WHOLE BODY", "REPROJECTION")}, "takes a static image"),
    "no attenuation correction": ({"corrections": ("DECY",)}, "has no ATTN"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_frame_of_activity_is_refused(what: str, blur: Model) -> None:
    facts, words = REFUSED[what]
    with pytest.raises(Refused, match=words):
        _run(blur, Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml"), FACTS | facts)


def test_a_phase_image_as_mr_is_refused(blur: Model) -> None:
    pet = Volume(_make_body(_make_grid()), _make_grid(), "Bq/ml")
    case = Case({"pet": pet, "mr": pet}, FACTS | {"mr": {"image_type": ("ORIGINAL", "PRIMARY", "P", "ND")}})
    with pytest.raises(Refused, match=r"the MR is no magnitude but a phase image or part of the signal \(P\)"):
        standard_dose_pet.run(case, blur, standard_dose_pet.Options(), 0, lambda done, step: None)


def test_an_image_without_activity_is_refused(blur: Model) -> None:
    empty = np.zeros((24, 40, 44), np.float32)
    with pytest.raises(Refused, match="holds no activity"):
        _run(blur, Volume(empty, _make_grid(), "Bq/ml"))


def test_slabs_with_their_neighbours_give_what_the_whole_does() -> None:
    torch.manual_seed(0)
    network = VolumeUNet(
        IN_CHANNELS, OUT_CHANNELS, (4, 8), 1, unshuffle=2, embedding=EMBEDDING, norm="soft", refine=4
    ).eval()  # fmt: skip
    for block in network.modules():
        if hasattr(block, "conv2"):
            nn.init.normal_(block.conv2.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    low = torch.from_numpy(_make_body(_make_grid(shape=(90, 32, 32))))
    undivided, slabs = (
        standard_dose.restore(network, low, 0.1, spacing_mm=3.0, bf16=False, largest=n) for n in (10**9, 32 * 32 * 16)
    )
    for one, other in zip(undivided, slabs, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(low.max()))


SERIES: dict[str, tuple[Callable[[int, Dataset], None], str]] = {}


def _register(words: str) -> Callable[[Callable[[int, Dataset], None]], Callable[[int, Dataset], None]]:
    def register(edit: Callable[[int, Dataset], None]) -> Callable[[int, Dataset], None]:
        SERIES[edit.__name__.strip("_").replace("_", " ")] = (edit, words)
        return edit

    return register


@_register(r"24 slices lie at only 12 positions, up to 2 at one; they differ in FrameReferenceTime")
def _two_time_frames(k: int, ds: Dataset) -> None:
    if k >= 12:
        z = float(ds.ImagePositionPatient[2]) - 36
        ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], f"{z}"]
        ds.FrameReferenceTime = "900000"


@_register(r"PET without Units \(0054,1001\)")
def _no_units(_: int, ds: Dataset) -> None:
    del ds.Units


@_register(r"Units \(0054,1001\): BQML, GML")
def _units_that_change(k: int, ds: Dataset) -> None:
    ds.Units = "BQML" if k < 12 else "GML"


@_register(r"Modality \(0008,0060\).* is NM")
def _another_modality(_: int, ds: Dataset) -> None:
    ds.Modality = "NM"


@_register("ATTN")
def _no_attenuation_correction(_: int, ds: Dataset) -> None:
    ds.CorrectedImage = ["DECY", "SCAT"]


@_register("slices are missing")
def _missing_slices(k: int, ds: Dataset) -> None:
    if k >= 12:
        z = float(ds.ImagePositionPatient[2]) + 6
        ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], f"{z}"]


def _process(paths: list[Path], bundles: Path, **options: Any) -> processing.TaskResult:
    config = Config.model_validate({"node": {"data_dir": str(bundles)}, "worker": {"device": "cpu"}})
    options = {"check_dose": False} | options  # the headers state a full dose
    task = processing.Task("key", "standard_dose_pet", "", options, {"match": paths}, 1, NOW)
    return processing.run_task(pin_installed(task, config), config, progress=lambda fraction, step: None)


@pytest.mark.parametrize("mistake", SERIES)
def test_a_series_that_is_wrong_as_a_whole_is_refused_with_the_reason(
    mistake: str, bundles: Path, tmp_path: Path
) -> None:
    edit, words = SERIES[mistake]
    paths = write_pet(tmp_path, _make_grid(), _make_body(_make_grid()), edit=edit)
    with pytest.raises((InputRefused, Refused), match=words):
        _process(paths, bundles)


def test_the_report_of_a_job_has_suv_and_an_odd_dose_or_tracer_holds_it(bundles: Path, tmp_path: Path) -> None:
    paths = write_pet(tmp_path / "fdg", _make_grid(), _make_body(_make_grid()))
    produced = _process(paths, bundles)
    measurements = {m["name"]: m for m in produced.report["measurements"]}
    assert measurements["SUVbw factor"]["value"] == pytest.approx(FACTOR, rel=1e-6)
    assert measurements["SUVmean"]["unit"] == "g/ml{SUVbw}"
    assert produced.held_because == ""
    assert "dose over standard dose" in _process(paths, bundles, dose_fraction=0.9).held_because

    def other(_: int, ds: Dataset) -> None:
        ds.RadiopharmaceuticalInformationSequence[0].Radiopharmaceutical = "PSMA-1007"

    psma = _process(write_pet(tmp_path / "psma", _make_grid(), _make_body(_make_grid()), edit=other), bundles)
    assert "Radiopharmaceutical (0018,0031) is PSMA-1007" in psma.held_because


def test_a_full_dose_by_the_header_is_held_unless_the_route_turns_the_check_off(bundles: Path, tmp_path: Path) -> None:
    paths = write_pet(tmp_path, _make_grid(), _make_body(_make_grid()))
    produced = _process(paths, bundles, check_dose=True)
    assert produced.report["verdict"] == "hold"
    assert "0.1 contradicts the header: 350 MBq" in produced.held_because
    assert _process(paths, bundles, check_dose=False).held_because == ""
