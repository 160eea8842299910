"""Functions, options, recipes and pages that docs/papers.md names exist."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from model_zoo import training
from pipelines import MODULES, load

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"
TEXT = PAGE.read_text()
FUNCTIONS = sorted(set(re.findall(r"`((?:model_zoo|pipelines)\.[\w.]+)`", TEXT)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_the_page_names_exists(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert resolve_name(f"{module}:{attribute}") is not None


def test_the_page_names_functions_pipelines_and_recipes_that_exist() -> None:
    assert len(FUNCTIONS) > 20
    recipes = set(re.findall(r"recipes? `([\w-]+)`(?: and `([\w-]+)`)?", TEXT))
    assert {name for pair in recipes for name in pair if name} <= set(training.RECIPES)
    pipelines = re.findall(r"^Pipelines? `(\w+)`(?: and `(\w+)`)?", TEXT, re.MULTILINE)
    assert {name for pair in pipelines for name in pair if name} <= set(MODULES)
    assert "what_if_mmse" in load("pet_synthesis").options_type.model_fields


def test_every_row_says_what_is_here_and_why_or_that_it_is_missing() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| paper"))]
    assert len(rows) > 30
    for row in rows:
        paper, here, why = (cell.strip() for cell in row.strip("|").split("|"))
        assert paper, row
        assert why, row
        assert here or "missing" in why, row


def test_pages_that_it_links_exist() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target
