"""Web addresses in node.toml, and the hosts and schemes that keep the traffic private."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

__all__ = ["WebAddress", "check_web_address", "is_encrypted", "is_loopback"]


def check_web_address(value: str) -> str:
    """Return the address. Raises ValueError where it is no http or https URL, or holds a user or password."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("an address begins with http:// or https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no user and no password: secrets are files")
    return value


WebAddress = Annotated[str, AfterValidator(check_web_address)]


def is_encrypted(url: str) -> bool:
    """Return whether nobody between this machine and the address can read what is sent: https, or loopback."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Return whether the host is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
