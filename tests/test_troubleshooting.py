"""Check docs/troubleshooting.md: every message that it explains is one of the program's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.package_floors import FOLDERS, ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"


def read_messages() -> list[str]:
    """Return the messages in the first column of the page's tables."""
    return re.findall(r"^\| `(.+?)` \|", PAGE.read_text(), re.MULTILINE)


def template(node: ast.AST) -> str:
    """Return a text of the source with a gap for each value that is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else GAP


def find_texts(source: str) -> Iterator[str]:
    """Yield the texts of a source that have a blank in them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr | ast.Constant) and " " in (text := template(node)):
            yield " ".join(text.split())


@cache
def all_texts() -> tuple[str, ...]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(text for path in paths for text in find_texts(path.read_text()))


def is_message(message: str, texts: tuple[str, ...]) -> bool:
    """Return whether some text of the source contains the parts of the message between its gaps, in their order."""
    parts = [part for part in message.split(GAP) if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)))
    return any(pattern.search(text) for text in texts)


def test_the_page_explains_many_messages_each_once() -> None:
    messages = read_messages()
    assert len(messages) > 60
    assert len(set(messages)) == len(messages)
    assert [message for message in messages if max(map(len, message.split(GAP))) < 7] == []


def test_every_row_has_a_message_a_cause_and_a_remedy() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [row for row in rows if len(row) != 3 or not all(row)] == []


@pytest.mark.slow
def test_every_message_is_one_of_the_programs() -> None:
    assert [message for message in read_messages() if not is_message(message, all_texts())] == []


@pytest.mark.parametrize(
    ("message", "found"),
    [("peer … does not answer", True), ("peer pacs does not answer", False), ("answers … peer", False)],
)
def test_a_message_is_found_by_its_parts(message: str, found: bool) -> None:
    texts = tuple(find_texts('raise Error(f"peer {name} "\n      "does not answer")'))
    assert is_message(message, texts) is found
