"""Standardised uptake values: what one unit of a PET image is in grams per millilitre, or why it cannot be computed.

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

__all__ = ["MOST_HALF_LIVES", "SOURCES", "UNIT", "Factor", "PetHeader", "compute_factor"]

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
class PetHeader:
    """The statements of a PET header that SUV depends on; None or empty where nothing is stated.

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
    """A reason that consists in a missing statement only: nothing contradicts the vendor's own factor."""


def compute_factor(header: PetHeader) -> Factor:
    """Return SUVbw per unit of ``frames.real_world_values``, or the reason why it is unknown.

    Philips' counts are in Bq/ml where its private factor is stated.
    """
    if header.units == "GML":
        return _factor_of_suv(header)
    counts = header.units == "CNTS"
    if header.units != "BQML" and not (counts and (header.suv_per_count or header.bq_ml_per_count)):
        without = " without Philips' private factors (7053,1000) or (7053,1009)" if counts else ""
        return Factor(
            None, f"Units (0054,1001) are {header.units or 'not stated'}{without}, not an activity per volume"
        )
    reason = _quantity_fault(header)
    return Factor(None, reason) if reason else _factor_of_activity(header)


def _factor_of_activity(header: PetHeader) -> Factor:
    """Compute the factor from weight, dose and time, and check it against Philips' factors.

    Philips' factors are used where one of the three is missing.
    """
    reason = _patient_fault(header) or _dose_fault(header) or _time_fault(header)
    ours = None if reason else 1000 * (header.weight_kg or 0) / _remaining_dose_bq(header)
    theirs = header.suv_per_count / (header.bq_ml_per_count or 1.0) if header.suv_per_count else None
    if theirs is None:
        return Factor(ours, reason)
    if "(7053,1000)" in header.differing:
        return Factor(None, "the slices differ in Philips' factors (7053,1000) and (7053,1009)")
    if ours is not None and header.bq_ml_per_count and abs(theirs / ours - 1) > PHILIPS_AGREE:
        return Factor(
            None,
            f"Philips' factors (7053,1000) and (7053,1009) make {theirs:.4g} g/ml of 1 Bq/ml, but weight, dose and "
            f"times make {ours:.4g}",
        )
    if header.units == "CNTS" and (not reason or isinstance(reason, _Missing)):
        return Factor(theirs)
    return Factor(ours, reason)


def _factor_of_suv(header: PetHeader) -> Factor:
    if header.corrections is not None and "ATTN" not in header.corrections:
        return Factor(None, "Corrected Image (0028,0051) does not say that attenuation was corrected")
    if header.suv_type == "BW":
        return Factor(1.0)
    if not header.suv_type:
        return Factor(None, "the values are g/ml, but nothing says by which measure of the body they are SUV")
    return Factor(None, f"the values are SUV by {header.suv_type} (SUV Type (0054,1006)), not by body weight")


def _quantity_fault(header: PetHeader) -> str:
    if "ATTN" not in (header.corrections or ()):
        return "Corrected Image (0028,0051) does not say that attenuation was corrected"
    if header.attenuation_method.strip().casefold() == "none" or "AttenuationCorrectionMethod" in header.differing:
        return (
            "Attenuation Correction Method (0054,1101) is NONE, or not the same for all slices, but Corrected Image "
            "(0028,0051) has ATTN"
        )
    if header.decay_correction not in (*_DECAYED, "NONE"):
        return f"Decay Correction (0054,1102) is {header.decay_correction or 'not stated'}"
    if (header.decay_correction == "NONE") == ("DECY" in (header.corrections or ())):
        has = "has DECY" if header.decay_correction == "NONE" else "has no DECY"
        return f"Decay Correction (0054,1102) is {header.decay_correction}, but Corrected Image (0028,0051) {has}"
    return ""


def _patient_fault(header: PetHeader) -> str:
    if "PatientWeight" in header.differing:
        return _difference("PatientWeight")
    if not header.weight_kg:
        return _Missing("Patient's Weight (0010,1030) is not stated")
    if not WEIGHTS_KG[0] <= header.weight_kg <= WEIGHTS_KG[1]:
        return f"Patient's Weight (0010,1030) of {header.weight_kg:g} kg is no weight of a person"
    if header.size_m and SIZES_M[0] <= header.size_m <= SIZES_M[1]:
        index = header.weight_kg / header.size_m**2
        if not BODY_MASS_INDICES[0] <= index <= BODY_MASS_INDICES[1]:
            return (
                f"Patient's Weight (0010,1030) of {header.weight_kg:g} kg and Patient's Size (0010,1020) of "
                f"{header.size_m:g} m are not of one person, or not in these units"
            )
    return ""


def _dose_fault(header: PetHeader) -> str:
    if SOURCES in header.differing:
        return "Radiopharmaceutical Information Sequence (0054,0016) has several items, and so several doses"
    if "RadionuclideTotalDose" in header.differing:
        return _difference("RadionuclideTotalDose")
    if not header.dose_bq or header.dose_bq < 0:
        return _Missing("Radionuclide Total Dose (0018,1074) is not stated or zero")
    if header.dose_bq < DOSES_BQ[0]:
        return (
            f"Radionuclide Total Dose (0018,1074) of {header.dose_bq:g} Bq is none of a person; it may have been "
            "written in MBq or kBq"
        )
    if header.dose_bq > DOSES_BQ[1]:
        return (
            f"Radionuclide Total Dose (0018,1074) of {header.dose_bq:g} Bq is more than any person gets; in Enhanced "
            "PET it may have been written in Bq instead of MBq"
        )
    return ""


def _time_fault(header: PetHeader) -> str:
    if header.decay_correction == "ADMIN":
        return ""
    for keyword in ("RadionuclideHalfLife", "RadionuclideCodeSequence"):
        if keyword in header.differing:
            return _difference(keyword)
    if not header.half_life_s or header.half_life_s < 0:
        return _Missing("Radionuclide Half Life (0018,1075) is not stated")
    fault = half_life_fault(header.nuclide, header.half_life_s)
    return fault or header.time_fault or _elapsed_fault(header, header.half_life_s)


def _elapsed_fault(header: PetHeader, half_life_s: float) -> str:
    if header.decay_s is None:
        return _Missing("the times of injection and scan are not stated for every slice")
    if header.decay_s < 0:
        return f"the injection is {-header.decay_s / 60:.1f} minutes after the scan; one of the times is wrong"
    if header.decay_s > MOST_HALF_LIVES * half_life_s:
        hours, lives = header.decay_s / 3600, header.decay_s / half_life_s
        return f"the injection is {hours:.1f} hours ({lives:.0f} half-lives) before the scan; one of the times is wrong"
    return ""


def _difference(keyword: str) -> str:
    return f"the slices differ in {title(keyword)}"


def _remaining_dose_bq(header: PetHeader) -> float:
    """Return the activity left of the dose at the moment to which the image is corrected."""
    lives = 0.0 if header.decay_correction == "ADMIN" else (header.decay_s or 0.0) / (header.half_life_s or 1.0)
    return float((header.dose_bq or 0.0) * 2**-lives)
