"""Evaluation of a model, or of two, on the test rows of a user's own table.

Each row gives the numbers of the recipe's own validation, on the same random draws for every model, so that two models
are compared row by row. Training reads no row of the split "test"; a model that was trained on another table may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from model_zoo.bundle import BundleFacts
from model_zoo.evaluation import Table
from model_zoo.scores import is_better
from model_zoo.training.cohort import Cohort
from model_zoo.training.recipe import Recipe, Source

__all__ = ["RowScores", "compare", "evaluate_rows", "find_recipe_name", "is_better"]

_PAIRS = {"standard-dose-pet-semi": "standard-dose-pet"}
"""Recipes whose rows are evaluated by another one, which needs every row to be a pair."""


@dataclass(frozen=True)
class RowScores:
    """Numbers of one row of the table, by the model's name and the number's name; none where ``fault`` says why."""

    line: int
    subject: str
    scores: Mapping[str, Mapping[str, float]]
    fault: str = ""


def find_recipe_name(facts: BundleFacts) -> str:
    """Return the recipe by which a bundle is evaluated. Raises ValueError for a bundle without one."""
    name = str(facts.metadata.get("recipe", ""))
    if not name:
        raise ValueError(f"{facts.name} {facts.version} names no recipe in its metadata")
    return _PAIRS.get(name, name)


def evaluate_rows(
    recipe: Recipe[Any],
    c: Any,
    cohort: Cohort,
    networks: Mapping[str, nn.Module],
    progress: Callable[[float, str], None],
) -> list[RowScores]:
    """Return the numbers of every network on each row of the split "test"; a row that fails has its fault instead.

    Raises ValueError where every row fails.
    """
    rows = cohort.select_split("test").rows
    found = []
    for at, row in enumerate(rows):
        progress(at / len(rows), f"line {row.line}, {row.subject}")
        source = Source((), cohort=replace(cohort.select_split("test"), rows=(row,)))
        try:
            scores = {name: _validate(recipe, c, network, source) for name, network in networks.items()}
        except (KeyError, RuntimeError, ValueError) as error:
            found.append(RowScores(row.line, row.subject, {name: {} for name in networks}, str(error)))
            continue
        found.append(RowScores(row.line, row.subject, scores))
    if found and all(row.fault for row in found):
        raise ValueError(f"line {found[0].line}, subject {found[0].subject}: {found[0].fault}")
    return found


def compare(rows: Sequence[RowScores], new: str, old: str = "") -> Table:
    """Return a table with a row per number: the mean of each model, and on how many rows the new one is better."""
    rows = [row for row in rows if not row.fault]
    names = list(dict.fromkeys(name for row in rows for name in row.scores[new]))
    lines = []
    for name in names:
        cells: list[str | float] = [name, _mean(rows, new, name)]
        lines.append((*cells, _mean(rows, old, name), _count_better(rows, new, old, name)) if old else tuple(cells))
    heads = ("number", new, old, "better on") if old else ("number", new)
    return Table(f"Mean of {len(rows)} test row{'s' * (len(rows) != 1)}", heads, tuple(lines))


def _validate(recipe: Recipe[Any], c: Any, network: nn.Module, source: Source) -> dict[str, float]:
    network.eval()
    with torch.no_grad():
        found = recipe.validate(network, c, source)
    return {name: float(value) for name, value in found.items()}


def _mean(rows: Sequence[RowScores], model: str, name: str) -> float:
    values = [row.scores[model][name] for row in rows if name in row.scores[model]]
    return fmean(values) if values else math.nan


def _count_better(rows: Sequence[RowScores], new: str, old: str, name: str) -> str:
    pairs = [(row.scores[new][name], row.scores[old][name]) for row in rows if name in row.scores[new]]
    verdicts = [is_better(name, *pair) for pair in pairs]
    if all(verdict is None for verdict in verdicts):
        return "equal" if all(a == b for a, b in pairs) else "no order"
    return f"{sum(verdict is True for verdict in verdicts)} of {len(pairs)}"
