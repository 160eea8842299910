"""DIMSE command sets, and the identifiers of queries and retrievals behind them, at a running receiver."""

from __future__ import annotations

import struct

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.changes import change
from tests.fuzz.instances import data_sets
from tests.fuzz.receiver import converse, encode_command
from tests.raw_associations import MR, VERIFICATION
from tests.sending import encode_p_data

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS: tuple[type[Exception], ...] = ()
_CLASSES = tuple(b"1.2.840.10008.5.1.4.1.2.%d.%d" % (root, kind) for root in (1, 2) for kind in (1, 2, 3))
_COMMANDS = (0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0FFF, 0x8001, 0x8010, 0x8020, 0x8021, 0x8030, 0x0100, 0x0140)
_NUMBERS = (0x0000, 0x0002, 0x0003, 0x0100, 0x0110, 0x0120, 0x0600, 0x0700, 0x0800, 0x0900, 0x0901, 0x0902, 0x1000,
            0x1001, 0x1005, 0x1020, 0x1030, 0x1031)  # fmt: skip
_ODD = (
    b"", b"\0", b"\0\0", b"\1\0", b"\1\1", b"\xff\xff", b"\xff" * 70, b"A\nB\0", b"../../etc\0",
    b"'; DROP TABLE x;--", b"1.2.3\0", b"9" * 64, b"\x1b$B!",
)  # fmt: skip
_KEYS = (0x00080005, 0x00080018, 0x00080020, 0x00080052, 0x00080060, 0x00080061, 0x00100010, 0x00100020, 0x0020000D,
         0x0020000E, 0x00201208, 0x00400275, 0x00081190)  # fmt: skip
_VALUES = (
    b"", b"STUDY ", b"SERIES", b"IMAGE ", b"PATIENT ", b"*", b"?*?*?*?*", b"1.2.3\0", b"1.2\\1.3\\1.4", b"20260101-",
    b"-", b"20269999-20260101", b"%_%", b"' OR 1=1 --", b"\xff\xfe", b"ISO 2022 IR 87\\X", b"\0", b"A" * 300,
)  # fmt: skip


def target(data: bytes) -> None:
    """``data``: what the peer sends behind its association request."""
    converse(data)


def examples() -> SearchStrategy[bytes]:
    """Messages of every command with right, odd and missing elements and any identifier, changed at their bytes."""
    return st.lists(_messages(), min_size=1, max_size=3).map(b"".join).flatmap(change)


@st.composite
def _messages(draw: DrawFn) -> bytes:
    sop_class = draw(st.sampled_from((MR, VERIFICATION, *_CLASSES)))
    elements = {0x0002: sop_class + b"\0" * (len(sop_class) % 2)}
    elements |= {0x0100: struct.pack("<H", draw(st.sampled_from(_COMMANDS))), 0x0110: b"\7\0", 0x0700: b"\0\0"}
    elements |= {0x0600: b"PACS", 0x0800: draw(st.sampled_from((b"\0\0", b"\1\1"))), 0x1000: b"1.2.3\0"}
    for number in draw(st.lists(st.sampled_from(_NUMBERS), max_size=3)):
        elements[number] = draw(st.sampled_from(_ODD))
    for number in draw(st.lists(st.sampled_from(sorted(elements)), max_size=1)):
        del elements[number]
    data = draw(st.one_of(_identifiers(), data_sets(), st.just(b"")))
    fragments = [(3, encode_command(elements)), (2, data)][: draw(st.sampled_from((1, 2, 2)))]
    return encode_p_data(draw(st.sampled_from((1, 3, 5, 7, 9, 11))), *fragments)


@st.composite
def _identifiers(draw: DrawFn) -> bytes:
    keys = draw(st.dictionaries(st.sampled_from(_KEYS), st.sampled_from(_VALUES), max_size=5))
    keys.setdefault(0x00080052, b"STUDY ")
    keys.setdefault(0x0020000D, b"1.2.3\0")
    return b"".join(
        struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value for tag, value in sorted(keys.items())
    )
