"""Requests of this node to web servers: over TLS where the address says so, to that host only."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

__all__ = ["describe_error", "host_of", "make_opener"]


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


def make_opener(ca_file: Path | None) -> urllib.request.OpenerDirector:
    """Return an opener that trusts the authorities in ``ca_file``, or those of this machine.

    Raises OSError for a file that cannot be read or has no certificate.
    """
    tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    return urllib.request.build_opener(tls, _NoRedirection)


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
