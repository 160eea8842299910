"""Plausibility of a dose fraction: what the header of an FDG PET says about the counts of the scan.

The counts grow with activity x duration of a bed position / body weight, P in MBq min / kg. The EANM guidelines for
tumour imaging with FDG 2.0 (Boellaard et al. 2015, doi:10.1007/s00259-014-2961-x) ask for at least 14 (bed positions
that overlap by up to 30 %) or 7 (by more). For the brain, the EANM guidelines 3 (Guedj et al. 2022,
doi:10.1007/s00259-021-05603-w) have 125 to 250 MBq and 10 to 20 minutes, that is 18 to 71 for 70 kg. Scanners differ in
sensitivity, so both ranges are widened by a factor of 2: nine clinical series have 3.9 to 22
(tests/test_injected_dose.py). A standard dose lies in the range, and the dose fraction between P over its ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.contract import Grid, Note

__all__ = ["BODY", "BRAIN", "check_dose_fraction", "find_fraction_range", "find_standard_range"]

_MARGIN = 2.0
BODY = (7.0 / _MARGIN, 14.0 * _MARGIN)
"""Range of P of a standard dose, several bed positions (MBq min / kg)."""
BRAIN = (18.0 / _MARGIN, 71.0 * _MARGIN)
"""Range of P of a standard dose, one bed position over the head (MBq min / kg)."""
_MULTIPLE_BEDS_MM = 400.0
"""Axial extent above which a scan with several acquisition times is of several bed positions.

A conventional field of view has 150 to 260 mm; a long one, of one bed position, has one acquisition time.
"""
_FDG = ("fluorodeoxyglucose", "fdg", "deoxyglucose")
_HEAD = ("head", "brain", "skull")


def check_dose_fraction(facts: Mapping[str, Any], grid: Grid, dose_fraction: float) -> list[Note]:
    """Return a note that holds the result where the header contradicts the fraction, or why it is unchecked."""
    missing = _describe_missing(facts)
    if missing:
        return [Note("check of the dose fraction", f"The header does not allow it: {missing}.")]
    low, high = find_fraction_range(facts, grid)
    if low <= dose_fraction <= high:
        return []
    reason = (
        f"{facts['dose_bq'] / 1e6:.4g} MBq (0018,1074), {facts['weight_kg']:g} kg (0010,1030) and "
        f"{facts['frame_duration_s']:g} s (0018,1242) are {_measure_product(facts):.3g} MBq min/kg, "
        f"{low:.2g} to {high:.2g} of a standard dose of FDG"
    )
    return [Note("dose fraction", f"{dose_fraction:g} contradicts the header: {reason}", holds_result=True)]


def find_fraction_range(facts: Mapping[str, Any], grid: Grid) -> tuple[float, float]:
    """Return the least and the largest dose fraction that the header allows."""
    least, most = find_standard_range(facts, grid)
    product = _measure_product(facts)
    return product / most, product / least


def find_standard_range(facts: Mapping[str, Any], grid: Grid) -> tuple[float, float]:
    """Return the range of P of a standard dose (MBq min / kg): of body or brain, of both where neither is certain."""
    if grid.shape[0] * grid.spacing_mm[0] > _MULTIPLE_BEDS_MM:
        return BODY if facts.get("acquisition_times", 1) > 1 else (BODY[0], BRAIN[1])
    parts = f"{facts.get('body_part', '')} {facts.get('region', '')}".casefold()
    return BRAIN if any(part in parts for part in _HEAD) else (BODY[0], BRAIN[1])


def _measure_product(facts: Mapping[str, Any]) -> float:
    return float(facts["dose_bq"] / 1e6 * facts["frame_duration_s"] / 60 / facts["weight_kg"])


def _describe_missing(facts: Mapping[str, Any]) -> str:
    names = {"dose_bq": "dose", "weight_kg": "weight", "frame_duration_s": "duration of a frame"}
    absent = [name for fact, name in names.items() if not facts.get(fact)]
    if absent:
        return f"{' and '.join(absent)} not stated"
    tracer = str(facts.get("tracer", "")).casefold()
    return "" if any(name in tracer for name in _FDG) else "the tracer is not FDG, of which the guidelines speak"
