"""Names and docstrings are plain: no past participle is a name, and the first sentence of a docstring is complete.

docs/glossary.md lists the words of the field.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package_floors import FOLDERS, ROOT

REFUSED_NAMES = re.compile(
    r"_*(asked|awaited|behind|beside|brought|came|come|desk|drawn|given|happens|journey|kept|lacking|laid|meant|named|"
    r"nameless|reused|seen|shown|stated|taken|tend|told|trouble|twice|wanted|whole|wished|word|wrong)_*"
)
"""Names of functions, parameters, fields and variables that do not say what they are."""
REFUSED_CLASSES = re.compile(
    r"_*(Allowance|Asked|Beat|Complaints|Crew|Desk|Doors?|Guard|Laid|Later|Mark|Measured|MoveRefused|News|Pace|Pulse|"
    r"Seen|Served|Sheet|Told|TwoLooks|Visit|Warm)_*"
)
OPENINGS = re.compile(
    r"(All that|As|At|By|Each that|Everybody|Everything|For|From|How|In|It|Its|Nobody|Nothing|Of|On|One that|Our|So|"
    r"Such|That|They|These|This is|Those|To|Until|What|When|Where|Whether|Which|Who|Whom|Whose|Why|With|Without)\b"
)
"""First words of docstrings whose first sentence is not complete by itself."""
REFUSED_WORDS = re.compile(r"lattice", re.IGNORECASE)
"""Words that the glossary replaces, in any text of the repository."""
ALLOWED: dict[str, str] = {}
"""Findings that are right, with the reason."""


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def _findings(source: str) -> Iterator[str]:
    """Yield the refused names and openings of a source text."""
    for node in ast.walk(ast.parse(source)):
        yield from (f"name {name}" for name in _names(node) if REFUSED_NAMES.fullmatch(name))
        if isinstance(node, ast.ClassDef) and REFUSED_CLASSES.fullmatch(node.name):
            yield f"class {node.name}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            docstring = ast.get_docstring(node) or ""
            if OPENINGS.match(docstring):
                yield f"docstring {docstring.splitlines()[0]!r}"


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_names_and_docstrings_are_plain(folder: str) -> None:
    paths = [path for path in sorted((ROOT / folder).rglob("*.py")) if "versions" not in path.parts]
    found = [f"{path.relative_to(ROOT)}: {finding}" for path in paths for finding in _findings(path.read_text())]
    assert [finding for finding in found if finding not in ALLOWED] == []


def test_texts_use_the_words_of_the_glossary() -> None:
    folders = (*FOLDERS, "tests", "benchmarks", "examples", "docs", "deploy")
    texts = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    paths = {path for path in texts if path.suffix in (".html", ".md", ".py", ".toml")}
    paths -= {Path(__file__), ROOT / "docs" / "glossary.md"}
    assert {path.relative_to(ROOT).as_posix() for path in paths if REFUSED_WORDS.search(path.read_text())} == set()


def test_the_check_refuses_old_names_and_riddles() -> None:
    source = '''
        def told(asked: int) -> None:
            """Of the whole, the newest last."""
            wanted = asked
        class Desk:
            """Where work is done."""
    '''
    lines = source.replace("\n        ", "\n")
    assert sorted(_findings(lines)) == [
        "class Desk",
        "docstring 'Of the whole, the newest last.'",
        "docstring 'Where work is done.'",
        "name asked",
        "name told",
        "name wanted",
    ]
    assert list(_findings('def find_prior() -> None:\n    """Return the newest prior examination, or None."""\n')) == []


@pytest.mark.slow
def test_allowed_findings_still_occur() -> None:
    texts = {path: path.read_text() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    found = {f"{path.relative_to(ROOT)}: {finding}" for path, text in texts.items() for finding in _findings(text)}
    assert set(ALLOWED) - found == set()


def test_the_glossary_names_places_that_exist() -> None:
    """The last column of docs/glossary.md names modules and packages."""
    places = re.findall(
        r"`((?:dicomnode|pipelines|model_zoo|db)(?:\.\w+)*)`", (ROOT / "docs" / "glossary.md").read_text()
    )
    missing = [place for place in places if not _exists(place)]
    assert places
    assert missing == []


def _exists(place: str) -> bool:
    module = ROOT.joinpath(*place.split("."))
    parent: Path = module.parent.with_suffix(".py")
    defines = parent.is_file() and re.search(rf"\b(class|def) {module.name}\b", parent.read_text()) is not None
    return module.is_dir() or module.with_suffix(".py").is_file() or defines
