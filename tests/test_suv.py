"""SUV factors: every vendor's variant of the data kit, the independent SUV volume, and the reasons for having none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicomnode.reading import acquisition, suv, volumes
from dicomnode.reading.frames import Frame
from tests.series import unpack_series

STATED = suv.PetHeader(
    units="BQML", decay_correction="START", corrections=("ATTN", "DECY"), dose_bq=370e6, half_life_s=6586.2,
    weight_kg=70.0, decay_s=3600.0,
)  # fmt: skip
_OF_THE_TRACER = (
    "RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime", "RadiopharmaceuticalStartDateTime",
)  # fmt: skip

VENDORS: dict[str, tuple[float, float]] = {
    "GE_MEDICAL_AND_BQML": (52, 152022720 * 2 ** -(4281 / 6586.2)),
    "SIEMENS": (67, 374e6 * 2 ** -(8264 / 6586.2)),
    "BQML_AC_DT_lessThan_S_DT_SIEMENS": (65, 225e6 * 2 ** -(3255 / 6586.2)),
    "CPS_AND_BQML_AC_DT_-_S_DT": (69, 388e6 * 2 ** -(3791.2 / 6586.2)),
    "RADIOPHARM_DATETIME_UNDEFINED": (102, 412e6 * 2 ** -(3871.8 / 6586.2)),
    "PHILIPS_BQML": (64, 126e6 * 2 ** -(3657 / 6586.2)),
    "PHILIPS_CNTS_AND_BQML_SUV": (54, 238e6 * 2 ** -(3956 / 6588)),
}
"""Weight in kg and the dose in Bq that is left at the start of the scan, by hand from the times in each file."""


def _read_headers(path: Path) -> list[Dataset]:
    return [_make_header(each) for each in json.loads(path.read_text())]


def _make_header(values: dict[str, Any]) -> Dataset:
    """Return a PET header with the values of the kit's file."""
    ds, source = Dataset(), Dataset()
    ds.Modality = "PT"
    for keyword, value in values.items():
        if keyword == "PhilipsPETPrivateGroup":
            _add_philips(ds, value)
        else:
            setattr(source if keyword in _OF_THE_TRACER else ds, keyword, value)
    ds.RadiopharmaceuticalInformationSequence = Sequence([source])
    return ds


def _add_philips(ds: Dataset, factors: dict[str, str]) -> None:
    block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
    for element, keyword in ((0x00, "SUVScaleFactor"), (0x09, "ActivityConcentrationScaleFactor")):
        if keyword in factors:
            block.add_new(element, "DS", factors[keyword].strip())


def _read_facts(kit: Path, name: str) -> dict[str, Any]:
    headers = _read_headers(kit / "pet" / "suv-metadata-vendors" / f"{name}-instances.json")
    return acquisition.facts([Frame(ds, 0) for ds in headers])


@pytest.mark.parametrize("name", VENDORS)
def test_the_factor_of_every_vendor_is_the_one_by_hand(name: str, kit: Path) -> None:
    weight_kg, left_bq = VENDORS[name]
    rounding = 3e-3 if "CNTS" in name else 1e-5  # Philips states three digits
    assert _read_facts(kit, name)["suv_bw_per_unit"] == pytest.approx(1000 * weight_kg / left_bq, rel=rounding)


def test_philips_own_factors_agree_with_ours_for_activity(kit: Path) -> None:
    (ds, *_) = _read_headers(kit / "pet" / "suv-metadata-vendors" / "PHILIPS_BQML-instances.json")
    block = ds.private_block(0x7053, "Philips PET Private Group")
    theirs = float(block[0x00].value) / float(block[0x09].value)
    assert acquisition.facts([Frame(ds, 0)])["suv_bw_per_unit"] == pytest.approx(theirs, rel=1e-3)


def test_philips_counts_without_an_activity_factor_have_the_vendors_suv_per_count(kit: Path) -> None:
    assert _read_facts(kit, "PHILIPS_CNTS_AND_SUV")["suv_bw_per_unit"] == 0.000728


def test_a_frame_reference_time_tells_when_a_reconstructed_series_was_scanned(kit: Path) -> None:
    """The series time of the real header is that of the scan; from a later one, the frame reference time leads back."""
    headers = _read_headers(kit / "pet" / "suv-metadata-vendors" / "RADIOPHARM_DATETIME_UNDEFINED-instances.json")
    true_s = acquisition.facts([Frame(ds, 0) for ds in headers])["uptake_s"]
    for ds in headers:
        ds.SeriesTime = "180000"
    assert acquisition.facts([Frame(ds, 0) for ds in headers])["uptake_s"] == pytest.approx(true_s, abs=1.5)


