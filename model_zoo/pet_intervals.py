"""Intervals of regional SUVR whose widths come from the errors on validation subjects: split conformal prediction.

For each tracer and structure, and for the composite, z = |true SUVR - mean| / (sd that the network predicts) of
subjects that the training has not seen. The interval of a new subject is mean +- f sd, f being the empirical quantile
of z with the correction for a finite number of subjects (Papadopoulos et al. 2002; Lei et al., J. Am. Stat. Assoc. 113,
2018). It would hold its share of new subjects drawn as those were, whatever the density of the errors; validation
subjects that share heads are fewer than they seem. A bundle keeps the factors in its settings under
``interval_factors``: tracer → structure or "composite" → a factor for each level, and "subjects" → their number.
Without them the errors count as normal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from torch import Tensor

__all__ = ["COMPOSITE", "FEWEST", "LEVELS", "SUBJECTS", "Factors", "count_subjects", "find_factors", "fit_factors"]

LEVELS = (0.80, 0.95)
COMPOSITE = "composite"
SUBJECTS = "subjects"
FEWEST = 19
"""Fewest subjects that determine the widest interval."""

Factors = tuple[float, ...]
"""Half the width of the interval of each level, in standard deviations."""


def fit_factors(z: Tensor) -> Factors | None:
    """Return the factors for the standardised errors ``z`` (subjects,); NaN is left out.

    None where there are fewer than FEWEST, or no errors at all: the SUVR of a reference region is one.
    """
    known = z[z.isfinite()].double().abs().sort().values
    n = len(known)
    if n < FEWEST or float(known[-1]) < 1e-3:
        return None
    return tuple(round(float(known[math.ceil((n + 1) * level) - 1]), 3) for level in LEVELS)


def find_factors(settings: Mapping[str, Any], tracer: str, name: str) -> Factors:
    """Return the factors of a bundle's ``settings`` for a structure or COMPOSITE, those of a normal density without."""
    stored = settings.get("interval_factors", {}).get(tracer, {}).get(name)
    if stored is not None:
        return tuple(float(each) for each in stored)
    return tuple(NormalDist().inv_cdf((1 + level) / 2) for level in LEVELS)


def count_subjects(settings: Mapping[str, Any], tracer: str) -> int:
    """Return the number of validation subjects behind a tracer's factors, 0 without factors."""
    return int(settings.get("interval_factors", {}).get(tracer, {}).get(SUBJECTS, 0))
