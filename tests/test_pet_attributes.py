"""Effect of each attribute of a classic PET series: on the values, on the SUV, a refusal, or none (docs/reading.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused
from dicomnode.reading import volumes
from pipelines.contract import Grid
from tests.pet_series import DOSE_BQ, FACTOR, HALF_LIFE_S, write_pet

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # the tests write invalid values

GRID = Grid((4, 6, 5), np.diag([2.0, 2.0, 3.0, 1.0]))
BQ_ML = np.random.default_rng(5).uniform(0, 3e4, GRID.shape).astype(np.float32)
Edit = Callable[[int, Dataset], None]


def _read(tmp_path: Path, edit: Edit) -> volumes.Series:
    return volumes.read(write_pet(tmp_path / "pet", GRID, BQ_ML, edit=edit))


def _set_values(ds: Dataset, values: dict[str, Any]) -> None:
    """Set attributes, or delete those of None; attributes of the tracer go into its item."""
    for keyword, value in values.items():
        of_the_tracer = keyword.startswith("Radio") and keyword != "RadiopharmaceuticalInformationSequence"
        place = ds.RadiopharmaceuticalInformationSequence[0] if of_the_tracer else ds
        if value is None:
            delattr(place, keyword)
        else:
            setattr(place, keyword, value)


def _set(**values: Any) -> Edit:
    return lambda _, ds: _set_values(ds, values)


def _set_one(**values: Any) -> Edit:
    """Return an edit that sets attributes on one of the four slices."""
    return lambda k, ds: _set_values(ds, values if k == 2 else {})


def _set_philips(*slices: int, suv: float = 2 * FACTOR, bq_ml: float = 2.0) -> Edit:
    """Return an edit to counts with Philips' factors on some slices."""

    def edit(k: int, ds: Dataset) -> None:
        ds.Units = "CNTS"
        if k in slices:
            block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
            block.add_new(0x00, "DS", f"{suv:.8g}")
            block.add_new(0x09, "DS", f"{bq_ml:.8g}")

    return edit


def _add_tracer(_: int, ds: Dataset) -> None:
    other = Dataset()
    other.RadionuclideTotalDose, other.RadionuclideHalfLife = "100000000", "6586.2"
    ds.RadiopharmaceuticalInformationSequence.append(other)


