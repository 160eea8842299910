"""Answers of known length, of which a client may ask for one range of bytes (RFC 9110 14).

Several ranges, and a range under a condition, are answered with the whole, as the standard allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dicomnode import decoding
from dicomnode.web.multipart import begun

__all__ = ["answer", "of_bytes"]

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


def answer(request: Request, size: int, read: Callable[[int, int], Iterator[bytes]], content_type: str) -> Response:
    """The bytes that ``read(start, stop)`` gives, all or the range that is asked for. Raises 416."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": content_type}
    wanted = _wanted(request, size)
    start, stop = wanted or (0, size)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    return StreamingResponse(begun(read(start, stop)), 206 if wanted else 200, headers)


def of_bytes(request: Request, content: bytes, content_type: str) -> Response:
    """The same for what is in memory. Raises NodeBusy."""
    return answer(request, len(content), lambda start, stop: decoding.stream([content[start:stop]]), content_type)


def _wanted(request: Request, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for the whole. Raises 416 where no byte is meant."""
    stated = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if request.method != "GET" or stated is None or "if-range" in request.headers:
        return None
    first, last = stated.groups()
    if (not first and not last) or (first and last and int(last) < int(first)):
        return None
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HTTPException(416, f"there are {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, stop
