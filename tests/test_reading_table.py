"""Check docs/reading.md: every row has an outcome and names a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reading.md"
OUTCOMES = ("honoured", "refused", "ignored")
REFERENCE = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def _read_rows() -> list[list[str]]:
    """Return the cells of every table row of the page, without heads and rules."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in rows if row[1:2] != ["outcome"]]


@cache
def _find_tests(name: str) -> frozenset[str]:
    path = TESTS / name
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_row_has_four_cells_and_an_outcome() -> None:
    malformed = [row for row in _read_rows() if len(row) != 4 or row[1] not in OUTCOMES]
    assert malformed == []


def test_every_row_names_tests_that_exist() -> None:
    missing: list[str] = []
    for row in _read_rows():
        references = REFERENCE.findall(row[-1])
        missing += [f"{row[0]}: {file}::{test}" for file, test in references if test not in _find_tests(file)]
        missing += [f"{row[0]}: no test"] if not references else []
    assert missing == []


def test_the_page_counts_its_rows_and_tests() -> None:
    rows = _read_rows()
    tests = {reference for row in rows for reference in REFERENCE.findall(row[-1])}
    assert f"{len(rows)} rows, {len(tests)} tests." in PAGE.read_text()
