"""Standardised uptake values: what one unit of a PET image is in grams per millilitre, or why nobody can tell.

SUVbw = C W / D, with C the activity concentration (Bq/ml), W the body weight (g) and D the dose (Bq) that is left at
the moment to which C is decay-corrected: D = dose 2^(-t / half-life), t from injection to the start of the scan
(Decay Correction START), zero (ADMIN), or to the mean of the frame (NONE). Counts take Philips' private factors; g/ml
is SUV already. After the vendor-neutral calculation of QIBA's FDG-PET/CT profile (appendix G). What is missing,
impossible, stated twice or at odds with something else gives no factor but a sentence: a wrong SUV looks like a right
one.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicomnode.datasets.titles import title
from dicomnode.reading.radionuclides import half_life_fault

__all__ = ["MOST_HALF_LIVES", "SOURCES", "UNIT", "Factor", "Stated", "factor"]

UNIT = "g/ml{SUVbw}"
"""UCUM, as PS3.16 CID 85 has it."""

MOST_HALF_LIVES = 10.0
"""After more than this from injection nothing is left to scan: one of the times is wrong."""
DOSES_BQ = (5e6, 2e10)
"""No dose of a person lies beyond; kBq, MBq and mCi stand for smaller numbers."""
WEIGHTS_KG = (0.4, 400.0)
SIZES_M = (0.3, 2.5)
BODY_MASS_INDICES = (7.0, 90.0)
"""In kg / m2; beyond them weight or size is in another unit, or of another person."""
PHILIPS_AGREE = 0.01
"""Relative; Philips rounds its factors to three digits."""
SOURCES = "RadiopharmaceuticalInformationSequence"
_DECAYED = ("START", "ADMIN", "DATETIME")


@dataclass(frozen=True)
class Stated:
    """What a PET header says; None or empty where it says nothing.

    ``corrections``: Corrected Image, None where it is not stated; ``nuclide``: value and scheme of its code;
    ``decay_s``: from injection to the moment to which the image is decay-corrected, else ``time_fault`` says why it is
    not known. ``suv_per_count`` and ``bq_ml_per_count``: Philips' (7053,1000) and (7053,1009). ``differing``: keywords
    of which a series states several values; ``SOURCES`` among them for several tracers.
    """

    units: str = ""
    suv_type: str = ""
    decay_correction: str = ""
    corrections: tuple[str, ...] | None = None
    attenuation_method: str = ""
    dose_bq: float | None = None
    half_life_s: float | None = None
    nuclide: tuple[str, str] | None = None
    weight_kg: float | None = None
    size_m: float | None = None
    decay_s: float | None = None
    time_fault: str = ""
    suv_per_count: float | None = None
    bq_ml_per_count: float | None = None
    differing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Factor:
    """SUVbw (g/ml) per unit of the image's values, or None and the reason."""

    bw_per_unit: float | None
    unknown_because: str = ""


class _Missing(str):
    """A reason that is only that something is not stated: nothing speaks against the vendor's own factor."""


def factor(stated: Stated) -> Factor:
    """For values in the unit of ``reading.frames.values``: Philips' counts are Bq/ml where it can be so."""
    if stated.units == "GML":
        return _already(stated)
    counts = stated.units == "CNTS"
    if stated.units != "BQML" and not (counts and (stated.suv_per_count or stated.bq_ml_per_count)):
        without = " without Philips' private factors (7053,1000) or (7053,1009)" if counts else ""
        return Factor(
            None, f"Units (0054,1001) are {stated.units or 'not stated'}{without}, not an activity per volume"
        )
    reason = _not_quantitative(stated)
    return Factor(None, reason) if reason else _by_closed_form(stated)


def _by_closed_form(stated: Stated) -> Factor:
    """By weight, dose and time, and checked against Philips' factors, which stand in where something is missing."""
    reason = _patient(stated) or _dose(stated) or _time(stated)
    ours = None if reason else 1000 * (stated.weight_kg or 0) / _left_bq(stated)
    theirs = stated.suv_per_count / (stated.bq_ml_per_count or 1.0) if stated.suv_per_count else None
    if theirs is None:
        return Factor(ours, reason)
    if "(7053,1000)" in stated.differing:
        return Factor(None, "the slices differ in Philips' factors (7053,1000) and (7053,1009)")
    if ours is not None and stated.bq_ml_per_count and abs(theirs / ours - 1) > PHILIPS_AGREE:
        return Factor(
            None,
            f"Philips' factors (7053,1000) and (7053,1009) make {theirs:.4g} g/ml of 1 Bq/ml, but weight, dose and "
            f"times make {ours:.4g}",
        )
    if stated.units == "CNTS" and (not reason or isinstance(reason, _Missing)):
        return Factor(theirs)
    return Factor(ours, reason)


