"""Notifications by POST to a web address."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from dicomnode.errors import NotSent

__all__ = ["host_of", "make_headers", "post", "sign"]


def sign(body: bytes, secret: bytes) -> str:
    """Return the header ``Dicomnode-Signature``: HMAC-SHA256 (RFC 2104) over the body's bytes."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


def make_headers(event: str, event_id: str, body: bytes, secret: bytes | None) -> dict[str, str]:
    """Return the headers; the ID is the same in every attempt, so that a receiver recognizes a repetition."""
    headers = {"Content-Type": "application/json", "User-Agent": "dicomnode"}
    headers |= {"Dicomnode-Event": event, "Dicomnode-Event-Id": event_id}
    return headers if secret is None else headers | {"Dicomnode-Signature": sign(body, secret)}


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, ca_file: Path | None) -> None:
    """Post the body; only 2xx is success, and redirections are not followed. Raises NotSent."""
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
    tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    try:
        with urllib.request.build_opener(tls, _NoRedirection).open(request, timeout=timeout_s):
            return
    except urllib.error.HTTPError as error:
        error.close()
        more = ", a redirection, which is not followed" if 300 <= error.code < 400 else ""
        raise NotSent(f"{host_of(url)} answers {error.code}{more}", reached=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise NotSent(f"{host_of(url)}: {_describe_error(error)}", reached=False) from None


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Handler that follows no redirection: a notification is for one host only."""

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


def host_of(url: str) -> str:
    """Return the host of the URL; its path may be a secret."""
    return urlsplit(url).netloc


def _describe_error(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__
