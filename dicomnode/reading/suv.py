"""Standardised uptake values: what one unit of a PET image is in grams per millilitre, or why nobody can tell.

SUVbw = C W / D, with C the activity concentration (Bq/ml), W the body weight (g) and D the dose (Bq) that is left at
the moment to which C is decay-corrected: D = dose 2^(-t / half-life), t from injection to the start of the scan
(Decay Correction START), zero (ADMIN), or to the mean of the frame (NONE). Counts take Philips' private factor; g/ml is
SUV already. After the vendor-neutral calculation of QIBA's FDG-PET/CT profile (appendix G). What is missing or
impossible gives no factor but a sentence: a wrong SUV looks like a right one.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UNIT", "Factor", "Stated", "factor"]

UNIT = "g/ml{SUVbw}"
"""UCUM, as PS3.16 CID 85 has it."""

MOST_HALF_LIVES = 10.0
"""After more than this from injection nothing is left to scan: one of the times is wrong."""
LEAST_DOSE_BQ = 1e5
"""Less than this is a dose stated in another unit, MBq as a rule."""
WEIGHTS_KG = (0.4, 400.0)


@dataclass(frozen=True)
class Stated:
    """What a PET header says; None or empty where it says nothing.

    ``corrections``: Corrected Image; ``decay_s``: from injection to the moment to which the image is decay-corrected,
    None where the times do not tell. ``suv_per_count`` and ``bq_ml_per_count``: Philips' (7053,1000) and (7053,1009).
    """

    units: str = ""
    suv_type: str = ""
    decay_correction: str = ""
    corrections: tuple[str, ...] = ()
    dose_bq: float | None = None
    half_life_s: float | None = None
    weight_kg: float | None = None
    decay_s: float | None = None
    suv_per_count: float | None = None
    bq_ml_per_count: float | None = None


@dataclass(frozen=True)
class Factor:
    """SUVbw (g/ml) per unit of the image's values, or None and the reason."""

    bw_per_unit: float | None
    unknown_because: str = ""


def factor(stated: Stated) -> Factor:
    """For values in the unit of ``reading.frames.values``: Philips' counts are Bq/ml where it can be so."""
    if stated.units == "GML":
        return _already(stated)
    if stated.units == "CNTS" and stated.suv_per_count:
        return Factor(stated.suv_per_count / (stated.bq_ml_per_count or 1.0))
    if stated.units != "BQML" and not (stated.units == "CNTS" and stated.bq_ml_per_count):
        counts = " without Philips' private factors (7053,1000) or (7053,1009)" if stated.units == "CNTS" else ""
        return Factor(None, f"Units (0054,1001) are {stated.units or 'not stated'}{counts}, not an activity per volume")
    reason = _not_quantitative(stated) or _patient(stated) or _dose(stated) or _time(stated)
    if reason:
        return Factor(None, reason)
    return Factor(1000 * (stated.weight_kg or 0) / _left_bq(stated))


def _already(stated: Stated) -> Factor:
    if stated.suv_type in ("", "BW"):
        return Factor(1.0)
    return Factor(None, f"the values are SUV by {stated.suv_type} (SUV Type (0054,1006)), not by body weight")


def _not_quantitative(stated: Stated) -> str:
    if "ATTN" not in stated.corrections:
        return "Corrected Image (0028,0051) does not say that attenuation was corrected"
    if stated.decay_correction not in ("START", "ADMIN", "NONE"):
        return f"Decay Correction (0054,1102) is {stated.decay_correction or 'not stated'}"
    if stated.decay_correction != "NONE" and "DECY" not in stated.corrections:
        return f"Decay Correction (0054,1102) is {stated.decay_correction}, but Corrected Image (0028,0051) has no DECY"
    return ""


def _patient(stated: Stated) -> str:
    if not stated.weight_kg:
        return "Patient's Weight (0010,1030) is not stated"
    if not WEIGHTS_KG[0] <= stated.weight_kg <= WEIGHTS_KG[1]:
        return f"Patient's Weight (0010,1030) of {stated.weight_kg:g} kg is no weight of a person"
    return ""


def _dose(stated: Stated) -> str:
    if not stated.dose_bq or stated.dose_bq < 0:
        return "Radionuclide Total Dose (0018,1074) is not stated or zero"
    if stated.dose_bq < LEAST_DOSE_BQ:
        return f"Radionuclide Total Dose (0018,1074) of {stated.dose_bq:g} Bq is none; it may have been written in MBq"
    return ""


def _time(stated: Stated) -> str:
    if stated.decay_correction == "ADMIN":
        return ""
    if not stated.half_life_s or stated.half_life_s < 0:
        return "Radionuclide Half Life (0018,1075) is not stated"
    if stated.decay_s is None:
        return "the times of injection and scan are not stated, or those of the slices give no single one"
    if stated.decay_s < 0:
        return f"the injection is {-stated.decay_s / 60:.1f} minutes after the scan; one of the times is wrong"
    if stated.decay_s > MOST_HALF_LIVES * stated.half_life_s:
        hours, lives = stated.decay_s / 3600, stated.decay_s / stated.half_life_s
        return f"the injection is {hours:.1f} hours ({lives:.0f} half-lives) before the scan; one of the times is wrong"
    return ""


def _left_bq(stated: Stated) -> float:
    """Of the dose at the moment to which the image is corrected."""
    lives = 0.0 if stated.decay_correction == "ADMIN" else (stated.decay_s or 0.0) / (stated.half_life_s or 1.0)
    return float((stated.dose_bq or 0.0) * 2**-lives)
