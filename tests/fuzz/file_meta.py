"""Part 10 files: the file meta information is read, then the data set, or the file is refused."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dicomnode.datasets import headers
from dicomnode.datasets.encoding import check_inflated_size
from dicomnode.errors import CannotUnderstand
from tests.fuzz.changes import change
from tests.fuzz.instances import data_sets, files, temporary_file

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (CannotUnderstand,)
_META_ENDS = 400


def target(data: bytes) -> None:
    """``data``: the file."""
    with temporary_file(data) as path:
        check_inflated_size(path)
        headers.read(path)


def examples() -> SearchStrategy[bytes]:
    """Valid files with changes in their file meta information, or with other elements for it."""
    heads = st.sampled_from(files()).flatmap(
        lambda content: change(content[:_META_ENDS]).map(lambda head: head + content[_META_ENDS:])
    )
    others = st.builds(
        lambda meta, content: content[:132] + meta + content[132:], data_sets(), st.sampled_from(files())
    )
    return st.one_of(heads, others)
