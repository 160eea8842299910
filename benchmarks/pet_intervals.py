"""Widths of regional SUVR intervals: four rules, chosen between the validation label maps, and shares on the test maps.

    python -m benchmarks.pet_intervals [--heads 60] [--patients 8]

Rules for the half width in units of the predicted sd: that of a normal density; one factor per structure (as
delivered); one per side of the mean; one per tissue group. Fitted to one validation map and counted on the other, then
fitted to both and counted on the test maps. Shares are of 80 % intervals, over tracers, structures without the
reference region, and the composite.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.pet_intervals import COMPOSITE
from model_zoo.simulate import anatomy
from model_zoo.structures import CORTEX, STRUCTURES, number
from model_zoo.training.pet_intervals import measure_errors, standardise
from model_zoo.training.pet_synthesis import CONFIGURATIONS, draw_validation_items
from model_zoo.training.recipe import Source

LEVEL = 0.8
NAMES = (*(s.name for s in STRUCTURES), COMPOSITE)
Errors = dict[str, NDArray[np.float64]]
"""Standardised errors (subjects, structures and composite) by tracer."""
Rule = Callable[[NDArray[np.float64], int], tuple[float, float]]
"""Lower and upper end for one column of the errors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--heads", type=int, default=60)
    parser.add_argument("--patients", type=int, default=8)
    arguments = parser.parse_args()
    model = registry.load("pet_synthesis")
    by_map = {
        name: draw_errors(model, (name,), arguments.heads // 2, arguments.patients) for name in anatomy.VALIDATION
    }
    test = draw_errors(model, anatomy.TEST, arguments.heads, arguments.patients)
    first, second = by_map.values()
    both = {tracer: np.concatenate([first[tracer], second[tracer]]) for tracer in first}
    print("| rule | from one validation map to the other: within 75 to 85 % | test maps: within | least | largest |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, rule in RULES.items():
        across = np.concatenate([count_inside(first, second, rule), count_inside(second, first, rule)])
        held = count_inside(both, test, rule)
        cells = (f"{_share(across):.0%}", f"{_share(held):.0%}", f"{held.min():.0%}", f"{held.max():.0%}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _share(inside: NDArray[np.float64]) -> float:
    return float(((inside >= 0.75) & (inside <= 0.85)).mean())


def draw_errors(model: Model, subjects: tuple[str, ...], heads: int, patients: int) -> Errors:
    """Return the errors on simulated patients with heads of these label maps."""
    k, j, i = model.settings["shape"]
    c = replace(CONFIGURATIONS["smoke"], spacing_mm=float(model.settings["spacing_mm"]), shape=(k, j, i), seed=990)
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for item in draw_validation_items(c, Source(subjects), heads, patients):
        errors = measure_errors(model.network, item)
        by_structure, composite = standardise(errors)
        for at, tracer in enumerate(errors.tracers):
            rows.setdefault(tracer, []).append(np.append(by_structure[at].numpy(), float(composite[at])))
    return {tracer: np.stack(each) for tracer, each in rows.items()}


def count_inside(fit: Errors, other: Errors, rule: Rule) -> NDArray[np.float64]:
    """Return the share of ``other`` inside the ends fitted to ``fit``, by tracer and column."""
    return np.array(list(_iterate_shares(fit, other, rule)))


def _iterate_shares(fit: Errors, other: Errors, rule: Rule) -> Iterator[float]:
    for tracer, z in fit.items():
        for column, name in enumerate(NAMES):
            if name != "cerebellar cortex":
                low, high = rule(z, column)
                found = _finite(other[tracer][:, column])
                yield float(((found >= low) & (found <= high)).mean())


def _finite(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return z[np.isfinite(z)]


def _quantile(z: NDArray[np.float64], level: float) -> float:
    return float(np.sort(z)[min(len(z), int(np.ceil((len(z) + 1) * level))) - 1])


def _normal(z: NDArray[np.float64], column: int) -> tuple[float, float]:
    half = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return -half, half


def _per_structure(z: NDArray[np.float64], column: int) -> tuple[float, float]:
    half = _quantile(np.abs(_finite(z[:, column])), LEVEL)
    return -half, half


def _per_side(z: NDArray[np.float64], column: int) -> tuple[float, float]:
    found = _finite(z[:, column])
    return -_quantile(-found, (1 + LEVEL) / 2), _quantile(found, (1 + LEVEL) / 2)


def _per_group(z: NDArray[np.float64], column: int) -> tuple[float, float]:
    group = [other for other in range(len(NAMES)) if _group_of(other) == _group_of(column)]
    half = _quantile(np.abs(_finite(z[:, group].ravel())), LEVEL)
    return -half, half


def _group_of(column: int) -> str:
    if NAMES[column] == COMPOSITE or column + 1 in CORTEX:
        return "cortex"
    structure = STRUCTURES[column]
    if structure.number == number("cerebellar cortex"):
        return "reference"
    return "deep grey matter" if structure.tissue == "grey matter" else structure.tissue


RULES: dict[str, Rule] = {
    "normal density": _normal,
    "one factor per structure": _per_structure,
    "one factor per side": _per_side,
    "one factor per tissue group": _per_group,
}


if __name__ == "__main__":
    main()
