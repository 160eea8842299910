"""Notifications by POST to a web address."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from dicomnode.errors import NotSent
from dicomnode.http_requests import describe_error, host_of, make_opener

__all__ = ["make_headers", "post", "sign"]


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
    opener = make_opener(ca_file)
    try:
        with opener.open(request, timeout=timeout_s):
            return
    except urllib.error.HTTPError as error:
        error.close()
        more = ", a redirection, which is not followed" if 300 <= error.code < 400 else ""
        raise NotSent(f"{host_of(url)} answers {error.code}{more}", reached=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise NotSent(f"{host_of(url)}: {describe_error(error)}", reached=False) from None