def _already(stated: Stated) -> Factor:
    if stated.corrections is not None and "ATTN" not in stated.corrections:
        return Factor(None, "Corrected Image (0028,0051) does not say that attenuation was corrected")
    if stated.suv_type == "BW":
        return Factor(1.0)
    if not stated.suv_type:
        return Factor(None, "the values are g/ml, but nothing says by which measure of the body they are SUV")
    return Factor(None, f"the values are SUV by {stated.suv_type} (SUV Type (0054,1006)), not by body weight")


def _not_quantitative(stated: Stated) -> str:
    if "ATTN" not in (stated.corrections or ()):
        return "Corrected Image (0028,0051) does not say that attenuation was corrected"
    if stated.attenuation_method.strip().casefold() == "none" or "AttenuationCorrectionMethod" in stated.differing:
        return (
            "Attenuation Correction Method (0054,1101) is NONE, or not the same for all slices, but Corrected Image "
            "(0028,0051) has ATTN"
        )
    if stated.decay_correction not in (*_DECAYED, "NONE"):
        return f"Decay Correction (0054,1102) is {stated.decay_correction or 'not stated'}"
    if (stated.decay_correction == "NONE") == ("DECY" in (stated.corrections or ())):
        has = "has DECY" if stated.decay_correction == "NONE" else "has no DECY"
        return f"Decay Correction (0054,1102) is {stated.decay_correction}, but Corrected Image (0028,0051) {has}"
    return ""


def _patient(stated: Stated) -> str:
    if "PatientWeight" in stated.differing:
        return _several("PatientWeight")
    if not stated.weight_kg:
        return _Missing("Patient's Weight (0010,1030) is not stated")
    if not WEIGHTS_KG[0] <= stated.weight_kg <= WEIGHTS_KG[1]:
        return f"Patient's Weight (0010,1030) of {stated.weight_kg:g} kg is no weight of a person"
    if stated.size_m and SIZES_M[0] <= stated.size_m <= SIZES_M[1]:
        index = stated.weight_kg / stated.size_m**2
        if not BODY_MASS_INDICES[0] <= index <= BODY_MASS_INDICES[1]:
            return (
                f"Patient's Weight (0010,1030) of {stated.weight_kg:g} kg and Patient's Size (0010,1020) of "
                f"{stated.size_m:g} m are not of one person, or not in these units"
            )
    return ""


def _dose(stated: Stated) -> str:
    if SOURCES in stated.differing:
        return "Radiopharmaceutical Information Sequence (0054,0016) has several items, and so several doses"
    if "RadionuclideTotalDose" in stated.differing:
        return _several("RadionuclideTotalDose")
    if not stated.dose_bq or stated.dose_bq < 0:
        return _Missing("Radionuclide Total Dose (0018,1074) is not stated or zero")
    if stated.dose_bq < DOSES_BQ[0]:
        return (
            f"Radionuclide Total Dose (0018,1074) of {stated.dose_bq:g} Bq is none of a person; it may have been "
            "written in MBq or kBq"
        )
    if stated.dose_bq > DOSES_BQ[1]:
        return f"Radionuclide Total Dose (0018,1074) of {stated.dose_bq:g} Bq is more than any person gets"
    return ""


def _time(stated: Stated) -> str:
    if stated.decay_correction == "ADMIN":
        return ""
    for keyword in ("RadionuclideHalfLife", "RadionuclideCodeSequence"):
        if keyword in stated.differing:
            return _several(keyword)
    if not stated.half_life_s or stated.half_life_s < 0:
        return _Missing("Radionuclide Half Life (0018,1075) is not stated")
    fault = half_life_fault(stated.nuclide, stated.half_life_s)
    return fault or stated.time_fault or _elapsed(stated, stated.half_life_s)


def _elapsed(stated: Stated, half_life_s: float) -> str:
    if stated.decay_s is None:
        return _Missing("the times of injection and scan are not stated for every slice")
    if stated.decay_s < 0:
        return f"the injection is {-stated.decay_s / 60:.1f} minutes after the scan; one of the times is wrong"
    if stated.decay_s > MOST_HALF_LIVES * half_life_s:
        hours, lives = stated.decay_s / 3600, stated.decay_s / half_life_s
        return f"the injection is {hours:.1f} hours ({lives:.0f} half-lives) before the scan; one of the times is wrong"
    return ""


def _several(keyword: str) -> str:
    return f"the slices differ in {title(keyword)}"


def _left_bq(stated: Stated) -> float:
    """Of the dose at the moment to which the image is corrected."""
    lives = 0.0 if stated.decay_correction == "ADMIN" else (stated.decay_s or 0.0) / (stated.half_life_s or 1.0)
    return float((stated.dose_bq or 0.0) * 2**-lives)
