"""A-ASSOCIATE-RQ: what the node makes of a request is one that pynetdicom decodes."""

from __future__ import annotations

import struct

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pynetdicom.pdu import A_ASSOCIATE_RQ

from dicomnode.ingest.requests import UnreadableError, normalise_request
from tests.fuzz.changes import change, lengths
from tests.raw_associations import EXPLICIT, MR, VERIFICATION, AssociateRequest, encode_context_item

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (UnreadableError,)
_KINDS = (0x10, 0x20, 0x30, 0x40, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x21, 0)
_TEXTS = (
    b"",
    MR,
    VERIFICATION,
    EXPLICIT,
    b"1.2.840.10008.3.1.1.1",
    b"1." * 40,
    b"A" * 300,
    b"\xff\xfe",
    b"1.2\n",
    b"\0",
)
_TITLES = (b"", b"SCANNER", b" " * 16, bytes(16), b"A\\B", b"A\nB", "MÜLLER".encode(), b"\xff" * 16, b"X" * 20)


def target(data: bytes) -> None:
    """``data``: the body of the PDU, behind its header of six bytes."""
    encoded, _ = normalise_request(data, "DICOMNODE")
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(encoded)
    assert pdu.to_primitive().calling_ae_title


def examples() -> SearchStrategy[bytes]:
    """Requests part by part, then changed at their bytes."""
    return _requests().flatmap(change)


@st.composite
def _items(draw: DrawFn, depth: int = 0) -> bytes:
    """Return an item, whose value may be items."""
    inner = b"".join(draw(st.lists(_items(depth + 1), max_size=3))) if depth < 2 else b""
    prefix = draw(st.sampled_from((b"", b"\1\0\0\0", struct.pack(">H", len(MR)))))
    value = prefix + (inner or draw(st.sampled_from(_TEXTS)))
    return struct.pack(">BBH", draw(st.sampled_from(_KINDS)), 0, draw(lengths(len(value))) % 65536) + value


@st.composite
def _requests(draw: DrawFn) -> bytes:
    request = AssociateRequest(
        version=draw(st.sampled_from((1, 1, 1, 0, 3, 0xFFFF))),
        called=draw(st.sampled_from(_TITLES)),
        calling=draw(st.sampled_from(_TITLES)),
        contexts=(encode_context_item(draw(st.integers(0, 255))), *draw(st.lists(_items(), max_size=4))),
        user=tuple(draw(st.lists(_items(1), max_size=4))),
        tail=draw(st.sampled_from((b"", b"", bytes(3), b"\x20"))),
    )
    return request.body
