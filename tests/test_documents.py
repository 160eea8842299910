"""The documentation site: its pages are all in the table of contents, and its generated parts are complete."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

from dicomnode import config as configurations
from dicomnode.cli import COMMANDS, main
from docs.generators import command_line, configuration, http
from model_zoo import registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TOCTREE = re.compile(r"```\{toctree\}\n(?::.*\n)*([^`]*)```")


def read_contents() -> list[str]:
    """Return the pages of the tables of contents of docs/index.md."""
    entries = [line for body in TOCTREE.findall((DOCS / "index.md").read_text()) for line in body.split()]
    return [found for entry in entries for found in (expand(entry) if "*" in entry else [entry])]


def expand(pattern: str) -> list[str]:
    return [path.relative_to(DOCS).with_suffix("").as_posix() for path in sorted(DOCS.glob(f"{pattern}.md"))]


def read_setting(name: str) -> dict[str, str]:
    """Return a table of texts of docs/conf.py, which imports Sphinx where that is installed."""
    tree = ast.parse((DOCS / "conf.py").read_text())
    found = next(node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name)
    assert isinstance(found.value, ast.Dict)
    pairs = zip(found.value.keys, found.value.values, strict=True)
    return {ast.unparse(key).strip("'"): ast.unparse(value).strip("'") for key, value in pairs if key}


def test_every_page_is_in_the_table_of_contents_once() -> None:
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(read_contents()) == sorted(page for page in pages if page != "index")


def test_included_files_and_their_pages_exist() -> None:
    included = read_setting("INCLUDED")
    assert len(included) > 8
    assert [path for path in included if not (ROOT / path).exists()] == []
    assert [page for page in included.values() if not (DOCS / f"{page}.md").is_file()] == []


def test_links_out_of_the_documents_lead_to_pages() -> None:
    included = read_setting("INCLUDED")
    links = {
        (path.name, link)
        for path in DOCS.glob("*.md")
        for link in re.findall(r"\]\(\.\./([^)#]+)[^)]*\)", path.read_text())
    }
    assert {(name, link) for name, link in links if link not in included} == set()


def test_links_of_the_files_beside_the_documents_lead_to_files() -> None:
    """Sphinx checks the links of pages; nobody else checks those of the README."""
    links = {
        (path.name, link)
        for path in ROOT.glob("*.md")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    }
    assert len(links) > 20
    assert {(name, link) for name, link in links if not (ROOT / link).exists()} == set()


def test_the_configuration_page_has_a_meaning_for_every_key() -> None:
    page = configuration.make_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 120
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_configuration_page_states_values_and_defaults() -> None:
    page = configuration.make_page()
    assert "## `[[peers]]`" in page
    assert "| `port` | whole number, at least 0, at most 65535 | **required** | its DICOM port |" in page
    assert "| `quiet_s` | number, above 0 | `60` | seconds without an instance |" in page
    assert '| `engine` | `"processes"` or `"ray"` | `"processes"` |' in page
    assert "{doc}`/security`" in page


@pytest.mark.parametrize("text", ["# k = 1  # the meaning", "k = [1] # the meaning"])
def test_comments_are_found_by_section_and_key(text: str) -> None:
    comments = configuration.read_comments(f"# All about s.\n[s]\n{text}\n")
    assert comments == {"s": "All about s.", "s.k": "the meaning"}


def test_the_command_line_page_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    page = command_line.make_page()
    assert all(f"## `dicomnode {name}`\n" in page for name in COMMANDS)
    for words in ("studies explain", "jobs release", "models deploy", "kspace wrap"):
        assert f"### `{words}`\n" in page
    assert "| `--model NAME@VERSION` | Instead of the pipeline's own. |" in page
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    own = re.findall(r"^\| `(--[a-z]+)", (DOCS / "reference" / "command-line.md").read_text(), re.MULTILINE)
    assert own == ["--config", "--version", "--help"]
    assert [option for option in own if option not in shown] == []


def test_no_help_has_brackets_which_the_terminal_would_take_for_a_style() -> None:
    page = command_line.make_page()
    meanings = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    texts = [line for line in page.splitlines() if not line.startswith(("|", "    ", "#"))]
    assert [text for text in meanings + texts if "[[" in text] == []


def test_the_http_page_has_each_operation_once() -> None:
    operations = [(method, path) for method, path, _ in http.list_operations()]
    assert len(set(operations)) == len(operations)
    assert ("GET", "/dicom-web/studies/{study}/metadata") in operations
    assert ("POST", "/dicom-web/studies") in operations
    assert not [each for each in operations if each[0] not in ("GET", "POST")]
    assert not [path for method, path in operations if method == "POST" and path.startswith(("/api", "/review"))]
    page = http.make_page()
    assert "| `GET` | `/dicom-web/studies/{study}/series` | a search |" in page
    assert "| `GET` | `/dicom-web/studies/{study}/series/{series}` | all instances of the series |" in page
    assert [path for _, path in operations if f"| `{path}` |" not in page] == []


def test_the_http_page_says_what_every_path_of_the_api_answers() -> None:
    rows = [line for line in http.make_page().splitlines() if line.startswith("| `GET` | `/api/")]
    assert len(rows) > 8
    assert [row for row in rows if "`dicomnode " not in row] == []


def test_every_paper_is_cited_by_the_module_that_the_page_names() -> None:
    page = (DOCS / "explanation" / "papers.md").read_text()
    rows = re.findall(r"^\| (\w+(?: Leemput)?)[ ,].*\| `([\w.]+)` \|$", page, re.MULTILINE)
    assert len(rows) > 30
    paths = {module: ROOT.joinpath(*module.split(".")).with_suffix(".py") for _, module in rows}
    assert [row for row in rows if row[0] not in paths[row[1]].read_text()] == []


def test_generated_parts_are_made_and_used() -> None:
    made = read_setting("GENERATED")
    used = {
        name
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"^<!-- generated: (.+) -->$", page.read_text(), re.M)
    }
    assert used == set(made)


def test_each_model_card_is_that_of_its_bundle_s_version() -> None:
    for facts in registry.list_bundles():
        first = (facts.path / "docs" / "README.md").read_text().partition("\n")[0]
        assert first == f"# {facts.name} {facts.version}"


def test_the_settings_of_the_learning_page_load_as_they_stand(tmp_path: Path) -> None:
    page = (DOCS / "learning.md").read_text()
    block = page.split("## Switch it on\n")[1].split("\nThen see")[0]
    path = tmp_path / "node.toml"
    path.write_text(textwrap.dedent("".join(re.findall(r"^ {4}.*\n|^\n", block, re.MULTILINE))))
    config = configurations.load(path)
    assert [each.pipeline for each in config.learning] == [each.pipeline for each in config.routes]
