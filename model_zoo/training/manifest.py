"""A user's own data set for a recipe: a CSV table of images and covariates, split by subject.

The first line names the columns: ``subject``; ``split`` (train, validation or test; may be missing or blank);
``resample`` (may be missing; see below); then the recipe's. An image is a NIfTI file or a folder with one DICOM series,
by a path relative to the table. Everything is checked before anything is trained, and all problems are told, by line.

Split: a subject whose rows do not state one goes by the SHA-256 of its name: 80 % train, 10 % validation, 10 % test, so
that it stays where it is when the table grows. A subject in two splits is refused.

Lattices: the images of one row must share one. Where they do not but are registered to each other, say ``yes`` in the
column ``resample``: they are then resampled to the lattice of the row's first image.

For a recipe's ``batch``: ``row = source.cohort.row(generator)``, then ``source.cohort.patch(row, ("flair", "t1w"),
shape, spacing_mm, generator)`` gives the same random patch of each image, ``source.cohort.volume(row, "flair")`` a
whole one, ``row.numbers["age"]`` and ``row.words["sex"]`` covariates; ``row.images``, ``numbers`` and ``words`` lack
what an optional column left blank.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model_zoo.grid import Grid
from model_zoo.training import images
from model_zoo.training.cohort import Cohort, Row
from model_zoo.training.recipe import Column, Source, Sources

__all__ = ["SPLITS", "Cohort", "ManifestError", "Row", "read", "sources", "split_of"]

SPLITS = ("train", "validation", "test")
OWN = ("subject", "split", "resample")
YES, NO = ("yes", "true", "1"), ("", "no", "false", "0")


class ManifestError(ValueError):
    """A table cannot be used. ``problems`` says everything that is wrong, one line of text each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def split_of(subject: str) -> str:
    """Where a subject goes that states no split: by a hash of its name, the same on every machine."""
    tenth = int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def sources(cohort: Cohort) -> Sources:
    """Training and validation rows as a recipe's sources; the rows of "test" are in neither."""
    train, validation = (Source((), cohort=cohort.part(split)) for split in SPLITS[:2])
    return Sources(train, validation)


def read(path: Path, columns: Sequence[Column]) -> Cohort:
    """The table at ``path``, checked. Raises ManifestError with every problem, FileNotFoundError where it is not."""
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(["it is no text in UTF-8"]) from error
    table = csv.DictReader(lines)
    if problems := _header(table.fieldnames or (), columns):
        raise ManifestError(problems)
    rows: list[Row] = []
    for cells in table:
        row, found = _row(table.line_num, cells, columns, path.parent)
        problems += found
        rows.append(row)
    rows = _splits(rows, problems)
    if not problems:
        problems += [
            f'no row is in the split "{each}": name splits in the column "split"'
            for each in SPLITS[:2]
            if all(row.split != each for row in rows)
        ]
    if problems:
        raise ManifestError(problems)
    return Cohort(tuple(rows), hashlib.sha256(content).hexdigest())


def _header(names: Sequence[str], columns: Sequence[Column]) -> list[str]:
    known = [*OWN, *(column.name for column in columns)]
    needed = ["subject", *(column.name for column in columns if column.required)]
    problems = [f'line 1: the column "{name}" is missing' for name in needed if name not in names]
    problems += [
        f'line 1: no column "{name}" is known; known are {", ".join(known)}' for name in names if name not in known
    ]
    return problems + [f'line 1: the column "{name}" is there twice' for name in known if list(names).count(name) > 1]


def _row(line: int, cells: Mapping[str | None, object], columns: Sequence[Column], base: Path) -> tuple[Row, list[str]]:
    """One row, and what is wrong with it."""
    problems: list[str] = []
    text = {str(k): str(v).strip() for k, v in cells.items() if k is not None and v is not None}

    def wrong(column: str, what: str) -> None:
        problems.append(f"line {line}, column {column}: {what}")

    if None in cells:
        problems.append(f"line {line}: more cells than columns")
    if not text.get("subject"):
        wrong("subject", "it is blank")
    split = text.get("split", "")
    if split not in ("", *SPLITS):
        wrong("split", f"{split!r} is none of {', '.join(SPLITS)}")
    resample = text.get("resample", "").lower()
    if resample not in (*YES, *NO):
        wrong("resample", f"{resample!r} is neither yes nor no")
    for column in columns:
        if column.required and not text.get(column.name):
            wrong(column.name, "it is blank")
    given = [column for column in columns if text.get(column.name)]
    paths = {c.name: base / text[c.name] for c in given if c.kind in ("image", "labels")}
    numbers = {c.name: _number(text[c.name], c.name, wrong) for c in given if c.kind == "number"}
    words = {c.name: text[c.name] for c in given if c.kind == "word"}
    labels = frozenset(c.name for c in given if c.kind == "labels")
    _check_images(paths, resample in YES, wrong)
    return Row(line, text.get("subject", ""), split, paths, numbers, words, labels, resample in YES), problems


def _number(text: str, column: str, wrong: Callable[[str, str], None]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        wrong(column, f"{text!r} is no number")
    return value


def _check_images(paths: Mapping[str, Path], resampled: bool, wrong: Callable[[str, str], None]) -> None:
    """Every image can be read, and all lie on the first one's lattice unless they are to be resampled to it."""
    first: tuple[str, Grid] | None = None
    for column, path in paths.items():
        try:
            grid = images.read_grid(path)
        except ValueError as error:
            wrong(column, f"{path}: {error}")
            continue
        if first is None:
            first = column, grid
        elif not resampled and not grid.matches(first[1]):
            wrong(column, f'{path} is not on the lattice of "{first[0]}"; if they are registered, say resample = yes')


def _splits(rows: Sequence[Row], problems: list[str]) -> list[Row]:
    """Every row with its subject's split; a subject with two of them is a problem."""
    stated: dict[str, Row] = {}
    for row in rows:
        before = stated.setdefault(row.subject, row) if row.split else None
        if before is not None and before.split != row.split:
            problems.append(
                f"line {row.line}, column split: subject {row.subject!r} is in {row.split}, "
                f"but in {before.split} by line {before.line}"
            )
    return [
        replace(row, split=stated[row.subject].split if row.subject in stated else split_of(row.subject))
        for row in rows
    ]
