"""Tracer, dose and times of a PET header: the facts that SUV and a pipeline need, no date among them.

An attribute that must be the same for a series and is not, such as its dose, is no fact: SUV then has a reason instead
of a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.reading import decay_times, pet, suv
from dicomnode.reading.frames import Frame
from dicomnode.reading.lookup import finite

__all__ = ["facts"]

_OF_THE_TRACER = (
    "RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalStartTime",
)  # fmt: skip
_OF_THE_PATIENT = ("PatientWeight", "PatientSize")
_CODE, _PHILIPS, _ATTENUATION = "RadionuclideCodeSequence", "(7053,1000)", "AttenuationCorrectionMethod"


def facts(frames: Sequence[Frame]) -> dict[str, Any]:
    """Return the facts of tracer, dose and time by name; those that are not stated are absent.

    They are ``units``, ``corrections``, ``decay_correction``, ``tracer``, ``dose_bq``, ``half_life_s``, ``uptake_s``
    (injection to start of the scan), ``series_type``, ``frame_duration_s`` (the shortest of all frames),
    ``acquisition_times`` (how many there are), and ``suv_bw_per_unit`` or ``suv_unknown_because``.
    """
    sources = [_sources(frame) for frame in frames]
    differing = _differing(frames, [each[0] for each in sources])
    source = sources[0][0]
    half_life_s = None if "RadionuclideHalfLife" in differing else _number(source.get("RadionuclideHalfLife"))
    elapsed = decay_times.elapsed_times(frames, source, half_life_s, differing)
    one = all(len(each) <= 1 for each in sources)
    found = {
        "units": pet.units(frames[0]),
        "corrections": pet.corrections(frames[0]),
        "decay_correction": _decay_correction(frames[0]),
        "tracer": _name(source) if one and len({_name(each[0]) for each in sources}) == 1 else None,
        "dose_bq": _dose_bq(frames[0], source) if one and _OF_THE_TRACER[0] not in differing else None,
        "half_life_s": half_life_s if one else None,
        "uptake_s": elapsed.uptake_s if one and _is_likely(elapsed.uptake_s, half_life_s) else None,
        "series_type": pet.series_type(frames[0]) or None,
        "frame_duration_s": _frame_duration_s(frames),
        "acquisition_times": len({str(frame.get("AcquisitionTime") or "") for frame in frames} - {""}),
    }
    factor = suv.compute_factor(
        _pet_header(frames, source, found, elapsed, differing if one else {*differing, suv.SOURCES})
    )
    known = {"suv_bw_per_unit": factor.bw_per_unit, "suv_unknown_because": factor.unknown_because}
    return {fact: value for fact, value in (found | known).items() if value or value == ()}


def _dose_bq(frame: Frame, source: Dataset) -> float | None:
    """Return the dose, which is in Bq in PET (PS3.3 C.8.9.2) and in MBq in Enhanced PET (C.8.22.4)."""
    dose = _number(source.get("RadionuclideTotalDose"))
    return dose * 1e6 if dose is not None and pet.is_enhanced(frame) else dose


def _sources(frame: Frame) -> Sequence[Dataset]:
    """Return the items of the tracers; of Enhanced PET that of the one that a frame was made with, where it says so."""
    items: Sequence[Dataset] = frame.get("RadiopharmaceuticalInformationSequence") or [Dataset()]
    used = [
        use.get("RadiopharmaceuticalAgentNumber")
        for place in (*frame.groups, frame.header)
        for use in place.get("RadiopharmaceuticalUsageSequence") or ()
    ]
    chosen = [item for item in items if item.get("RadiopharmaceuticalAgentNumber") in used] if used else []
    return chosen or items


def _differing(frames: Sequence[Frame], sources: Sequence[Dataset]) -> frozenset[str]:
    """Return the attributes of patient and tracer that are not the same for all frames."""
    found = {keyword for keyword in (*_OF_THE_PATIENT, _ATTENUATION) if pet.differs(frames, keyword)}
    for keyword in _OF_THE_TRACER:
        if len({str(source.get(keyword, "")) for source in sources}) > 1:
            found.add(keyword)
    if len({_nuclide(source) for source in sources}) > 1:
        found.add(_CODE)
    if len({_ratio(*pet.philips_factors(frame)) for frame in frames}) > 1:
        found.add(_PHILIPS)
    return frozenset(found)


def _ratio(suv_per_count: float | None, bq_ml_per_count: float | None) -> str:
    """Return what Philips' factors make of Bq/ml, to three digits, for they are rounded."""
    return f"{suv_per_count / (bq_ml_per_count or 1.0):.3g}" if suv_per_count else ""


def _is_likely(uptake_s: float | None, half_life_s: float | None) -> bool:
    return uptake_s is not None and 0 <= uptake_s <= suv.MOST_HALF_LIVES * (half_life_s or math.inf)


def _decay_correction(frame: Frame) -> str:
    correction = pet.decay_correction(frame)
    return "" if correction == pet.DECAY_TO_DATETIME else correction


def _frame_duration_s(frames: Sequence[Frame]) -> float | None:
    values = [frame.number_of("ActualFrameDuration") or frame.number_of("FrameAcquisitionDuration") for frame in frames]
    return min((value / 1000 for value in values if value and value > 0), default=None)


def _name(source: Dataset) -> str:
    codes = source.get("RadiopharmaceuticalCodeSequence") or []
    return str(codes[0].get("CodeMeaning", "")) if codes else str(source.get("Radiopharmaceutical") or "")


def _nuclide(source: Dataset) -> tuple[str, str] | None:
    codes = source.get(_CODE) or []
    return (str(codes[0].get("CodeValue", "")), str(codes[0].get("CodingSchemeDesignator", ""))) if codes else None


def _pet_header(
    frames: Sequence[Frame],
    source: Dataset,
    found: dict[str, Any],
    elapsed: decay_times.Elapsed,
    differing: frozenset[str] | set[str],
) -> suv.PetHeader:
    first = frames[0]
    suv_per_count, bq_ml_per_count = pet.philips_factors(first)
    return suv.PetHeader(
        units=found["units"],
        suv_type=pet.suv_type(first),
        decay_correction=pet.decay_correction(first),
        corrections=found["corrections"],
        attenuation_method=str(first.get(_ATTENUATION, "")),
        dose_bq=found["dose_bq"],
        half_life_s=found["half_life_s"],
        nuclide=_nuclide(source),
        weight_kg=_number(first.get("PatientWeight")),
        size_m=None if "PatientSize" in differing else _number(first.get("PatientSize")),
        decay_s=elapsed.decay_s,
        time_fault=elapsed.fault,
        suv_per_count=suv_per_count,
        bq_ml_per_count=bq_ml_per_count,
        differing=frozenset(differing),
    )


def _number(value: Any) -> float | None:
    """Return a finite number, or None; zero stands for unknown."""
    return finite(value) or None
