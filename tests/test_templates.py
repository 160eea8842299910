"""Templates of the pages by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

import dicomnode.web

pytestmark = pytest.mark.fast

FOLDER = Path(dicomnode.web.__file__).parent / "templates"
TEMPLATES = sorted(path.name for path in FOLDER.glob("*.html"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_imports_the_macros_that_it_uses(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert "macros." not in text.replace("macros.html", "") or '{% import "macros.html" as macros %}' in text
