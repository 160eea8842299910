"""Bodies of STOW-RS: parts of a multipart message, in pieces of any size."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from starlette.exceptions import HTTPException

from dicomnode.web.multipart import MultipartReader
from tests.fuzz.changes import change
from tests.web_node import BOUNDARY, encode_multipart

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (HTTPException,)
_HEADERS = (
    "", "Content-Type: application/dicom", "content-type : X", "Content-Length: 99999999999999999999", "X" * 9000,
    "Content-Type: a\r\n b", ": x", "Content-Disposition: form-data; filename=../../x", "\0: \0", "A: é",
)  # fmt: skip
_BODIES = (b"", b"x", b"\r\n", b"--", f"\r\n--{BOUNDARY}".encode(), f"--{BOUNDARY}--".encode(), bytes(5000), b"\r" * 99)


class _Part:
    def __init__(self) -> None:
        self.size, self.is_finished = 0, False

    def write(self, piece: memoryview) -> None:
        assert not self.is_finished
        self.size += len(piece)

    def finish(self) -> None:
        assert not self.is_finished
        self.is_finished = True


def target(data: bytes) -> None:
    """``data``: a byte with the size of the pieces, then the body."""
    parts: list[_Part] = []

    def open_part(content_type: str) -> _Part:
        assert all(part.is_finished for part in parts)
        parts.append(_Part())
        return parts[-1]

    reader, size = MultipartReader(BOUNDARY.encode(), open_part), (data[0] if data else 0) + 1
    for at in range(1, len(data), size):
        reader.write(data[at : at + size])
    assert sum(part.size for part in parts) <= len(data)
    assert not reader.is_complete or all(part.is_finished for part in parts)


def examples() -> SearchStrategy[bytes]:
    """Messages with odd headers, bodies and boundaries, changed at their bytes."""
    whole = b"\x0f" + encode_multipart([b"one", b"two"])
    return st.one_of(_messages(), st.just(whole)).flatmap(lambda content: change(content, [whole]))


@st.composite
def _messages(draw: DrawFn) -> bytes:
    found = draw(st.sampled_from((b"\0", b"\x0f", b"\xff"))) + draw(st.sampled_from((b"", b"preamble\r\n", b"\r\n")))
    for _ in range(draw(st.integers(0, 4))):
        headers = "\r\n".join(draw(st.lists(st.sampled_from(_HEADERS), max_size=3)))
        found += f"--{BOUNDARY}".encode() + draw(st.sampled_from((b"\r\n", b" \t\r\n", b"\n", b"x\r\n")))
        found += headers.encode() + draw(st.sampled_from((b"\r\n\r\n", b"\r\n", b"\n\n")))
        found += draw(st.sampled_from(_BODIES)) + draw(st.sampled_from((b"\r\n", b"\n", b"")))
    return found + draw(st.sampled_from((f"--{BOUNDARY}--\r\n".encode(), b"", f"--{BOUNDARY}".encode())))
