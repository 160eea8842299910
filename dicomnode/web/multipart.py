"""multipart/related (RFC 2387): streamed answers, and an incremental reader of request bodies."""

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
from starlette.requests import Request
from starlette.responses import StreamingResponse

from dicomnode.web.media_types import parse_content_type

__all__ = ["MultipartReader", "Part", "PartReceiver", "multipart_response", "parse_boundary", "start_early"]

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")
"""Boundary of RFC 2046 5.1.1, but longer than its 70 characters: Orthanc's plug-in sends 73."""
_MOST_PREAMBLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Part:
    """A part of an answer: Content-Type, Content-Location and bytes."""

    content_type: str
    location: str
    pieces: Iterable[bytes]


def multipart_response(parts: Iterable[Part], media_type: str, status: int = 200) -> StreamingResponse:
    """Return a streamed response whose parts are read while they are sent."""
    boundary = f"dicomnode-{secrets.token_hex(16)}"
    content_type = f'multipart/related; type="{media_type}"; boundary={boundary}'
    return StreamingResponse(start_early(_encode_parts(parts, boundary), 2), status, {"Content-Type": content_type})


def start_early(pieces: Iterator[bytes], count: int = 1) -> Iterator[bytes]:
    """Return the same pieces with the first few already made, so that their errors still become a status."""
    first = list(islice(pieces, count))
    return chain(first, pieces)


def _encode_parts(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    before = ""
    for part in parts:
        location = f"Content-Location: {part.location}\r\n" if part.location else ""
        yield f"{before}--{boundary}\r\nContent-Type: {part.content_type}\r\n{location}\r\n".encode("latin-1")
        yield from part.pieces
        before = "\r\n"
    yield f"{before}--{boundary}--\r\n".encode("latin-1")


def parse_boundary(request: Request, part_type: str) -> bytes:
    """Return the boundary of a request body with parts of that type. Raises 415 or 400."""
    media_type, parameters = parse_content_type(request)
    if media_type != "multipart/related" or parameters.get("type", part_type).lower() != part_type:
        raise HTTPException(415, f'the body must be multipart/related; type="{part_type}"')
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise HTTPException(400, "the Content-Type names no boundary")
    return bytes(boundary, "ascii")


class PartReceiver(Protocol):
    """Receiver of the content of one part."""

    def write(self, piece: memoryview) -> None: ...
    def finish(self) -> None: ...


class PartOpener(Protocol):
    """Function that creates the receiver for a part of a Content-Type."""

    def __call__(self, content_type: str) -> PartReceiver: ...


_MALFORMED = HTTPException(400, "the body is not a multipart message with the boundary of its Content-Type")


class MultipartReader:
    """Reader that takes a body in pieces and passes the content of each part to a receiver of its own."""

    def __init__(self, boundary: bytes, open_part: PartOpener) -> None:
        self._open, self._receiver = open_part, None  # type: tuple[PartOpener, PartReceiver | None]
        self._name, self._value = bytearray(), bytearray()
        self._content_type = ""
        self._delimiter = b"--" + boundary
        self._first = re.compile(rb"\r\n" + re.escape(self._delimiter) + rb"(?:[ \t]*(\r\n)|(?=--))")
        self._preamble: bytearray | None = bytearray(b"\r\n")
        self.is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_receiver,
                "on_part_data": self._write_data,
                "on_part_end": self._end_part,
                "on_end": self._complete,
            },
        )

    def write(self, piece: bytes) -> None:
        """Read the next piece of the body. Raises 400 when it is no multipart message with the boundary."""
        if self.is_complete:
            return  # the epilogue is ignored (RFC 2046 5.1.1)
        try:
            self._parser.write(piece if self._preamble is None else self._after_preamble(self._preamble, piece))
        except FormParserError:
            raise _MALFORMED from None

    def _after_preamble(self, preamble: bytearray, piece: bytes) -> bytes:
        """Return the body from its first delimiter on, without the blanks that may follow it (RFC 2046 5.1.1)."""
        preamble += piece
        found = self._first.search(preamble)
        if found is None and len(preamble) > _MOST_PREAMBLE_BYTES:
            raise _MALFORMED
        if found is None:
            return b""
        self._preamble = None
        return self._delimiter + (found[1] or b"") + bytes(preamble[found.end() :])

    def _begin_part(self) -> None:
        self._content_type = ""

    def _end_header(self) -> None:
        if self._name.strip().lower() == b"content-type":
            self._content_type = self._value.decode("latin-1").strip()
        self._name.clear()
        self._value.clear()

    def _open_receiver(self) -> None:
        self._receiver = self._open(self._content_type)

    def _write_data(self, data: bytes, start: int, end: int) -> None:
        assert self._receiver is not None
        self._receiver.write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        assert self._receiver is not None
        self._receiver.finish()
        self._receiver = None

    def _complete(self) -> None:
        self.is_complete = True
