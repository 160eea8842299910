"""A user's own data set for a recipe: a CSV table of images and covariates, split by subject.

The first line names the columns: ``subject``; ``split`` (train, validation or test; may be missing or blank);
``resample`` (may be missing; see below); then the recipe's. An image is a NIfTI file or a folder with one DICOM series,
by a path relative to the table. Everything is checked before anything is trained, and every problem is reported with
its line.

Split: a subject whose rows do not state one goes by the SHA-256 of its name: 80 % train, 10 % validation, 10 % test, so
that it stays in its split when the table grows. A subject in two splits is refused.

Grids: the images of one row must share one. Images that do not but are registered to each other need ``yes`` in the
column ``resample``: they are then resampled to the grid of the row's first image.

For a recipe's ``draw_batch``: ``row = source.cohort.draw_row(generator)``, then ``source.cohort.draw_patch(row,
("flair", "t1w"), shape, spacing_mm, generator)`` gives the same random patch of each image,
``source.cohort.read_volume(row, "flair")`` a full one, ``row.numbers["age"]`` and ``row.words["sex"]`` covariates;
``row.images``, ``numbers`` and ``words`` lack the values of optional columns that are blank.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model_zoo.grid import Grid
from model_zoo.splits import SPLITS, assign_split
from model_zoo.training import images
from model_zoo.training.cohort import Cohort, Row
from model_zoo.training.images import SeriesReader
from model_zoo.training.recipe import Column, Source, Sources

__all__ = ["SPLITS", "Cohort", "ManifestError", "Row", "assign_split", "make_sources", "read"]

OWN = ("subject", "split", "resample")
YES, NO = ("yes", "true", "1"), ("", "no", "false", "0")


class ManifestError(ValueError):
    """A table that cannot be used. ``problems``: all of its faults, one line of text each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def make_sources(cohort: Cohort) -> Sources:
    """Return training and validation rows as a recipe's sources; the rows of "test" are in neither."""
    train, validation = (Source((), cohort=cohort.select_split(split)) for split in SPLITS[:2])
    return Sources(train, validation)


def read(
    path: Path,
    columns: Sequence[Column],
    series: SeriesReader | None = None,
    splits: Sequence[str] = SPLITS[:2],
    check_row: Callable[[Row], str] | None = None,
) -> Cohort:
    """Return the rows of the table at ``path``, checked.

    ``series`` reads folders with a DICOM series; ``splits``: those that need a row each; ``check_row``: the recipe's.
    Raises ManifestError with every problem, FileNotFoundError for a table that does not exist.
    """
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(["it is not text in UTF-8"]) from error
    table = csv.DictReader(lines)
    if problems := _check_header(table.fieldnames or (), columns):
        raise ManifestError(problems)
    rows: list[Row] = []
    for cells in table:
        line = _Line(table.line_num, problems)
        rows.append(_read_row(line, cells, columns, path.parent, series))
    rows = _fill_splits(rows, problems)
    if check_row is not None:
        problems += [f"line {row.line}: {fault}" for row in rows if (fault := check_row(row))]
    if not problems:
        problems += [
            f'no row is in the split "{each}": name splits in the column "split"'
            for each in splits
            if all(row.split != each for row in rows)
        ]
    if problems:
        raise ManifestError(problems)
    return Cohort(tuple(rows), hashlib.sha256(content).hexdigest(), series=series)


@dataclass(frozen=True)
class _Line:
    """A line of the table, whose problems go to ``problems``."""

    number: int
    problems: list[str]

    def report(self, column: str, fault: str) -> None:
        self.problems.append(f"line {self.number}, column {column}: {fault}")


def _check_header(names: Sequence[str], columns: Sequence[Column]) -> list[str]:
    known = [*OWN, *(column.name for column in columns)]
    needed = ["subject", *(column.name for column in columns if column.required)]
    problems = [f'line 1: the column "{name}" is missing' for name in needed if name not in names]
    problems += [
        f'line 1: no column "{name}" is known; known are {", ".join(known)}' for name in names if name not in known
    ]
    return problems + [f'line 1: the column "{name}" is there twice' for name in known if list(names).count(name) > 1]


def _read_row(
    line: _Line,
    cells: Mapping[str | None, object],
    columns: Sequence[Column],
    base: Path,
    series: SeriesReader | None,
) -> Row:
    """Return one row, and report its problems."""
    text = {str(k): str(v).strip() for k, v in cells.items() if k is not None and v is not None}
    if None in cells:
        line.problems.append(f"line {line.number}: more cells than columns")
    _check_own(line, text)
    for column in columns:
        if column.required and not text.get(column.name):
            line.report(column.name, "it is blank")
    filled = [column for column in columns if text.get(column.name)]
    paths = {c.name: base / text[c.name] for c in filled if c.kind in ("image", "labels")}
    numbers = {c.name: _read_number(line, c.name, text[c.name]) for c in filled if c.kind == "number"}
    words = {c.name: text[c.name] for c in filled if c.kind == "word"}
    labels = frozenset(c.name for c in filled if c.kind == "labels")
    resample = text.get("resample", "").lower() in YES
    _check_images(line, paths, resample, series)
    return Row(line.number, text.get("subject", ""), text.get("split", ""), paths, numbers, words, labels, resample)


def _check_own(line: _Line, text: Mapping[str, str]) -> None:
    """Check the columns that every table may have."""
    if not text.get("subject"):
        line.report("subject", "it is blank")
    if (split := text.get("split", "")) not in ("", *SPLITS):
        line.report("split", f"{split!r} is none of {', '.join(SPLITS)}")
    if (resample := text.get("resample", "").lower()) not in (*YES, *NO):
        line.report("resample", f"{resample!r} is neither yes nor no")


def _read_number(line: _Line, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        line.report(column, f"{text!r} is no number")
    return value


def _check_images(line: _Line, paths: Mapping[str, Path], is_resampled: bool, series: SeriesReader | None) -> None:
    """Report images that cannot be read, or that lie on another grid than the first and are not to be resampled."""
    first: tuple[str, Grid] | None = None
    for column, path in paths.items():
        try:
            grid = images.read_grid(path, series)
        except ValueError as error:
            line.report(column, f"{path}: {error}")
            continue
        if first is None:
            first = column, grid
        elif not is_resampled and not grid.matches(first[1]):
            line.report(
                column, f'{path} is not on the grid of "{first[0]}"; if they are registered, say resample = yes'
            )


def _fill_splits(rows: Sequence[Row], problems: list[str]) -> list[Row]:
    """Return every row with its subject's split, and report subjects with two of them."""
    with_split: dict[str, Row] = {}
    for row in rows:
        before = with_split.setdefault(row.subject, row) if row.split else None
        if before is not None and before.split != row.split:
            problems.append(
                f"line {row.line}, column split: subject {row.subject!r} is in {row.split}, "
                f"but in {before.split} by line {before.line}"
            )
    return [
        replace(row, split=with_split[row.subject].split if row.subject in with_split else assign_split(row.subject))
        for row in rows
    ]
