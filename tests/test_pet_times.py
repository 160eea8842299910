"""Times of injection and scan in every zone and form that headers use: one reading, or a refusal with the reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicomnode.datasets.moments import Moment, combine, parse_datetime, parse_offset, seconds_between
from dicomnode.reading import acquisition
from dicomnode.reading.frames import Frame
from tests.pet_series import DOSE_BQ, FACTOR, WEIGHT_KG

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # the tests write invalid values

Edit = Callable[[list[Dataset]], None]


def _make_header() -> Dataset:
    """Return the header of a scan at 13:00, one hour after the injection."""
    ds, source = Dataset(), Dataset()
    ds.Modality, ds.Units, ds.DecayCorrection, ds.CorrectedImage = "PT", "BQML", "START", ["ATTN", "DECY"]
    ds.SeriesDate = ds.AcquisitionDate = "20260101"
    ds.SeriesTime = ds.AcquisitionTime = "130000"
    ds.ActualFrameDuration, ds.FrameReferenceTime, ds.PatientWeight = "600000", "0", f"{WEIGHT_KG}"
    source.RadionuclideTotalDose, source.RadionuclideHalfLife = f"{DOSE_BQ:.0f}", "6586.2"
    source.RadiopharmaceuticalStartTime = "120000"
    ds.RadiopharmaceuticalInformationSequence = [source]
    return ds


def _read_facts(edit: Edit, slices: int = 3) -> dict[str, Any]:
    headers = [_make_header() for _ in range(slices)]
    edit(headers)
    return acquisition.facts([Frame(ds, 0) for ds in headers])


def _set(**values: Any) -> Edit:
    """Return an edit of all slices; None deletes. Attributes of the tracer go into its item."""

    def edit(headers: list[Dataset]) -> None:
        for ds in headers:
            _set_values(ds, values)

    return edit


def _set_values(ds: Dataset, values: dict[str, Any]) -> None:
    for keyword, value in values.items():
        place = ds.RadiopharmaceuticalInformationSequence[0] if keyword.startswith("Radio") else ds
        if value is None:
            delattr(place, keyword)
        else:
            setattr(place, keyword, value)


def _set_one(at: int, **values: Any) -> Edit:
    return lambda headers: _set_values(headers[at], values)


def _set_ge_moment(moment: str, **values: Any) -> Edit:
    def edit(headers: list[Dataset]) -> None:
        for ds in headers:
            _set_values(ds, values)
            ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", moment)

    return edit


def _set_beds(*beds: dict[str, Any], **values: Any) -> Edit:
    """Return an edit that makes each slice another bed position; ``values`` are set on all."""

    def edit(headers: list[Dataset]) -> None:
        for ds, bed in zip(headers, beds, strict=True):
            _set_values(ds, values | bed)

    return edit


DT, TM = "RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalStartTime"
BY_DATE: dict[str, Any] = {TM: None}
LATE: dict[str, Any] = {"SeriesTime": "180000"}

ONE_HOUR: dict[str, Edit] = {
    "time alone": _set(),
    "date and time": _set(**{DT: "20260101120000"}),
    "UTC, east": _set(**{DT: "20260101110000+0000", "TimezoneOffsetFromUTC": "+0100"}),
    "UTC, west": _set(**{DT: "20260101170000+0000", "TimezoneOffsetFromUTC": "-0500"}),
    "another zone": _set(**{DT: "20260101163000+0530", "TimezoneOffsetFromUTC": "+0100"}),
    "same zone in both": _set(**{DT: "20260101120000-0500", "TimezoneOffsetFromUTC": "-0500"}),
    "date and time in the zone of the header": _set(**{DT: "20260101120000", "TimezoneOffsetFromUTC": "+0100"}),
    "another zone and day": _set(**{
        DT: "20260101233000+0000", TM: "003000", "TimezoneOffsetFromUTC": "+0100", "SeriesDate": "20260102",
        "AcquisitionDate": "20260102", "SeriesTime": "013000", "AcquisitionTime": "013000",
    }),
    "a header's zone that nobody needs": _set(TimezoneOffsetFromUTC="+0100"),
    "an unreadable zone that nobody needs": _set(TimezoneOffsetFromUTC="CET"),
    "over midnight, time alone": _set(**{
        TM: "233000", "SeriesDate": "20260102", "AcquisitionDate": "20260102", "SeriesTime": "003000",
        "AcquisitionTime": "003000",
    }),
    "over midnight in the scan": _set_beds(
        {"AcquisitionTime": "235900"}, {"AcquisitionDate": "20260102", "AcquisitionTime": "000500"},
        {"AcquisitionDate": "20260102", "AcquisitionTime": "001000"}, SeriesTime="235900", **{TM: "225900"},
    ),
    "fractions": _set(**{
        DT: "20260101120000.500000", TM: "120000.5", "SeriesTime": "130000.50", "AcquisitionTime": "130000.5"
    }),
    "minutes alone": _set(**{TM: "1200", "SeriesTime": "1300"}),
    "seconds left out of one": _set(**{DT: "202601011200", TM: "120040"}),
    "series time after the slices": _set(**LATE),
    "series time missing": _set(SeriesTime=None),
    "GE's own time": _set_ge_moment("20260101130000.00", **LATE, AcquisitionTime="130500"),
    "GE's own time in UTC": _set_ge_moment(
        "20260101120000.00+0000", **LATE, AcquisitionTime="130500", TimezoneOffsetFromUTC="+0100"
    ),
    "later beds": _set_beds({}, {"AcquisitionTime": "131000"}, {"AcquisitionTime": "132000"}),
    "later beds, GE's reference times, late series": _set_beds(
        {"FrameReferenceTime": "1200000"}, {"FrameReferenceTime": "600000"}, {"FrameReferenceTime": "0"}, **LATE
    ),
    "reference times of means, late series": _set_beds(
        {"AcquisitionTime": "132000", "FrameReferenceTime": "1498422"},
        {"AcquisitionTime": "131000", "FrameReferenceTime": "898422"},
        {"AcquisitionTime": "130000", "FrameReferenceTime": "298422"}, **LATE,
    ),
    "Acquisition DateTime": _set(AcquisitionDate=None, AcquisitionTime=None, AcquisitionDateTime="20260101130000"),
    "Acquisition DateTime in UTC": _set(
        AcquisitionTime="", AcquisitionDateTime="20260101120000+0000", TimezoneOffsetFromUTC="+0100"
    ),
    "decay correction stated as its moment too": _set(DecayCorrectionDateTime="20260101130000"),
    "what nobody needs is impossible": _set(**{DT: "20260101120000", TM: "126000"}),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_HOUR)
def test_one_hour_is_one_hour_however_it_is_stated(case: str) -> None:
    found = _read_facts(ONE_HOUR[case])
    assert "suv_unknown_because" not in found
    assert found["uptake_s"] == pytest.approx(3600, abs=0.01)
    assert found["suv_bw_per_unit"] == pytest.approx(FACTOR, rel=1e-5) == pytest.approx(0.000292127, rel=1e-5)


MIDNIGHT = {"SeriesTime": "000000", "AcquisitionTime": "000000", TM: "000000"}
NOT_CORRECTED = {"DecayCorrection": "NONE", "CorrectedImage": ["ATTN"]}
REASONS: dict[str, tuple[Edit, str]] = {
    "a zone and no zone of the header": (_set(**{DT: "20260101110000+0000"}), r"offset from UTC; .*\(0008,0201\)"),
    "a zone and an unreadable one": (
        _set(**{DT: "20260101110000+0000", "TimezoneOffsetFromUTC": "CET"}), r"\(0008,0201\), .*cannot be read"
    ),
    "zones of slices": (
        _set_beds(*({"TimezoneOffsetFromUTC": zone} for zone in ("+0100", "+0200", "+0100"))),
        r"slices differ in Timezone Offset From UTC \(0008,0201\)",
    ),
    "GE's own time in UTC": (_set_ge_moment("20260101120000+0000", **LATE), r"\(0008,0201\)"),
    "date and time at odds": (_set(**{DT: "20260101110000"}), "contradict each other"),
    "date and time at odds in their zones": (
        _set(**{DT: "20260101120000+0000", "TimezoneOffsetFromUTC": "+0100"}), "contradict each other"
    ),
    "a date alone": (_set(**{DT: "20260101"}), "no date with a time of day"),
    "24 o'clock": (_set(**{TM: "240000"}), r"Start Time \(0018,1072\) is no time of day"),
    "second 60": (_set(**{TM: "120060"}), "is no time of day"),
    "colons": (_set(**{TM: "12:00:00"}), "is no time of day"),
    "the 30th of February": (_set(**{DT: "20260230120000"}), "no date with a time of day"),
    "a zone beyond all": (_set(**{DT: "20260101120000+1900"}), "no date with a time of day"),
    "hours alone": (_set(**{TM: "12"}), "leave out minutes or seconds"),
    "minutes alone of a short half-life": (
        _set(**{TM: "1255", "RadionuclideHalfLife": "122.24"}), "leave out minutes or seconds"
    ),
    "no injection": (_set(**{TM: None}), "times of injection and scan are not stated"),
    "no time of the slices": (_set(AcquisitionTime=""), "are not stated for every slice"),
    "no time of one slice": (_set_one(1, AcquisitionTime=""), "are not stated for every slice"),
    "an impossible time of one slice": (_set_one(1, AcquisitionTime="250000"), "are not stated for every slice"),
    "blanked": (_set(**MIDNIGHT), "blanked"),
    "dates shifted apart": (_set(**{DT: "20251201120000"}), "half-lives. before the scan"),
    "series shifted apart": (_set(SeriesDate="20251231"), "more than 6 hours before its first slice"),
    "injected after the scan": (_set(**{DT: "20260101140000", TM: "140000"}), "60.0 minutes after the scan"),
    "injected after the scan, time alone": (_set(**{TM: "140000"}), "23.0 hours .* before the scan"),
    "a long half-life without a day": (_set(RadionuclideHalfLife="45723"), "may be of several days"),
    "injections of slices": (_set_one(1, **{TM: "120100"}), r"differ in Radiopharmaceutical Start Time \(0018,1072\)"),
    "injection dates of slices": (_set_one(1, **{DT: "20260101120000"}), r"Start DateTime \(0018,1078\)"),
    "series times of slices": (_set_one(1, SeriesTime="130100"), r"differ in Series Time \(0008,0031\)"),
    "reference times at odds, late series": (
        _set_beds(*({"FrameReferenceTime": time} for time in ("300000", "900000", "900000")), **LATE),
        r"Frame Reference Time \(0054,1300\) do not lead to one start",
    ),
    "GE's later bed alone, late series": (
        _set(**LATE, FrameReferenceTime="1200000", Manufacturer="GE MEDICAL SYSTEMS"), "do not lead to one start"
    ),
    "decay correction to another moment": (
        _set(DecayCorrectionDateTime="20260101120000"), r"\(0018,9701\) is not the start of the scan"
    ),
    "decay correction to no moment": (
        _set(DecayCorrectionDateTime="2026"), r"\(0018,9701\) is not the start of the scan"
    ),
    "an impossible Series Time": (_set(SeriesTime="256000"), r"Series Time \(0008,0031\) is stated, but is no date"),
    "two Series Times": (_set(SeriesTime=["130000", "133000"]), r"Series Time \(0008,0031\) is stated, but is no date"),
    "a Series Date with dots": (_set(SeriesDate="2026.01.01"), r"Series Date \(0008,0021\) or .* is no date"),
    "a year that stands for none": (
        _set(**{TM: "233000", "SeriesDate": "00010101", "AcquisitionDate": "00010101"}), "not stated for every slice"
    ),
    "the last day of all, in its zone": (
        _set(**{DT: "99991231233000-0500", TM: None, "TimezoneOffsetFromUTC": "+0100"}), "no date with a time of day"
    ),
    "a reference time of an age, late series": (
        _set(FrameReferenceTime="1e20", **LATE), r"Frame Reference Time \(0054,1300\) do not lead to one start"
    ),
    "no decay correction, a frame of an age": (
        _set(ActualFrameDuration="1e300", **NOT_CORRECTED), "give no single one"
    ),
    "no decay correction, several beds": (
        _set_beds({}, {"AcquisitionTime": "131000"}, {"AcquisitionTime": "131000"}, **NOT_CORRECTED),
        "give no single one",
    ),
    "no decay correction, GE's several beds": (
        _set_beds({}, {"FrameReferenceTime": "600000"}, {"FrameReferenceTime": "600000"}, **NOT_CORRECTED),
        "give no single one",
    ),
    "no decay correction, several durations": (
        _set_beds({}, {}, {"ActualFrameDuration": "300000"}, **NOT_CORRECTED), "give no single one"
    ),
    "no decay correction, a later frame or a later bed": (
        _set(FrameReferenceTime="1200000", **NOT_CORRECTED), "give no single one"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_times_with_two_readings_or_none_give_a_reason(case: str) -> None:
    edit, words = REASONS[case]
    found = _read_facts(edit)
    assert "suv_bw_per_unit" not in found
    with pytest.raises(ValueError, match=words):
        raise ValueError(found["suv_unknown_because"])


def test_a_long_half_life_with_its_day_has_an_suv() -> None:
    edit = _set(**{DT: "20251231130000", TM: "130000", "RadionuclideHalfLife": "45723"})
    assert _read_facts(edit)["suv_bw_per_unit"] == pytest.approx(70e3 / 350e6 * 2 ** (86400 / 45723))


@pytest.mark.parametrize("case", ["a zone and no zone of the header", "blanked", "no injection", "hours alone"])
def test_decay_corrected_to_the_injection_no_time_matters(case: str) -> None:
    edit, _ = REASONS[case]

    def both(headers: list[Dataset]) -> None:
        edit(headers)
        _set(DecayCorrection="ADMIN")(headers)

    found = _read_facts(both)
    assert found["suv_bw_per_unit"] == pytest.approx(2e-4)


def test_without_decay_correction_a_frame_has_the_activity_of_its_mean() -> None:
    found = _read_facts(_set(FrameReferenceTime="1498422", AcquisitionTime="132000", **NOT_CORRECTED))
    assert found["suv_bw_per_unit"] == pytest.approx(2e-4 * 2 ** ((3600 + 1498.422) / 6586.2), rel=1e-6)
    assert found["uptake_s"] == 3600


@pytest.mark.parametrize(
    ("text", "offset"),
    [("+0100", 60), ("-0500", -300), ("+1400", 840), ("+0545", 345), ("+1500", None), ("+0160", None), ("0100", None),
     ("", None), (None, None)],
)  # fmt: skip
def test_an_offset_is_read_or_not(text: str | None, offset: int | None) -> None:
    assert parse_offset(text) == (None if offset is None else timedelta(minutes=offset))


def test_moments_know_their_precision_and_zone() -> None:
    assert [combine("20260101", text, None) is None for text in ("", "1", "12345", "126000", "12.5")] == [True] * 5
    precise = [combine("20260101", text, None) for text in ("12", "1200", "120000", "120000.1")]
    assert [each.precision_s for each in precise if each] == [3600, 60, 0, 0]
    zoned, plain = (parse_datetime(text, None) for text in ("20260101120000-0130", "20260101120000"))
    assert isinstance(zoned, Moment)
    assert isinstance(plain, Moment)
    assert (seconds_between(zoned, plain), zoned.offset) == (None, timedelta(minutes=-90))
