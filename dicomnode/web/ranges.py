"""Answers of known length, of which a client may request one range of bytes (RFC 9110 14).

Requests for several ranges, and conditional ones, get the complete content, as the standard allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dicomnode import decoding
from dicomnode.web.multipart import start_early

__all__ = ["bytes_response", "range_response"]

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


def range_response(
    request: Request, size: int, read: Callable[[int, int], Iterator[bytes]], content_type: str
) -> Response:
    """Return a response with the bytes of ``read(start, stop)``: all, or the requested range. Raises 416."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": content_type}
    requested = _parse_range(request, size)
    start, stop = requested or (0, size)
    if requested:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    return StreamingResponse(start_early(read(start, stop)), 206 if requested else 200, headers)


def bytes_response(request: Request, content: bytes, content_type: str) -> Response:
    """Return a response with bytes in memory: all, or the requested range. Raises NodeBusy."""
    return range_response(
        request, len(content), lambda start, stop: decoding.stream([content[start:stop]]), content_type
    )


def _parse_range(request: Request, size: int) -> tuple[int, int] | None:
    """Parse the requested range: first byte and the one after the last, None for all. Raises 416 for an empty range."""
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if request.method != "GET" or match is None or "if-range" in request.headers:
        return None
    first, last = match.groups()
    if (not first and not last) or (first and last and int(last) < int(first)):
        return None
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HTTPException(416, f"the content has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, stop
