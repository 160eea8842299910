"""P-DATA-TF and other PDUs on an established association of a running receiver."""

from __future__ import annotations

import struct

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pydicom.uid import ExplicitVRLittleEndian

from tests.fuzz.changes import change, lengths
from tests.fuzz.instances import files, split
from tests.fuzz.receiver import converse
from tests.raw_associations import MR
from tests.sending import Encoded, encode_p_data, encode_store_request

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS: tuple[type[Exception], ...] = ()


def target(data: bytes) -> None:
    """``data``: what the peer sends behind its association request."""
    converse(data)


def examples() -> SearchStrategy[bytes]:
    """C-STORE requests in one PDU or many, PDUs of other types and lengths, and changes of their bytes."""
    whole = _store()
    pieces = st.one_of(st.just(whole), _fragments(), _pdus())
    return st.lists(pieces, min_size=1, max_size=4).map(b"".join).flatmap(lambda content: change(content, [whole]))


def _store() -> bytes:
    each = _instance()
    return encode_p_data(1, (3, encode_store_request(each)), (2, each.data_set))


def _instance() -> Encoded:
    return Encoded(MR.decode(), "1.2.3.4.5", ExplicitVRLittleEndian, split(files()[1])[1])


@st.composite
def _fragments(draw: DrawFn) -> bytes:
    """Return presentation data values with any control header, context and stated length."""
    each, found = _instance(), b""
    for content in (encode_store_request(each), each.data_set):
        cut = draw(st.integers(0, len(content)))
        for part in (content[:cut], content[cut:]):
            length, context, control = draw(lengths(len(part) + 2)), draw(st.sampled_from((1, 1, 3, 2, 255))), 0
            control = draw(st.sampled_from((0, 1, 2, 3, 0xFF)))
            found += struct.pack(">LBB", length, context, control) + part
    return struct.pack(">BBL", 4, 0, draw(lengths(len(found)))) + found


@st.composite
def _pdus(draw: DrawFn) -> bytes:
    content = draw(st.binary(max_size=80))
    return struct.pack(">BBL", draw(st.integers(0, 9)), draw(st.integers(0, 1)), draw(lengths(len(content)))) + content
