"""Encoded data sets as C-STORE brings them: their facts are read, or they are refused."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dicomnode.datasets import headers
from dicomnode.errors import CannotUnderstand
from tests.fuzz.changes import change
from tests.fuzz.instances import SYNTAXES, MemoryFile, data_sets, files, split

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (CannotUnderstand,)


def target(data: bytes) -> None:
    """``data``: a byte that chooses the transfer syntax, then the data set."""
    syntax = SYNTAXES[data[0] % len(SYNTAXES)] if data else SYNTAXES[0]
    facts = headers.read_between(MemoryFile(data), 1, max(1, len(data)), syntax)
    assert all(keyword and value is not None for keyword, value in facts.attributes.items())
    headers.list_unindexed(facts)


def examples() -> SearchStrategy[bytes]:
    """Data sets of valid files with changes, and others element by element, alone or behind a valid one."""
    whole = [
        bytes(([str(each) for each in SYNTAXES].index(syntax),)) + content for syntax, content in map(split, files())
    ]
    built = st.builds(lambda kind, more: bytes((kind,)) + more, st.integers(0, 3), data_sets())
    joined = st.builds(lambda content, more: content + more, st.sampled_from(whole), data_sets())
    return st.one_of(st.sampled_from(whole).flatmap(lambda each: change(each, whole)), built, joined)
