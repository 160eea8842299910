"""The times from which decay is computed: of injection, of scan, and of the moment to which an image is corrected.

A header may state them in several zones and ways, and a later reconstruction, a converter or a de-identifier changes
some of them. What has two readings gives a fault, in words, and no time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from pydicom.dataset import Dataset

from dicomnode.datasets.moments import Moment, combine, in_zone, parse_datetime, parse_offset, seconds_between
from dicomnode.datasets.titles import title
from dicomnode.reading import pet
from dicomnode.reading.frames import Frame
from dicomnode.reading.suv import MOST_HALF_LIVES

__all__ = ["Elapsed", "elapsed_times"]

MOST_SCAN_S = 6 * 3600.0
"""A series whose first slice is later than this after its start has a date or time that was changed."""
SAME_S = 60.0
"""How far two statements of one moment may lie apart: one of them may leave out the seconds."""
SAME_START_S = 1.0
LONGEST_S = 86400.0
"""Longest duration of a frame, and longest time from the start of the scan to one, that a header can mean."""
LEAST_PRECISE = 0.01
"""Largest relative error of the activity that comes from minutes or seconds that are left out."""
_DAY = timedelta(days=1)
_GE = (0x0009, "GEMS_PETD_01", 0x0D)
"""GE's private date and time of the scan, which a reconstruction keeps."""
_ONE_OF_SERIES = ("TimezoneOffsetFromUTC", "SeriesDate", "SeriesTime", "DecayCorrectionDateTime")
_ONE_OF_TRACER = ("RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalStartTime")
_NOT_STATED = ""
_FAULTS = MappingProxyType({
    "times": "without decay correction the slices have to be of one time, and theirs give no single one",
    "zone": "only one of the times of injection and scan has an offset from UTC; "
    f"{title('TimezoneOffsetFromUTC')}, which would tell, is not stated or cannot be read",
    "two": f"{title('RadiopharmaceuticalStartDateTime')} and {title('RadiopharmaceuticalStartTime')} "
    "contradict each other",
    "unreadable": f"{title('RadiopharmaceuticalStartDateTime')} is no date with a time of day",
    "unreadable time": f"{title('RadiopharmaceuticalStartTime')} is no time of day",
    "day": f"{title('RadiopharmaceuticalStartTime')} has no date, and with so long a half-life it may be of "
    "several days",
    "blank": "injection and scan are both stated as midnight: the times were blanked",
    "series": f"{title('SeriesDate')} or {title('SeriesTime')} is stated, but is no date or no time of day",
    "early": "the start of the series lies more than 6 hours before its first slice; one of the times is wrong",
    "spread": f"the Series Time is that of a reconstruction, and the slices' {title('FrameReferenceTime')} do not "
    "lead to one start of the scan",
    "coarse": "the times of injection or scan leave out minutes or seconds that matter for so short a half-life",
    "datetime": f"{title('DecayCorrected')} is YES, but {title('DecayCorrectionDateTime')} is not stated",
    "at odds": f"{title('DecayCorrectionDateTime')} is not the start of the scan, as "
    f"{title('DecayCorrection')} has it",
})  # fmt: skip


@dataclass(frozen=True)
class Elapsed:
    """Seconds from injection to the start of the scan and to the moment of decay correction; None where unknown.

    ``fault`` says why ``decay_s`` is unknown; it is empty where the header only leaves a time out.
    """

    uptake_s: float | None = None
    decay_s: float | None = None
    fault: str = ""


class _Unclear(Exception):
    """A time with two readings or none; names the entry of ``_FAULTS``, or gives the reason itself."""


def elapsed_times(
    frames: Sequence[Frame], source: Dataset, half_life_s: float | None, differing: Collection[str]
) -> Elapsed:
    """Return the seconds from injection to scan and to decay correction, or the reason why they are unknown.

    ``source``: the item of the tracer; ``differing``: its attributes that are not the same on all slices.
    """
    found = Elapsed()
    try:
        _check_one(frames, differing)
        offset = parse_offset(frames[0].get("TimezoneOffsetFromUTC"))
        if pet.decay_correction(frames[0]) == pet.DECAY_TO_DATETIME:
            found = Elapsed(None, _to_datetime_s(frames[0], source, half_life_s, offset))
        start = _scan_start(frames, half_life_s, offset)
        uptake_s = _waited(source, start, half_life_s, offset)
        found = Elapsed(uptake_s, found.decay_s)
        if found.decay_s is None:
            found = Elapsed(uptake_s, uptake_s + _to_reference_s(frames, start, half_life_s, offset))
    except _Unclear as unclear:
        fault = _FAULTS.get(str(unclear), str(unclear)) if found.decay_s is None else ""
        return replace(found, fault=fault)
    return found


