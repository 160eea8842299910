"""What a PET header says of tracer, dose and time: the facts that SUV and a pipeline need, no date among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.reading import suv
from dicomnode.reading.frames import Frame, philips_pet

__all__ = ["facts"]

_GE = (0x0009, "GEMS_PETD_01", 0x0D)
"""GE's private date and time of the scan, which a reconstruction keeps."""
_SAME_MOMENT_S = 1.0


def facts(frames: Sequence[Frame]) -> dict[str, Any]:
    """``tracer``, ``dose_bq``, ``half_life_s``, ``uptake_s`` (injection to start of the scan), ``series_type``, and
    ``suv_bw_per_unit`` or ``suv_unknown_because``; absent where nothing is stated."""
    source = frames[0].item("RadiopharmaceuticalInformationSequence") or Dataset()
    half_life_s = _number(source.get("RadionuclideHalfLife"))
    start = _scan_start(frames, half_life_s)
    uptake_s = _since(_injection(source, start), start)
    likely = uptake_s is not None and 0 <= uptake_s <= suv.MOST_HALF_LIVES * (half_life_s or math.inf)
    found = {
        "tracer": _name(source),
        "dose_bq": _number(source.get("RadionuclideTotalDose")),
        "half_life_s": half_life_s,
        "uptake_s": uptake_s if likely else None,
        "series_type": tuple(map(str, frames[0].get("SeriesType") or ())),
    }
    factor = suv.factor(_stated(frames, found, uptake_s))
    known = {"suv_bw_per_unit": factor.bw_per_unit, "suv_unknown_because": factor.unknown_because}
    return {fact: value for fact, value in (found | known).items() if value}


def _name(source: Dataset) -> str:
    codes = source.get("RadiopharmaceuticalCodeSequence") or []
    return str(codes[0].get("CodeMeaning", "")) if codes else str(source.get("Radiopharmaceutical") or "")


def _stated(frames: Sequence[Frame], found: dict[str, Any], uptake_s: float | None) -> suv.Stated:
    first = frames[0]
    correction = str(first.get("DecayCorrection", ""))
    suv_per_count, bq_ml_per_count = philips_pet(first.header)
    return suv.Stated(
        units=str(first.get("Units", "")),
        suv_type=str(first.get("SUVType", "")),
        decay_correction=correction,
        corrections=tuple(map(str, _listed(first.get("CorrectedImage")))),
        dose_bq=found["dose_bq"],
        half_life_s=found["half_life_s"],
        weight_kg=_number(first.get("PatientWeight")),
        decay_s=_to_frame_s(frames, found["half_life_s"]) if correction == "NONE" else uptake_s,
        suv_per_count=suv_per_count,
        bq_ml_per_count=bq_ml_per_count,
    )


def _scan_start(frames: Sequence[Frame], half_life_s: float | None) -> datetime | None:
    """The moment to which START corrects: the series' time, unless it lies after the first slice, when it is that of a
    reconstruction; then GE's own, else what the frame reference time tells, else the first slice's (QIBA)."""
    timed = [(at, frame) for frame in frames for at in [_acquired(frame)] if at is not None]
    first = min(timed, key=lambda each: each[0], default=None)
    series = _moment(frames[0].get("SeriesDate"), frames[0].get("SeriesTime"))
    if first is None or (series and series <= first[0] + timedelta(seconds=_SAME_MOMENT_S)):
        return series
    return _ge_scan(frames[0].header) or _reference(*first, half_life_s) or first[0]


def _reference(acquired: datetime, frame: Frame, half_life_s: float | None) -> datetime | None:
    """Frame Reference Time (0054,1300) is that of the frame's mean activity, counted from the series' reference."""
    reference_ms = frame.number_of("FrameReferenceTime") or 0.0
    mean_s = _mean_s(frame, half_life_s)
    if reference_ms <= 0 or mean_s is None:
        return None
    return acquired + timedelta(seconds=mean_s - reference_ms / 1000)


def _mean_s(frame: Frame, half_life_s: float | None) -> float | None:
    """When, from its start, a frame's activity is its mean: ln(x / (1 - exp(-x))) / lambda, x = lambda duration."""
    duration_s = (frame.number_of("ActualFrameDuration") or 0.0) / 1000
    if duration_s <= 0 or not half_life_s or half_life_s < 0:
        return None
    rate = math.log(2) / half_life_s
    return math.log(rate * duration_s / -math.expm1(-rate * duration_s)) / rate


def _to_frame_s(frames: Sequence[Frame], half_life_s: float | None) -> float | None:
    """From injection to the frames' mean activity; None where the slices are of several times (bed positions)."""
    moments = {_acquired(frame) for frame in frames}
    start, mean_s = min((each for each in moments if each), default=None), _mean_s(frames[0], half_life_s)
    if len(moments) > 1 or start is None or mean_s is None:
        return None
    source = frames[0].item("RadiopharmaceuticalInformationSequence") or Dataset()
    waited_s = _since(_injection(source, start), start)
    return None if waited_s is None else waited_s + mean_s


def _injection(source: Dataset, start: datetime | None) -> datetime | None:
    """As stated with its date, else with that of the scan, or of the day before where it would lie after the scan."""
    stated = str(source.get("RadiopharmaceuticalStartDateTime") or "").strip()
    injected = _moment(stated[:8], stated[8:])
    if injected is not None or start is None:
        return injected
    injected = _moment(start.strftime("%Y%m%d"), source.get("RadiopharmaceuticalStartTime"))
    return injected - timedelta(days=1) if injected is not None and injected > start else injected


def _since(injected: datetime | None, start: datetime | None) -> float | None:
    return (start - injected).total_seconds() if start and injected else None


def _acquired(frame: Frame) -> datetime | None:
    return _moment(frame.get("AcquisitionDate"), frame.get("AcquisitionTime"))


def _ge_scan(ds: Dataset) -> datetime | None:
    group, creator, element = _GE
    try:
        stated = str(ds.private_block(group, creator)[element].value)
    except KeyError:
        return None
    return _moment(stated[:8], stated[8:])


def _moment(date: Any, time: Any) -> datetime | None:
    text = str(time or "").strip().split("+")[0].split("-")[0]
    whole, _, fraction = text.partition(".")
    try:
        moment = datetime.strptime(f"{date}{whole:0<6}", "%Y%m%d%H%M%S")
        return moment + timedelta(seconds=float(f"0.{fraction or 0}"))
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    """Finite, or None; zero stands for unknown."""
    try:
        found = float(value or 0)
    except (TypeError, ValueError):
        return None
    return found if found and math.isfinite(found) else None


def _listed(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) else list(value or ())