def _code(value: str, scheme: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "something"
    return item


def _add_table(_: int, ds: Dataset) -> None:
    item = Dataset()
    item.ModalityLUTType = "US"
    item.add_new(0x00283002, "US", [2, 0, 16])
    item.add_new(0x00283006, "US", [0, 1])
    ds.ModalityLUTSequence = [item]


def test_the_example_is_read_as_its_closed_form_says(tmp_path: Path) -> None:
    series = _read(tmp_path, _set())
    np.testing.assert_allclose(series.volume.data, BQ_ML, atol=0.5)
    assert series.volume.unit == "Bq/ml"
    assert series.facts["suv_bw_per_unit"] == pytest.approx(1000 * 70 / (DOSE_BQ * 2 ** (-3600 / HALF_LIFE_S)))


REFUSALS: dict[str, tuple[Edit, str]] = {
    "Rescale Slope missing": (_set(RescaleSlope=None), r"without a readable Rescale Slope \(0028,1053\)"),
    "Rescale Slope empty": (_set(RescaleSlope=""), r"without a readable Rescale Slope"),
    "Rescale Slope missing on one slice": (_set_one(RescaleSlope=None), r"Rescale Slope \(0028,1053\)"),
    "Rescale Slope 0": (_set(RescaleSlope="0"), "Rescale Slope .* of PET is 0; it has to be above 0"),
    "Rescale Slope below 0": (_set_one(RescaleSlope="-1"), "Rescale Slope .* of PET is -1"),
    "Rescale Intercept": (_set_one(RescaleIntercept="-100"), r"Intercept \(0028,1052\) of PET is -100; it has to be 0"),
    "Modality LUT": (_add_table, r"Modality LUT Sequence \(0028,3000\)"),
    "Units missing": (_set(Units=None), r"PET without Units \(0054,1001\)"),
    "Units empty": (_set(Units=""), r"PET without Units \(0054,1001\)"),
    "Units unknown": (_set(Units="KBQML"), r"Units \(0054,1001\) of PET are 'KBQML', which .* does not define"),
    "Units of slices": (_set_one(Units="GML"), r"Units \(0054,1001\).*BQML, GML"),
    "Units of one UCUM code": (_set_one(Units="PROPCNTS"), r"Units \(0054,1001\)"),
    "SUV Type of slices": (
        lambda k, ds: _set(Units="GML", SUVType="LBM" if k else "BW")(k, ds), r"SUV Type \(0054,1006\): BW, LBM"
    ),
    "Philips' factors on some slices": (_set_philips(0, 1), "several units"),
    "Decay Correction of slices": (_set_one(DecayCorrection="ADMIN"), r"Decay Correction \(0054,1102\).*ADMIN, START"),
    "Corrected Image of slices": (_set_one(CorrectedImage=["DECY", "ATTN"]), r"Corrected Image \(0028,0051\)"),
    "Counts Source transmission": (_set(CountsSource="TRANSMISSION"), r"Counts Source \(0054,1002\) is TRANSMISSION"),
    "Counts Source of slices": (_set_one(CountsSource="TRANSMISSION"), r"Counts Source \(0054,1002\)"),
    "Series Type reprojection": (_set(SeriesType=["STATIC", "REPROJECTION"]), r"Series Type \(0054,1000\) is REPROJ"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_leaves_the_values_open_is_refused_by_name(case: str, tmp_path: Path) -> None:
    edit, words = REFUSALS[case]
    with pytest.raises(InputRefused, match=words):
        _read(tmp_path, edit)


REASONS: dict[str, tuple[Edit, str]] = {
    "two tracers": (_add_tracer, r"Information Sequence \(0054,0016\) has several items"),
    "two tracers on one slice": (lambda k, ds: _add_tracer(k, ds) if k == 2 else None, r"\(0054,0016\)"),
    "no tracer": (_set(RadiopharmaceuticalInformationSequence=[]), r"Dose \(0018,1074\) is not stated"),
    "dose of slices": (_set_one(RadionuclideTotalDose="340000000"), r"differ in Radionuclide Total Dose \(0018,1074\)"),
    "dose in MBq": (_set(RadionuclideTotalDose="350"), r"\(0018,1074\) of 350 Bq is none of a person"),
    "dose in kBq": (_set(RadionuclideTotalDose="350000"), r"\(0018,1074\) of 350000 Bq is none of a person"),
    "half-life of slices": (_set_one(RadionuclideHalfLife="6588"), r"differ in Radionuclide Half Life \(0018,1075\)"),
    "half-life in minutes": (_set(RadionuclideHalfLife="109.77"), r"\(0018,1075\) of 109.77 s is that of no"),
    "half-life of another nuclide": (
        _set(RadionuclideCodeSequence=[_code("C-105A1", "SRT")]), r"\(0054,0300\) says Carbon-11, whose half-life"
    ),
    "nuclide of slices": (
        _set_one(RadionuclideCodeSequence=[_code("C-111A1", "SRT")]), r"differ in Radionuclide Code Sequence \(0054,03"
    ),
    "weight missing": (_set(PatientWeight=None), r"Patient's Weight \(0010,1030\) is not stated"),
    "weight in grams": (_set(PatientWeight="70000"), r"\(0010,1030\) of 70000 kg is no weight"),
    "weight in pounds": (
        _set(PatientWeight="264", PatientSize="1.6"), r"\(0010,1030\) of 264 kg and .* \(0010,1020\) of 1.6 m"
    ),
    "Corrected Image missing": (_set(CorrectedImage=None), r"Corrected Image \(0028,0051\) does not say"),
    "Corrected Image without ATTN": (_set(CorrectedImage=["DECY"]), r"Corrected Image \(0028,0051\) does not say"),
    "Corrected Image without DECY": (_set(CorrectedImage=["ATTN"]), r"\(0028,0051\) has no DECY"),
    "Attenuation Correction Method": (_set(AttenuationCorrectionMethod="None"), r"Method \(0054,1101\) is NONE"),
    "Attenuation Correction Method of slices": (
        _set_one(AttenuationCorrectionMethod="CT"), r"\(0054,1101\) is NONE, or not the same for all slices"
    ),
    "Decay Correction missing": (_set(DecayCorrection=None), r"Decay Correction \(0054,1102\) is not stated"),
    "Decay Correction unknown": (_set(DecayCorrection="SCAN"), r"Decay Correction \(0054,1102\) is SCAN"),
    "SUV by lean body mass": (_set(Units="GML", SUVType="LBM"), r"SUV by LBM \(SUV Type \(0054,1006\)\)"),
    "counts": (_set(Units="CNTS"), r"\(7053,1000\) or \(7053,1009\), not an activity"),
    "Philips' factors of slices": (
        lambda k, ds: _set_philips(k, suv=(2.0 + 0.1 * k) * FACTOR)(k, ds), r"differ in Philips' factors \(7053,1000\)"
    ),
    "Philips' factors at odds": (_set_philips(0, 1, 2, 3, suv=2.2 * FACTOR), r"Philips' factors .* but weight, dose"),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_what_leaves_the_suv_open_gives_a_reason_by_name(case: str, tmp_path: Path) -> None:
    edit, words = REASONS[case]
    found = _read(tmp_path, edit).facts
    assert "suv_bw_per_unit" not in found
    with pytest.raises(ValueError, match=words):
        raise ValueError(found["suv_unknown_because"])


NOTHING: dict[str, Edit] = {
    "Rescale Intercept missing": _set(RescaleIntercept=None),
    "Counts Source": _set(CountsSource="EMISSION"),
    "Decay Factor": _set(DecayFactor="1.15"),
    "Dose Calibration Factor": _set(DoseCalibrationFactor="164"),
    "Slice Sensitivity Factor": _set_one(SliceSensitivityFactor="3.5"),
    "Scatter Fraction Factor": _set_one(ScatterFractionFactor="0.3"),
    "Dead Time Factor": _set_one(DeadTimeFactor="1.2"),
    "counts accumulated": _set_one(PrimaryPromptsCountsAccumulated="10", SecondaryCountsAccumulated=["3"]),
    "Image Index and numbers of slices": _set(ImageIndex=7, NumberOfSlices=3, NumberOfTimeSlices=2),
    "methods": _set(RandomsCorrectionMethod="DLYD", ScatterCorrectionMethod="model", ReconstructionMethod="OSEM",
                    ConvolutionKernel="none", AttenuationCorrectionMethod="CT-derived mu-map"),
    "field of view": _set(ReconstructionDiameter="600", FieldOfViewShape="CYLINDRICAL RING", GantryDetectorTilt="5"),
    "detector": _set(AxialMash=["3", "2"], TransverseMash="2", CoincidenceWindowWidth="5", CollimatorType="NONE"),
    "acceptance and elements": _set(AxialAcceptance="24", DetectorElementSize=["4", "4"], ScanArc="360"),
    "energy windows": _set(EnergyWindowRangeSequence=[Dataset()], EnergyWindowLowerLimit="435"),
    "drug of an intervention": _set(InterventionSequence=[Dataset()], InterventionDrugName="FUROSEMIDE"),
    "conditions": _set(AcquisitionStartCondition="MANU", AcquisitionTerminationCondition="TIME"),
    "gating flags": _set(BeatRejectionFlag="N", HeartRate="60", NominalInterval="1000", LowRRValue="900"),
    "volume, route and end of the injection": _set(
        RadiopharmaceuticalVolume="5", RadiopharmaceuticalRoute="IV", RadiopharmaceuticalStopTime="121000"
    ),
    "SUV Type of an activity": _set(SUVType="LBM"),
    "order of the corrections": _set_one(CorrectedImage=["NORM", "RAN", "SCAT", "ATTN", "DECY"]),
    "size in centimetres": _set(PatientSize="175"),
    "body mass index": _set(PatientBodyMassIndex="50"),
    "code of the nuclide": _set(RadionuclideCodeSequence=[_code("77004003", "SCT")]),
    "old code of the nuclide": _set(RadionuclideCodeSequence=[_code("C-111A1", "SNM3")]),
    "code of an unknown nuclide": _set(RadionuclideCodeSequence=[_code("X", "99LOCAL")]),
    "half-life rounded": _set(RadionuclideHalfLife="6586.2001953125"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING)
def test_what_changes_nothing_is_ignored(case: str, tmp_path: Path) -> None:
    series = _read(tmp_path, NOTHING[case])
    np.testing.assert_allclose(series.volume.data, BQ_ML, atol=0.5)
    assert series.facts["suv_bw_per_unit"] == pytest.approx(FACTOR)


@pytest.mark.parametrize(
    ("case", "fact"),
    [("two tracers", "dose_bq"), ("dose of slices", "dose_bq"), ("half-life of slices", "half_life_s")],
)
def test_what_is_not_one_is_no_fact(case: str, fact: str, tmp_path: Path) -> None:
    assert fact not in _read(tmp_path, REASONS[case][0]).facts


def test_two_weights_are_refused_and_one_that_some_slices_lack_gives_a_reason(tmp_path: Path) -> None:
    with pytest.raises(
        InputRefused, match=r"Patient's Weight \(0010,1030\) differs among the slices; a volume has one"
    ):
        _read(tmp_path / "two", _set_one(PatientWeight="71"))
    found = _read(tmp_path / "some", _set_one(PatientWeight=None)).facts
    assert found["suv_unknown_because"] == "the slices differ in Patient's Weight (0010,1030)"


CID_84 = {
    "CNTS": "{counts}", "NONE": "1", "CM2": "cm2", "PCNT": "%", "CPS": "{counts}/s", "BQML": "Bq/ml",
    "MGMINML": "mg/min/ml", "UMOLMINML": "umol/min/ml", "MLMING": "ml/min/g", "MLG": "ml/g", "1CM": "/cm",
    "UMOLML": "umol/ml", "PROPCNTS": "{propcounts}", "PROPCPS": "{propcounts}/s", "MLMINML": "ml/min/ml",
    "MLML": "ml/ml", "GML": "g/ml", "STDDEV": "{standard deviations}", "CM2ML": "cm2/ml",
}  # fmt: skip


@pytest.mark.parametrize(("term", "code"), CID_84.items())
def test_every_unit_of_the_standard_has_its_ucum_code(term: str, code: str, tmp_path: Path) -> None:
    series = _read(tmp_path, _set(Units=term))
    assert (series.volume.unit, series.facts["units"]) == (code, term)
    assert ("suv_bw_per_unit" in series.facts) == (term in ("BQML", "GML"))


def test_philips_factors_that_agree_give_activity_and_suv(tmp_path: Path) -> None:
    series = _read(tmp_path, _set_philips(0, 1, 2, 3))
    assert series.volume.unit == "Bq/ml"
    np.testing.assert_allclose(series.volume.data, 2 * BQ_ML, atol=1)
    assert series.facts["suv_bw_per_unit"] == pytest.approx(FACTOR)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    slopes: dict[int, float] = {}

    def halved(k: int, ds: Dataset) -> None:
        slopes[k] = float(ds.RescaleSlope)
        ds.RescaleSlope = f"{slopes[k] / (k + 1):.9g}"

    data = _read(tmp_path, halved).volume.data
    np.testing.assert_allclose(data * np.arange(1, 5)[:, None, None], BQ_ML, atol=0.5)
    assert len(set(slopes.values())) == 4