def test_ges_own_scan_time_wins_over_a_reconstructions(kit: Path) -> None:
    (ds, *_) = _read_headers(kit / "pet" / "suv-metadata-vendors" / "GE_MEDICAL_AND_BQML-instances.json")
    ds.SeriesTime, ds.AcquisitionTime = "180000", "100200"
    ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20201217095621.00")
    assert acquisition.facts([Frame(ds, 0)])["uptake_s"] == 4281


def test_without_decay_correction_the_factor_is_that_of_one_frames_mean(kit: Path) -> None:
    headers = _read_headers(kit / "pet" / "suv-metadata-vendors" / "GE_MEDICAL_AND_BQML-instances.json")
    for ds in headers:
        ds.DecayCorrection = "NONE"
        ds.CorrectedImage.remove("DECY")
    found = acquisition.facts([Frame(ds, 0) for ds in headers])["suv_bw_per_unit"]
    middle = 52e3 / (152022720 * 2 ** -((4281 + 60) / 6586.2))
    assert found == pytest.approx(middle, rel=1e-5)
    headers[1].AcquisitionTime = "095921"
    assert "no single one" in acquisition.facts([Frame(ds, 0) for ds in headers])["suv_unknown_because"]


@pytest.mark.slow
def test_the_whole_body_series_reproduces_the_independent_suv_volume(kit: Path, tmp_path: Path) -> None:
    folder = kit / "pet" / "tcia-sts001-fdg-wholebody"
    raw = volumes.read(unpack_series(folder / "raw_bqml.tar.xz", tmp_path / "raw"))
    crop = volumes.read(unpack_series(folder / "derived_suv_crop.tar.xz", tmp_path / "crop"))
    assert raw.facts["suv_bw_per_unit"] == pytest.approx(2.42903e-4, rel=1e-5)
    assert (crop.volume.unit, crop.facts["suv_bw_per_unit"]) == ("g/ml", 1.0)
    same = np.linalg.solve(raw.volume.grid.affine_mm, crop.volume.grid.affine_mm @ [0, 0, 0, 1])
    i, j, k = (round(each) for each in same[:3])
    n_k, n_j, n_i = crop.volume.grid.shape
    ours = raw.facts["suv_bw_per_unit"] * raw.volume.data[k : k + n_k, j : j + n_j, i : i + n_i]
    theirs = crop.volume.data
    sure = theirs > 1  # below, their rounding to whole stored values is more than a thousandth
    assert int(sure.sum()) > 1000
    assert np.abs(ours[sure] / theirs[sure] - 1).max() < 1e-3
    assert np.abs(ours - theirs).max() < 1e-3
    assert float(np.median(ours[sure] / theirs[sure])) == pytest.approx(1, abs=1e-5)


