"""Shares of held-out simulated subjects whose true regional SUVR lies inside its interval, with the true structures.

The node uses the structures of its anatomy model, whose errors are in neither the intervals nor these shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model_zoo.bundle import Model
from model_zoo.evaluation import Table
from model_zoo.pet_intervals import COMPOSITE, LEVELS, find_factors
from model_zoo.pet_synthesis import TARGETS
from model_zoo.physics.tracers import TRACERS
from model_zoo.structures import STRUCTURES
from model_zoo.training.pet_intervals import RegionalErrors, measure_errors, standardise
from model_zoo.training.pet_synthesis import CONFIGURATIONS, draw_validation_items
from model_zoo.training.recipe import Source

__all__ = ["coverage_by_region", "make_coverage_table"]

SEED = 990

Coverage = dict[tuple[str, str, float], float]
"""Share inside by tracer, structure or composite, and level."""


def coverage_by_region(errors: Iterable[RegionalErrors], settings: Mapping[str, Any]) -> Coverage:
    """Return the shares of subjects inside their intervals; NaN where a tracer has no subject."""
    z: dict[tuple[str, str], list[Tensor]] = {}
    for each in errors:
        by_structure, composite = standardise(each)
        for at in range(len(TARGETS)):
            for s in STRUCTURES:
                z.setdefault((each.tracers[at], s.name), []).append(by_structure[at, s.number - 1])
            z.setdefault((each.tracers[at], COMPOSITE), []).append(composite[at])
    shares: Coverage = {}
    for (tracer, name), values in z.items():
        known = torch.stack(values)
        known = known[known.isfinite()]
        for level, factor in zip(LEVELS, find_factors(settings, tracer, name), strict=True):
            inside = known.abs() <= factor
            shares[tracer, name, level] = float(inside.float().mean()) if len(known) else math.nan
    return shares


def make_coverage_table(model: Model, source: Source, heads: int, patients: int) -> Table:
    """Return the table: a row per structure, a column per tracer and level.

    ``heads`` of the source's subjects with ``patients`` each, half of them for either pair of tracers.
    """
    k, j, i = model.settings["shape"]
    c = replace(CONFIGURATIONS["smoke"], spacing_mm=float(model.settings["spacing_mm"]), shape=(k, j, i), seed=SEED)
    items = draw_validation_items(c, source, heads, patients)
    shares = coverage_by_region((measure_errors(model.network, item) for item in items), model.settings)
    columns = [(tracer, level) for level in LEVELS for tracer in TRACERS if (tracer, COMPOSITE, level) in shares]
    names = [*(s.name for s in STRUCTURES), COMPOSITE]
    rows: tuple[tuple[str | float, ...], ...] = tuple(
        (name, *(round(shares[tracer, name, level], 3) for tracer, level in columns)) for name in names
    )
    subjects = heads * patients // 2
    note = (
        f"Shares of {subjects} simulated patients per tracer on held-out anatomy whose true SUVR is inside, half of "
        "them with covariates unknown as in training. Structures are the true ones. The widths come from other "
        "anatomy. Sampling error of a share of "
        f"0.8: {math.sqrt(0.16 / max(subjects, 1)):.2f}, more where patients share a head."
    )
    return Table("Intervals by region", ("structure", *(f"{t}, {level:.0%}" for t, level in columns)), rows, note)
