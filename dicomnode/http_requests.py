"""Requests of this node to web servers: over TLS where the address says so, to that host only, in one time limit.

The time limit of urllib is one for each piece that arrives: a server that sends a byte now and then never ends.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from time import monotonic
from typing import IO, Any
from urllib.parse import urlsplit

__all__ = ["describe_error", "host_of", "make_opener"]


_TIMEOUT_S = 60.0
"""Time limit of requests that state none."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Handler that follows no redirection: a request is for one host only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        return None


class _LimitedReader(io.RawIOBase):
    """Reader of a socket until a moment of the monotonic clock, at which it raises TimeoutError."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until_s: float) -> None:
        self._raw, self._sock, self._until_s = raw, sock, until_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._until_s - monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer is not complete in time")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _LimitedResponse(http.client.HTTPResponse):
    """Answer whose head and body together arrive before ``until_s``."""

    def __init__(self, sock: socket.socket, *args: Any, until_s: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_LimitedReader(self.fp.detach(), sock, until_s))


class _LimitedConnection(http.client.HTTPConnection):
    """Connection whose ``timeout`` is that of the whole request, from here to the end of the answer."""

    def __init__(self, host: str, *, timeout: float = _TIMEOUT_S, **options: Any) -> None:
        super().__init__(host, timeout=timeout, **options)
        self.response_class = partial(_LimitedResponse, until_s=monotonic() + timeout)  # type: ignore[assignment]


class _LimitedTlsConnection(_LimitedConnection, http.client.HTTPSConnection):
    """The same over TLS."""


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_LimitedConnection, req)


class _TlsHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._own_context = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_LimitedTlsConnection, req, context=self._own_context)


def make_opener(ca_file: Path | None) -> urllib.request.OpenerDirector:
    """Return an opener that trusts the authorities in ``ca_file``, or those of this machine.

    The ``timeout`` of a request is that of the whole answer, read to its end.
    Raises OSError for a file that cannot be read or has no certificate.
    """
    context = ssl.create_default_context(cafile=ca_file)
    return urllib.request.build_opener(_Handler(), _TlsHandler(context), _NoRedirection)


def host_of(url: str) -> str:
    """Return the host of the URL; its path may be a secret."""
    return urlsplit(url).netloc


def describe_error(error: Exception) -> str:
    """Return why a server could not be reached, without the address."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__