def test_admin_takes_the_dose_as_injected_and_start_what_is_left() -> None:
    start, admin = (
        suv.compute_factor(replace(STATED, decay_correction=correction)).bw_per_unit
        for correction in ("START", "ADMIN")
    )
    assert admin == pytest.approx(70e3 / 370e6)
    assert start == pytest.approx(70e3 / 370e6 * 2 ** (3600 / 6586.2))


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "no weight": ({"weight_kg": None}, r"Weight \(0010,1030\) is not stated"),
    "weight in grams": ({"weight_kg": 70e3}, "no weight of a person"),
    "several weights": ({"differing": frozenset({"PatientWeight"})}, r"differ in Patient's Weight \(0010,1030\)"),
    "weight in pounds": ({"weight_kg": 264.0, "size_m": 1.6}, r"264 kg and Patient's Size .* of 1\.6 m are not of one"),
    "weight in stones": ({"weight_kg": 11.0, "size_m": 1.75}, "or not in these units"),
    "no dose": ({"dose_bq": None}, r"Dose \(0018,1074\) is not stated or zero"),
    "dose in MBq": ({"dose_bq": 370.0}, "may have been written in MBq"),
    "dose in kBq": ({"dose_bq": 370e3}, "may have been written in MBq or kBq"),
    "dose in mBq": ({"dose_bq": 370e9}, "more than any person gets"),
    "several doses": ({"differing": frozenset({"RadionuclideTotalDose"})}, "differ in Radionuclide Total Dose"),
    "several tracers": ({"differing": frozenset({suv.SOURCES})}, r"Sequence \(0054,0016\) has several items"),
    "no half-life": ({"half_life_s": None}, "Half Life"),
    "half-life in minutes": ({"half_life_s": 109.77}, "109.77 s is that of no radionuclide of PET"),
    "half-life of another": ({"nuclide": ("C-105A1", "SRT")}, "6586.2 s, but .* says Carbon-11"),
    "several half-lives": ({"differing": frozenset({"RadionuclideHalfLife"})}, "differ in Radionuclide Half Life"),
    "several nuclides": ({"differing": frozenset({"RadionuclideCodeSequence"})}, r"\(0054,0300\)"),
    "no times": ({"decay_s": None}, "times of injection and scan are not stated"),
    "times that say two things": ({"decay_s": None, "time_fault": "they contradict"}, "they contradict"),
    "injected after the scan": ({"decay_s": -300.0}, r"injection is 5\.0 minutes after the scan"),
    "injected days before": ({"decay_s": 2 * 86400.0}, r"48\.0 hours \(26 half-lives\) before"),
    "no attenuation correction": ({"corrections": ("DECY",)}, "attenuation"),
    "no corrections stated": ({"corrections": None}, "attenuation"),
    "attenuation at odds": ({"attenuation_method": "NONE"}, r"Method \(0054,1101\) is NONE"),
    "decay at odds": ({"corrections": ("ATTN",)}, "has no DECY"),
    "no decay at odds": ({"decay_correction": "NONE"}, "is NONE, but Corrected Image .* has DECY"),
    "no decay correction": ({"decay_correction": ""}, "Decay Correction .* not stated"),
    "plain counts": ({"units": "CNTS"}, "CNTS without Philips' private factors"),
    "counts without attenuation": (
        {"units": "CNTS", "suv_per_count": 5e-4, "bq_ml_per_count": 2.0, "corrections": ("DECY",)}, "attenuation"
    ),
    "Philips at odds": (
        {"units": "CNTS", "suv_per_count": 5.64e-4, "bq_ml_per_count": 2.0}, "make 0.000282 .* make 0.0002763"
    ),
    "Philips at odds in Bq/ml": (
        {"suv_per_count": 5.64e-4, "bq_ml_per_count": 2.0}, "make 0.000282 .* make 0.0002763"
    ),
    "Philips several": (
        {"units": "CNTS", "suv_per_count": 5e-4, "differing": frozenset({"(7053,1000)"})}, "differ in Philips' factors"
    ),
    "Philips of a weight in grams": (
        {"units": "CNTS", "suv_per_count": 5e-4, "weight_kg": 7e4}, "no weight of a person"
    ),
    "a perfusion map": ({"units": "MLMINML"}, "MLMINML, not an activity"),
    "no units": ({"units": ""}, "not stated"),
    "lean body mass": ({"units": "GML", "suv_type": "LBM"}, "SUV by LBM"),
    "no measure of the body": ({"units": "GML"}, "nothing says by which measure"),
    "SUV without attenuation": ({"units": "GML", "suv_type": "BW", "corrections": ("DECY",)}, "attenuation"),
}  # fmt: skip


@pytest.mark.parametrize("what", REASONS)
def test_what_is_missing_or_impossible_gives_a_reason_and_no_factor(what: str) -> None:
    changes, words = REASONS[what]
    found = suv.compute_factor(replace(STATED, **changes))
    assert found.bw_per_unit is None
    with pytest.raises(ValueError, match=words):
        raise ValueError(found.unknown_because)


def test_philips_factors_stand_in_where_a_header_leaves_something_out() -> None:
    philips = replace(STATED, units="CNTS", suv_per_count=5.6e-4, bq_ml_per_count=2.0)
    left_out: list[dict[str, Any]] = [{"dose_bq": None}, {"weight_kg": None}, {"half_life_s": None}, {"decay_s": None}]
    for missing in left_out:
        assert suv.compute_factor(replace(philips, **missing)).bw_per_unit == 2.8e-4


def test_a_size_in_centimetres_says_nothing_of_the_weight() -> None:
    assert suv.compute_factor(replace(STATED, size_m=175.0)) == suv.compute_factor(STATED)


def test_facts_have_the_factor_or_the_reason_and_never_a_date(kit: Path) -> None:
    (ds, *_) = _read_headers(kit / "pet" / "suv-metadata-vendors" / "SIEMENS-instances.json")
    known = acquisition.facts([Frame(ds, 0)])
    assert "suv_unknown_because" not in known
    source = ds.RadiopharmaceuticalInformationSequence[0]
    source.RadiopharmaceuticalStartDateTime, source.RadiopharmaceuticalStartTime = "20201217115900", "115900"
    unknown = acquisition.facts([Frame(ds, 0)])
    assert "suv_bw_per_unit" not in unknown
    assert "uptake_s" not in unknown
    assert "after the scan" in unknown["suv_unknown_because"]
    assert "2020" not in json.dumps([known, unknown])