def _to_datetime_s(frame: Frame, source: Dataset, half_life_s: float | None, offset: timedelta | None) -> float:
    value = parse_datetime(frame.get("DecayCorrectionDateTime"), offset)
    if value is None:
        raise _Unclear("datetime")
    return _waited(source, value, half_life_s, offset)


def _check_one(frames: Sequence[Frame], differing: Collection[str]) -> None:
    for keyword in _ONE_OF_SERIES:
        if pet.differs(frames, keyword):
            raise _Unclear(f"the slices differ in {title(keyword)}")
    for keyword in _ONE_OF_TRACER:
        if keyword in differing:
            raise _Unclear(f"the slices differ in {title(keyword)}")


def _waited(source: Dataset, start: Moment, half_life_s: float | None, offset: timedelta | None) -> float:
    """Return the seconds from injection to ``start``."""
    injected = _injection(source, offset)
    if injected is None:
        injected = _of_the_day(source, in_zone(start, offset), half_life_s)
    waited_s = _between(injected, start)
    if waited_s == 0 and all(each.local == _midnight(each.local) for each in (injected, start)):
        raise _Unclear("blank")
    precision_s = max(injected.precision_s, start.precision_s)
    if half_life_s and math.log(2) * precision_s / half_life_s > LEAST_PRECISE:
        raise _Unclear("coarse")
    return waited_s


def _injection(source: Dataset, offset: timedelta | None) -> Moment | None:
    """Return what Start DateTime states, unless Start Time says another time of day; None without a DateTime."""
    value = source.get("RadiopharmaceuticalStartDateTime")
    if not value:
        return None
    injected = parse_datetime(value, offset)
    if injected is None:
        raise _Unclear("unreadable")
    here = in_zone(injected, offset)
    clock = here and combine(here.local.strftime("%Y%m%d"), source.get("RadiopharmaceuticalStartTime"), offset)
    if here is not None and clock is not None:
        apart_s = abs((clock.local - here.local).total_seconds())
        if min(apart_s, _DAY.total_seconds() - apart_s) > SAME_S:
            raise _Unclear("two")
    return injected


def _of_the_day(source: Dataset, start: Moment | None, half_life_s: float | None) -> Moment:
    """Return the injection of a Start Time without date: the last before the scan, if an earlier day cannot be."""
    if start is None:
        raise _Unclear("zone")
    value = source.get("RadiopharmaceuticalStartTime")
    if not value:
        raise _Unclear(_NOT_STATED)
    injected = combine(start.local.strftime("%Y%m%d"), value, start.offset)
    if injected is None:
        raise _Unclear("unreadable time")
    if injected.local > start.local:
        injected = replace(injected, local=injected.local - _DAY)
    waited_s = (start.local - injected.local).total_seconds()
    if half_life_s and waited_s + _DAY.total_seconds() <= MOST_HALF_LIVES * half_life_s:
        raise _Unclear("day")
    return injected


def _scan_start(frames: Sequence[Frame], half_life_s: float | None, offset: timedelta | None) -> Moment:
    """Return the moment to which START corrects.

    It is the series' time, unless that lies after the first slice, when it is that of a reconstruction; then GE's own,
    else what the frame reference times tell (QIBA). Of Enhanced PET it is the first frame's.
    """
    acquired = [_acquired(frame, offset) for frame in frames]
    timed = [moment for moment in acquired if moment is not None]
    if not timed or len(timed) < len(acquired):
        raise _Unclear(_NOT_STATED)
    first = min(timed, key=lambda each: _between(timed[0], each))
    if pet.is_enhanced(frames[0]):
        return first
    series = _series_start(frames[0], offset)
    if series is not None and _between(series, first) >= -SAME_START_S:
        if _between(series, first) > MOST_SCAN_S:
            raise _Unclear("early")
        return series
    return _ge_scan(frames[0], offset) or _referenced(frames, timed, first, half_life_s)


def _series_start(frame: Frame, offset: timedelta | None) -> Moment | None:
    """Return Series Date and Time, or None where one of them is not stated."""
    date, time = frame.get("SeriesDate"), frame.get("SeriesTime")
    series = combine(date, time, offset)
    if series is None and date and time:
        raise _Unclear("series")
    return series


