"""Deflated data sets: inflated to their end and within the limit, or refused."""

from __future__ import annotations

import zlib

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dicomnode.datasets.inflating import inflate
from dicomnode.errors import CannotUnderstand
from tests.fuzz.changes import changed
from tests.fuzz.instances import files, split

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (CannotUnderstand,)
_LIMIT = 1 << 20


def target(data: bytes) -> None:
    """``data``: the deflated bytes."""
    assert len(inflate(data, at_most=_LIMIT)) <= _LIMIT


def examples() -> SearchStrategy[bytes]:
    """Deflated data sets with changes, and ones that inflate to just below or far above the limit."""
    return st.one_of(changed([_deflate(content) for _, content in map(split, files())]), _swelling())


@st.composite
def _swelling(draw: DrawFn) -> bytes:
    size = draw(st.sampled_from((_LIMIT - 1, _LIMIT, _LIMIT + 1, 64 * _LIMIT)))
    return _deflate(bytes(size)) + draw(st.binary(max_size=8))


def _deflate(content: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush()
