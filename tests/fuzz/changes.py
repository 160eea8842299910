"""Strategies that change valid input at its bytes: numbers, lengths, missing, repeated and foreign parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = ["change", "changed", "lengths"]

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_MOST_CHANGES = 6
_LONGEST_PART = 64

Change = Callable[[DrawFn, bytearray, Sequence[bytes]], None]


def lengths(real: int) -> SearchStrategy[int]:
    """Lengths to state for a value of ``real`` bytes: mostly the right one."""
    return st.one_of(
        st.just(real), st.just(real), st.sampled_from((0, real + 1, real + 2, max(0, real - 1), *_NUMBERS))
    )


@st.composite
def changed(draw: DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds with a few changes, or none."""
    return draw(change(draw(st.sampled_from(seeds)), seeds))


@st.composite
def change(draw: DrawFn, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return the content with a few changes, or none; parts of ``others`` may be put in."""
    edited = bytearray(content)
    for _ in range(draw(st.integers(0, _MOST_CHANGES))):
        draw(st.sampled_from(_CHANGES))(draw, edited, others or [content])
    return bytes(edited)


def _place(draw: DrawFn, content: bytearray) -> int:
    return draw(st.integers(0, len(content)))


def _set_byte(draw: DrawFn, content: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, content)
    content[at : at + 1] = bytes((draw(st.integers(0, 255)),))


def _set_number(draw: DrawFn, content: bytearray, _: Sequence[bytes]) -> None:
    at, size = _place(draw, content), draw(st.sampled_from((1, 2, 4, 8)))
    number = draw(st.sampled_from(_NUMBERS)) % 256**size
    content[at : at + size] = number.to_bytes(size, draw(st.sampled_from(("little", "big"))))


def _remove(draw: DrawFn, content: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, content)
    del content[at : at + draw(st.integers(1, _LONGEST_PART))]


def _cut(draw: DrawFn, content: bytearray, _: Sequence[bytes]) -> None:
    del content[_place(draw, content) :]


def _repeat(draw: DrawFn, content: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, content)
    content[at:at] = content[at : at + draw(st.integers(1, _LONGEST_PART))] * draw(st.integers(1, 4))


def _insert(draw: DrawFn, content: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, content)
    content[at:at] = draw(st.binary(min_size=1, max_size=_LONGEST_PART))


def _put_foreign(draw: DrawFn, content: bytearray, others: Sequence[bytes]) -> None:
    other = draw(st.sampled_from(list(others)))
    at, start = _place(draw, content), draw(st.integers(0, len(other)))
    content[at:at] = other[start : start + draw(st.integers(1, _LONGEST_PART))]


_CHANGES: tuple[Change, ...] = (_set_byte, _set_number, _set_number, _remove, _cut, _repeat, _insert, _put_foreign)
