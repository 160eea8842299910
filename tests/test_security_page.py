"""Check docs/security.md: every class of faults names tests, and each of them exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "security.md"
REFERENCE = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
CLASSES = (
    "gzip", "deflate", "compressed pixels", "declared lengths", "overflows", "paths in UIDs", "palettes", "overlays",
    "Content-Length", "eval", "SQL", "commands of a shell", "CSRF", "DNS rebinding",
)  # fmt: skip


def read_rows() -> list[list[str]]:
    """Return the cells of the rows of the table whose head is "class"."""
    after = PAGE.read_text().split("| class | what the node does | tests |\n", 1)[1].splitlines()[1:]
    lines = after[: next(number for number, line in enumerate(after) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@cache
def find_tests(name: str) -> frozenset[str]:
    path = TESTS / name
    tree = ast.parse(path.read_text() if path.is_file() else "")
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_class_names_tests_that_exist() -> None:
    rows = read_rows()
    assert [row for row in rows if len(row) != 3 or not REFERENCE.findall(row[2])] == []
    named = {reference for row in rows for reference in REFERENCE.findall(row[2])}
    assert len(named) > 30
    assert {(file, test) for file, test in named if test not in find_tests(file)} == set()


def test_the_classes_of_the_advisories_are_there() -> None:
    names = " ".join(row[0] for row in read_rows())
    assert [each for each in CLASSES if each not in names] == []