def _referenced(frames: Sequence[Frame], timed: Sequence[Moment], first: Moment, half_life_s: float | None) -> Moment:
    """Return the start by Frame Reference Time (0054,1300), or the first slice's time where that tells nothing.

    It is counted from the start to a frame's mean activity; GE counts to the frame's start, so that the first frame's
    is zero and its time the scan's, and gives some series one acquisition time for all frames.
    """
    starts = [_reference(frame, moment, half_life_s) for frame, moment in zip(frames, timed, strict=True)]
    if any(start == moment == first for start, moment in zip(starts, timed, strict=True)):
        return first
    known = [start for start in starts if start is not None]
    if not known:
        return first
    if str(frames[0].get("Manufacturer", "")).upper().startswith("GE"):
        raise _Unclear("spread")
    away = [_between(known[0], start) for start in known]
    if max(away) - min(away) > SAME_S:
        raise _Unclear("spread")
    return known[0]


def _reference(frame: Frame, acquired: Moment, half_life_s: float | None) -> Moment | None:
    """Return the start of the scan by one frame; its own start where it is stated to be the reference."""
    reference_ms, mean_s = frame.number_of("FrameReferenceTime"), _mean_s(frame, half_life_s)
    if reference_ms == 0:
        return acquired
    if reference_ms is None or reference_ms < 0 or mean_s is None:
        return None
    if reference_ms / 1000 > LONGEST_S:
        raise _Unclear("spread")
    return replace(acquired, local=acquired.local + timedelta(seconds=mean_s - reference_ms / 1000))


def _mean_s(frame: Frame, half_life_s: float | None) -> float | None:
    """Return the seconds from a frame's start to its mean activity.

    They are ln(x / (1 - exp(-x))) / lambda with x = lambda duration.
    """
    duration_ms = frame.number_of("ActualFrameDuration") or frame.number_of("FrameAcquisitionDuration") or 0.0
    duration_s = duration_ms / 1000
    if not 0 < duration_s <= LONGEST_S or not half_life_s or half_life_s < 0:
        return None
    rate = math.log(2) / half_life_s
    return math.log(rate * duration_s / -math.expm1(-rate * duration_s)) / rate


def _to_reference_s(
    frames: Sequence[Frame], start: Moment, half_life_s: float | None, offset: timedelta | None
) -> float:
    """Return the seconds from the start of the scan to the moment to which the image is decay-corrected."""
    correction = pet.decay_correction(frames[0])
    if correction == "NONE":
        return _to_mean_s(frames, start, half_life_s, offset)
    text = frames[0].get("DecayCorrectionDateTime")
    if correction == "START" and text:
        value = parse_datetime(text, offset)
        if value is None or abs(_between(start, value)) > SAME_S:
            raise _Unclear("at odds")
    return 0.0


def _to_mean_s(frames: Sequence[Frame], start: Moment, half_life_s: float | None, offset: timedelta | None) -> float:
    """Return the seconds to the mean activity of the frames, which have to be of one time (one bed position)."""
    first, mean_s = _acquired(frames[0], offset), _mean_s(frames[0], half_life_s)
    timing = ("AcquisitionTime", "AcquisitionDate", "FrameAcquisitionDateTime", "FrameReferenceTime")
    if first is None or mean_s is None or any(pet.differs(frames, keyword) for keyword in timing):
        raise _Unclear("times")
    if any(pet.differs(frames, keyword) for keyword in ("ActualFrameDuration", "FrameAcquisitionDuration")):
        raise _Unclear("times")
    after_s = (frames[0].number_of("FrameReferenceTime") or 0.0) / 1000 - mean_s
    if after_s > SAME_S and abs(_between(start, first) - after_s) > SAME_S:
        raise _Unclear("times")
    return _between(start, first) + mean_s


def _acquired(frame: Frame, offset: timedelta | None) -> Moment | None:
    value = combine(frame.get("AcquisitionDate"), frame.get("AcquisitionTime"), offset)
    if value is not None and not pet.is_enhanced(frame):
        return value
    return parse_datetime(frame.get("FrameAcquisitionDateTime") or frame.get("AcquisitionDateTime"), offset)


def _ge_scan(frame: Frame, offset: timedelta | None) -> Moment | None:
    group, creator, element = _GE
    for place in (frame.header, *frame.unassigned()):
        try:
            return parse_datetime(place.private_block(group, creator)[element].value, offset)
        except KeyError:
            continue
    return None


def _between(earlier: Moment, later: Moment) -> float:
    found = seconds_between(earlier, later)
    if found is None:
        raise _Unclear("zone")
    return found


def _midnight(moment: datetime) -> datetime:
    return datetime.combine(moment.date(), datetime.min.time())
