"""Enhanced and Legacy Converted Enhanced PET: the same values and SUV as the classic series, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused
from dicomnode.reading import volumes
from pipelines.contract import Grid
from tests.enhanced_pet import make_code, mapping, write_enhanced_pet, write_legacy_pet
from tests.pet_series import DOSE_BQ, FACTOR, WEIGHT_KG, write_pet
from tests.series import unpack_series

GRID = Grid((9, 8, 10), np.array([[2.0, 0, 0, -9], [0, 2, 0, -8], [0, 0, 3, 5], [0, 0, 0, 1]]))
X = np.log(2) * 600 / 6586.2
"""Decay during a frame: the mean activity is (1 - exp(-x)) / x of the activity at its start."""
Edit = Callable[[Dataset], None]


def _make_activity() -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(0, 3e4, GRID.shape).astype(np.float32)


def _read_enhanced(tmp_path: Path, edit: Edit) -> volumes.Series:
    return volumes.read([write_enhanced_pet(tmp_path / "enhanced.dcm", GRID, _make_activity(), edit)])


def _read_legacy(tmp_path: Path, edit: Callable[[int, Dataset], None]) -> volumes.Series:
    classic = write_pet(tmp_path / "classic", GRID, _make_activity(), edit=edit)
    return volumes.read([write_legacy_pet(tmp_path / "legacy.dcm", classic)])


def _keep(*_: Any) -> None:
    """Change nothing."""


@pytest.mark.parametrize("kind", ["enhanced", "legacy"])
def test_values_and_suv_equal_those_of_the_classic_series(kind: str, tmp_path: Path) -> None:
    classic = volumes.read(write_pet(tmp_path / "one", GRID, _make_activity()))
    found = _read_enhanced(tmp_path, _keep) if kind == "enhanced" else _read_legacy(tmp_path, _keep)
    assert found.volume.unit == classic.volume.unit == "Bq/ml"
    np.testing.assert_allclose(found.volume.data, classic.volume.data, rtol=1e-6)
    np.testing.assert_allclose(found.volume.grid.affine_mm, classic.volume.grid.affine_mm, atol=1e-6)
    for fact in ("units", "dose_bq", "half_life_s", "uptake_s", "weight_kg", "suv_bw_per_unit"):
        assert found.facts[fact] == pytest.approx(classic.facts[fact]), fact
    assert found.facts["suv_bw_per_unit"] == pytest.approx(FACTOR)


@pytest.mark.slow
def test_the_real_whole_body_converted_by_highdicom_keeps_its_suv(kit: Path, tmp_path: Path) -> None:
    """The slices lie about the seam of two bed positions, whose times differ."""
    files = unpack_series(kit / "pet" / "tcia-sts001-fdg-wholebody" / "raw_bqml.tar.xz", tmp_path / "raw")
    paths = sorted(files, key=lambda path: int(dcmread(path, specific_tags=["InstanceNumber"]).InstanceNumber))[30:60]
    classic = volumes.read(paths)
    legacy = volumes.read([write_legacy_pet(tmp_path / "legacy.dcm", paths)])
    assert legacy.facts["suv_bw_per_unit"] == pytest.approx(2.42903e-4, rel=1e-5)
    np.testing.assert_allclose(legacy.volume.data, classic.volume.data, rtol=1e-6)


def _set(**values: Any) -> Edit:
    def edit(ds: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return edit


def _set_agent(**values: Any) -> Edit:
    return lambda ds: _set(**values)(ds.RadiopharmaceuticalInformationSequence[0])


def _add_agent(*used: int) -> Edit:
    """Return an edit that adds a second tracer; the frames refer to the tracers ``used``."""

    def edit(ds: Dataset) -> None:
        other = deepcopy(ds.RadiopharmaceuticalInformationSequence[0])
        other.RadiopharmaceuticalAgentNumber, other.RadionuclideTotalDose = 2, "100"
        ds.RadiopharmaceuticalInformationSequence.append(other)
        uses = [Dataset() for _ in used]
        for use, number in zip(uses, used, strict=True):
            use.RadiopharmaceuticalAgentNumber = number
        ds.SharedFunctionalGroupsSequence[0].RadiopharmaceuticalUsageSequence = uses

    return edit


def _map_units(*units: str) -> Edit:
    """Return an edit that maps each frame to these units, with slopes 1, 2 ..."""

    def edit(ds: Dataset) -> None:
        for group in ds.PerFrameFunctionalGroupsSequence:
            items = [mapping(unit, float(number + 1)) for number, unit in enumerate(units)]
            group.RealWorldValueMappingSequence = items

    return edit


def _rescale(kind: str, slope: str = "2", intercept: str = "0") -> Edit:
    def edit(ds: Dataset) -> None:
        for group in ds.PerFrameFunctionalGroupsSequence:
            del group.RealWorldValueMappingSequence
            values = group.PixelValueTransformationSequence[0]
            values.RescaleType, values.RescaleSlope, values.RescaleIntercept = kind, slope, intercept

    return edit


def _chain(*edits: Edit) -> Edit:
    def edit(ds: Dataset) -> None:
        for each in edits:
            each(ds)

    return edit


def _set_first_frame(**values: Any) -> Edit:
    return lambda ds: _set(**values)(ds.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0])


SUVS: dict[str, tuple[Edit, float]] = {
    "decay corrected to the injection": (_set(DecayCorrectionDateTime="20260101120000"), WEIGHT_KG * 1000 / 350e6),
    "decay corrected later than the scan": (
        _set(DecayCorrectionDateTime="20260101140000"), WEIGHT_KG * 1000 / 350e6 * 2 ** (7200 / 6586.2),
    ),
    "zones in the dates": (
        _chain(_set_agent(RadiopharmaceuticalStartDateTime="20260101110000+0000"), _set(TimezoneOffsetFromUTC="+0100")),
        FACTOR,
    ),
    "frames without a time": (_set_first_frame(FrameAcquisitionDateTime=None), FACTOR),
    "not decay corrected": (_set(DecayCorrected="NO", DecayCorrectionDateTime=None), FACTOR * X / -np.expm1(-X)),
    "the second of two agents": (_add_agent(2), FACTOR * 3.5),
}  # fmt: skip


@pytest.mark.parametrize("case", SUVS)
def test_suv_by_what_an_enhanced_pet_states(case: str, tmp_path: Path) -> None:
    edit, factor = SUVS[case]
    assert _read_enhanced(tmp_path, edit).facts["suv_bw_per_unit"] == pytest.approx(factor, rel=1e-6)


REASONS: dict[str, tuple[Edit, str]] = {
    "no Decay Correction DateTime": (_set(DecayCorrectionDateTime=None), r"\(0018,9701\) is not stated"),
    "no Decay Corrected": (_set(DecayCorrected=None), r"Decay Correction \(0054,1102\) is not stated"),
    "not attenuation-corrected": (_set(AttenuationCorrected="NO"), "attenuation was corrected"),
    "no half-life": (_set_agent(RadionuclideHalfLife=None), "Half Life"),
    "half-life in minutes": (
        _set_agent(RadionuclideHalfLife="109.77"), "says Fluorine-18, whose half-life is 6586.2 s",
    ),
    "no dose": (_set_agent(RadionuclideTotalDose=""), "Dose .* not stated"),
    "dose in Bq": (_set_agent(RadionuclideTotalDose="350000000"), r"of 3.5e\+14 Bq .* instead of MBq"),
    "no injection": (_set_agent(RadiopharmaceuticalStartDateTime=None), "times of injection and scan"),
    "an offset alone": (_set_agent(RadiopharmaceuticalStartDateTime="20260101120000+0100"), r"\(0008,0201\)"),
    "two agents used": (_add_agent(1, 2), r"\(0054,0016\) has several items"),
    "two agents and no usage": (_add_agent(), r"\(0054,0016\) has several items"),
    "frames of several times": (
        _chain(_set(DecayCorrected="NO", DecayCorrectionDateTime=None),
               _set_first_frame(FrameAcquisitionDateTime="20260101132000")),
        "give no single one",
    ),
    "SUV by lean body mass": (_map_units("g/ml{SUVlbm}"), "SUV by LBM"),
    "SUV by nobody knows what": (_map_units("g/ml"), "by which measure of the body"),
    "a fraction": (_map_units("%"), "PCNT, not an activity"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", REASONS)
def test_what_an_enhanced_pet_leaves_open_gives_a_reason(case: str, tmp_path: Path) -> None:
    edit, words = REASONS[case]
    found = _read_enhanced(tmp_path, edit).facts
    assert "suv_bw_per_unit" not in found
    with pytest.raises(ValueError, match=words):
        raise ValueError(found["suv_unknown_because"])


UNITS: dict[str, tuple[Edit, str, float, float | None]] = {
    "SUV beside activity": (_map_units("{SUVbw}g/ml", "Bq/ml"), "Bq/ml", 2.0, FACTOR),
    "SUV alone": (_map_units("g/ml{SUVbw}"), "g/ml", 1.0, 1.0),
    "SUV alone by its older code": (_map_units("{SUVbw}g/ml"), "g/ml", 1.0, 1.0),
    "counts": (_map_units("{counts}"), "{counts}", 1.0, None),
    "a Rescale Type": (_rescale("BQML"), "Bq/ml", 2.0, FACTOR),
    "a Rescale Type as UCUM, with an intercept": (_rescale("Bq/ml", "2", "0.5"), "Bq/ml", 2.0, FACTOR),
}


@pytest.mark.parametrize("case", UNITS)
def test_the_unit_is_the_mappings_or_the_rescale_types(case: str, tmp_path: Path) -> None:
    edit, unit, slope, factor = UNITS[case]
    stored = {}

    def edit_and_keep(ds: Dataset) -> None:
        edit(ds)
        stored["is"] = np.frombuffer(ds.PixelData, np.int16).reshape(GRID.shape)

    series = _read_enhanced(tmp_path, edit_and_keep)
    assert series.volume.unit == unit
    intercept = 0.5 if "intercept" in case else 0.0
    np.testing.assert_allclose(series.volume.data, slope * stored["is"] + intercept, rtol=1e-6)
    assert series.facts.get("suv_bw_per_unit") == (None if factor is None else pytest.approx(factor))


REFUSALS: dict[str, tuple[Edit, str]] = {
    "no mapping": (_rescale("US"), r"Real World Value Mapping Sequence \(0040,9096\) is missing"),
    "a mapping without unit": (_map_units("1"), r"\(0040,9096\) is in 1, so that the unit"),
    "a mapping in kBq/ml": (_map_units("kBq/ml"), r"\(0040,9096\) is in kBq/ml"),
    "two mappings to activity": (_map_units("Bq/ml", "Bq/ml"), "needed is one mapping"),
    "a rescale of zero": (_rescale("BQML", "0"), r"Rescale Slope \(0028,1053\) of PET is 0"),
    "a transmission": (_set(CountsSource="TRANSMISSION"), r"Counts Source \(0054,1002\) is TRANSMISSION"),
    "units of one frame": (
        lambda ds: setattr(
            ds.PerFrameFunctionalGroupsSequence[2], "RealWorldValueMappingSequence", [mapping("{counts}", 1.0)]
        ),
        r"Units \(0054,1001\): BQML, CNTS",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_an_enhanced_pet_without_one_unit_is_refused(case: str, tmp_path: Path) -> None:
    edit, words = REFUSALS[case]
    with pytest.raises(InputRefused, match=words):
        _read_enhanced(tmp_path, edit)


@pytest.mark.parametrize(("flavour", "kind"), [("DYNAMIC", "DYNAMIC"), ("CARDIAC_GATED", "GATED"), ("STATIC", None)])
def test_image_type_tells_dynamic_and_gated_frames(flavour: str, kind: str | None, tmp_path: Path) -> None:
    found = _read_enhanced(tmp_path, _set(ImageType=["ORIGINAL", "PRIMARY", flavour, "NONE"])).facts
    assert found.get("series_type") == (None if kind is None else (kind,))


def test_corrections_and_tracer_are_told_as_facts(tmp_path: Path) -> None:
    found = _read_enhanced(tmp_path, _keep).facts
    assert found["corrections"] == ("DECY", "ATTN", "SCAT", "DTIM", "CLN", "RAN", "DCAL", "NORM")
    assert found["tracer"] == "Fluorodeoxyglucose F^18^"
    assert found["dose_bq"] == DOSE_BQ
    assert "decay_correction" not in found


def _edit_dose(k: int, ds: Dataset) -> None:
    ds.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose = f"{350e6 + k:.0f}"


def _edit_as_philips(suv_per_count: float) -> Callable[[int, Dataset], None]:
    def edit(_: int, ds: Dataset) -> None:
        ds.Units = "CNTS"
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0x00, "DS", f"{suv_per_count:.6g}")
        block.add_new(0x09, "DS", "2.5")

    return edit


def _edit_corrections(k: int, ds: Dataset) -> None:
    ds.CorrectedImage = ["DECY", "ATTN"] if k else ["DECY"]


def _set_in_third(keyword: str, one: str, other: str) -> Callable[[int, Dataset], None]:
    return lambda k, ds: setattr(ds, keyword, other if k == 2 else one)


LEGACY_REASONS: dict[str, tuple[Callable[[int, Dataset], None], str]] = {
    "doses": (_edit_dose, r"differ in Radionuclide Total Dose \(0018,1074\)"),
    "decay": (lambda _, ds: setattr(ds, "DecayCorrection", ""), r"Decay Correction \(0054,1102\) is not stated"),
    "zone": (
        lambda _, ds: setattr(
            ds.RadiopharmaceuticalInformationSequence[0], "RadiopharmaceuticalStartDateTime", "20260101120000+0100"
        ),
        r"\(0008,0201\)",
    ),
}


@pytest.mark.parametrize("case", LEGACY_REASONS)
def test_a_converted_series_has_the_reasons_of_its_source(case: str, tmp_path: Path) -> None:
    edit, words = LEGACY_REASONS[case]
    found = _read_legacy(tmp_path, edit).facts
    assert "suv_bw_per_unit" not in found
    with pytest.raises(ValueError, match=words):
        raise ValueError(found["suv_unknown_because"])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_set_in_third("Units", "BQML", "GML"), r"Units \(0054,1001\)"),
        (_set_in_third("DecayCorrection", "START", "ADMIN"), r"Decay Correction \(0054,1102\)"),
        (_edit_corrections, r"Corrected Image \(0028,0051\)"),
        (lambda _, ds: delattr(ds, "Units"), r"PET without Units \(0054,1001\)"),
    ],
)
def test_a_converted_series_is_refused_as_its_source_is(
    edit: Callable[[int, Dataset], None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputRefused, match=words):
        _read_legacy(tmp_path, edit)


def test_philips_private_factors_are_found_in_a_converted_series(tmp_path: Path) -> None:
    series = _read_legacy(tmp_path, _edit_as_philips(2.5 * FACTOR))
    assert (series.volume.unit, series.facts["suv_bw_per_unit"]) == ("Bq/ml", pytest.approx(FACTOR, rel=1e-5))
    np.testing.assert_allclose(series.volume.data, 2.5 * _make_activity(), rtol=1e-3, atol=2.5)


def test_a_mapping_to_suv_beside_the_units_of_a_converted_series_is_not_its_unit(tmp_path: Path) -> None:
    series = _read_legacy(
        tmp_path, lambda _, ds: setattr(ds, "RealWorldValueMappingSequence", [mapping("{SUVbw}g/ml", 0.1)])
    )
    assert series.volume.unit == "Bq/ml"
    np.testing.assert_allclose(series.volume.data, _make_activity(), rtol=1e-3, atol=1)


def test_a_code_of_another_nuclide_is_told(tmp_path: Path) -> None:
    carbon = make_code("40565003", "SCT", "11C")
    found = _read_enhanced(tmp_path, _set_agent(RadionuclideCodeSequence=[carbon])).facts
    assert "says Carbon-11, whose half-life is 1221.8 s" in found["suv_unknown_because"]
