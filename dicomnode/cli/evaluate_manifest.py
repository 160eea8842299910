"""``dicomnode evaluate --manifest``: one model, or two beside each other, on the test rows of a site's own table."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dicomnode.cli import context
from dicomnode.errors import ConfigError, NodeError

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts
    from model_zoo.evaluation.on_manifest import RowScores
    from model_zoo.training.cohort import Cohort
    from model_zoo.training.recipe import Recipe

__all__ = ["evaluate_manifest"]

_WORST = 5


def evaluate_manifest(
    facts: BundleFacts,
    against: BundleFacts | None,
    table: Path,
    configuration: str,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the numbers of the recipe on the split "test", per model, and the rows on which the new one is worse."""
    from model_zoo.evaluation import on_manifest, report

    recipe = _find_recipe(facts, against)
    if configuration not in recipe.configurations:
        raise typer.BadParameter(f"no configuration {configuration!r}; there is: {', '.join(recipe.configurations)}")
    cohort = _read_table(recipe, table)
    new, old = _name(facts), _name(against) if against else ""
    if new == old and against:
        new, old = f"{new} {facts.digest[:12]}", f"{old} {against.digest[:12]}"
    networks = {new: _load_network(facts, device)} | ({old: _load_network(against, device)} if against else {})
    try:
        with context.show_progress_bar("starting") as bar:
            rows = on_manifest.evaluate_rows(recipe, recipe.configurations[configuration], cohort, networks, bar.update)
    except ValueError as error:
        raise NodeError(f"{table}: {error}") from error
    if out is not None:
        _write_rows(rows, out)
    if as_json:
        context.print_json([asdict(row) for row in rows])
        return
    summary = on_manifest.compare(rows, new, old)
    for row in (each for each in rows if each.fault):
        print(f"line {row.line} ({row.subject}) could not be evaluated: {row.fault}", file=sys.stderr)
    print(f"{summary.title}\n\n{report.format_table(summary)}")
    if old:
        _print_worse(rows, new, old)


def _find_recipe(facts: BundleFacts, against: BundleFacts | None) -> Recipe[Any]:
    from model_zoo import training
    from model_zoo.evaluation.on_manifest import find_recipe_name

    try:
        names = {find_recipe_name(each) for each in (facts, against) if each}
        if len(names) > 1:
            raise ConfigError(f"the two models are of different recipes: {', '.join(sorted(names))}")
        return _at_plan(training.load(names.pop()), facts)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"evaluate --manifest: {error.args[0]}") from error


def _at_plan(recipe: Recipe[Any], facts: BundleFacts) -> Recipe[Any]:
    """Return the recipe of the bundle's own plan, for recipes that have one."""
    if recipe.at_configuration is None:
        return recipe
    own = type(next(iter(recipe.configurations.values())))
    return recipe.at_configuration(own.from_json(json.dumps(facts.metadata["configuration"])))


def _read_table(recipe: Recipe[Any], table: Path) -> Cohort:
    """Return the rows of the table. Raises ConfigError after every fault was printed."""
    from dicomnode.reading import folders
    from model_zoo.training import manifest
    from model_zoo.training.images import SeriesReader

    try:
        series = SeriesReader(folders.read_grid, folders.read_values)
        return manifest.read(table, recipe.columns, series, ("test",), recipe.check_row)
    except FileNotFoundError as error:
        raise ConfigError(f"--manifest {table}: there is no such file") from error
    except manifest.ManifestError as error:
        for problem in error.problems:
            print(f"{table}: {problem}", file=sys.stderr)
        raise ConfigError(f"{table}: {len(error.problems)} thing(s) to put right, nothing was evaluated") from error


def _load_network(facts: BundleFacts, device: str) -> Any:
    from model_zoo import registry

    return registry.load_from(facts, device=device).network


def _name(facts: BundleFacts) -> str:
    return f"{facts.name}@{facts.version}"


def _print_worse(rows: Sequence[RowScores], new: str, old: str) -> None:
    """Print the rows on which any number of the new model is worse, those with most such numbers first."""
    from model_zoo.evaluation.on_manifest import is_better

    worse = {
        row.line: [n for n, v in row.scores[new].items() if is_better(n, v, row.scores[old].get(n, v)) is False]
        for row in rows
    }
    listed = sorted((row for row in rows if worse[row.line]), key=lambda row: -len(worse[row.line]))
    for row in listed[:_WORST]:
        numbers = ", ".join(f"{n} {row.scores[old][n]:.4g} to {row.scores[new][n]:.4g}" for n in worse[row.line])
        print(f"worse on line {row.line} ({row.subject}): {numbers}")
    if len(listed) > _WORST:
        print(f"worse on {len(listed) - _WORST} further rows; --out writes every row")


def _write_rows(rows: Sequence[RowScores], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "subject", "model", "number", "value"])
        for row in rows:
            for model, numbers in row.scores.items():
                writer.writerows([row.line, row.subject, model, name, value] for name, value in numbers.items())
