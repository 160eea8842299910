"""multipart/related (RFC 2387) as it is sent, and as it comes in, in pieces of any size."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

__all__ = ["Part", "Parts", "Receiver", "answer", "begun", "boundary_of"]

_PARAMETER = re.compile(r';\s*([\w-]+)\s*=\s*("[^"]*"|[^;\s]*)')
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046 5.1.1, but longer than its 70 characters: Orthanc's plug-in sends 73."""
_LONGEST_PREAMBLE = 1 << 16


@dataclass(frozen=True)
class Part:
    """One part of an answer: its Content-Type, where it is from, and its bytes."""

    content_type: str
    location: str
    pieces: Iterable[bytes]


def answer(parts: Iterable[Part], media_type: str, status: int = 200) -> StreamingResponse:
    """A response whose parts are read when they are sent."""
    boundary = f"dicomnode-{secrets.token_hex(16)}"
    content_type = f'multipart/related; type="{media_type}"; boundary={boundary}'
    return StreamingResponse(begun(_encoded(parts, boundary), 2), status, {"Content-Type": content_type})


def begun(pieces: Iterator[bytes], count: int = 1) -> Iterator[bytes]:
    """The same, of which the first few are made now: what goes wrong with them is told with a status."""
    first = list(islice(pieces, count))
    return chain(first, pieces)


def _encoded(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    before = ""
    for part in parts:
        location = f"Content-Location: {part.location}\r\n" if part.location else ""
        yield f"{before}--{boundary}\r\nContent-Type: {part.content_type}\r\n{location}\r\n".encode("latin-1")
        yield from part.pieces
        before = "\r\n"
    yield f"{before}--{boundary}--\r\n".encode("latin-1")


def boundary_of(content_type: str, part_type: str) -> bytes:
    """The boundary of a request body of such parts. Raises 415 or 400."""
    media_type = content_type.partition(";")[0].strip().lower()
    parameters = {name.lower(): value.strip('"') for name, value in _PARAMETER.findall(content_type)}
    if media_type != "multipart/related" or parameters.get("type", part_type).lower() != part_type:
        raise HTTPException(415, f'the body must be multipart/related; type="{part_type}"')
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise HTTPException(400, "the Content-Type names no boundary")
    return bytes(boundary, "ascii")


class Receiver(Protocol):
    """Where the content of one part goes."""

    def write(self, piece: memoryview) -> None: ...
    def finish(self) -> None: ...


class Opener(Protocol):
    """Makes a receiver for a part of that Content-Type."""

    def __call__(self, content_type: str) -> Receiver: ...


_NO_MESSAGE = HTTPException(400, "the body is not a multipart message with the boundary it announced")


class Parts:
    """Takes a body in pieces and gives the content of each part to a receiver of its own."""

    def __init__(self, boundary: bytes, opened: Opener) -> None:
        self._open, self._receiver = opened, None  # type: tuple[Opener, Receiver | None]
        self._name, self._value = bytearray(), bytearray()
        self._content_type = ""
        self._delimiter = b"--" + boundary
        self._first = re.compile(rb"\r\n" + re.escape(self._delimiter) + rb"(?:[ \t]*(\r\n)|(?=--))")
        self._preamble: bytearray | None = bytearray(b"\r\n")
        self.is_whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._whole,
            },
        )

    def write(self, piece: bytes) -> None:
        """The next piece of the body. Raises 400 when it is no multipart message with that boundary."""
        if self.is_whole:
            return  # what follows the last boundary is to be ignored (RFC 2046 5.1.1)
        try:
            self._parser.write(piece if self._preamble is None else self._after_preamble(self._preamble, piece))
        except FormParserError:
            raise _NO_MESSAGE from None

    def _after_preamble(self, preamble: bytearray, piece: bytes) -> bytes:
        """The body from its first delimiter on, without the blanks that may follow it (RFC 2046 5.1.1)."""
        preamble += piece
        found = self._first.search(preamble)
        if found is None and len(preamble) > _LONGEST_PREAMBLE:
            raise _NO_MESSAGE
        if found is None:
            return b""
        self._preamble = None
        return self._delimiter + (found[1] or b"") + bytes(preamble[found.end() :])

    def _begin(self) -> None:
        self._content_type = ""

    def _header(self) -> None:
        if self._name.strip().lower() == b"content-type":
            self._content_type = self._value.decode("latin-1").strip()
        self._name.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        self._receiver = self._open(self._content_type)

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._receiver is not None
        self._receiver.write(memoryview(data)[start:end])

    def _end(self) -> None:
        assert self._receiver is not None
        self._receiver.finish()
        self._receiver = None

    def _whole(self) -> None:
        self.is_whole = True
