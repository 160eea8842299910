"""Passwords as argon2id hashes (RFC 9106), and the random credentials of sessions and tokens.

A random credential of 256 bits cannot be guessed, so that its SHA-256 is enough for the database.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from dicomnode.errors import InputRefused

__all__ = ["LEAST_LENGTH", "digest", "hash_password", "make_credential", "verify"]

LEAST_LENGTH = 12
_MOST_LENGTH = 256
_HASHER = PasswordHasher()  # RFC 9106, section 4, the second recommended choice: 64 MiB, three passes


def hash_password(password: str) -> str:
    """Return the hash of a new password. Raises InputRefused for one that is too short or too long."""
    if not LEAST_LENGTH <= len(password) <= _MOST_LENGTH:
        raise InputRefused(f"a password has {LEAST_LENGTH} to {_MOST_LENGTH} characters")
    if password != password.strip():
        raise InputRefused("a password neither begins nor ends with white space: the form does not send it")
    return _HASHER.hash(_normalize(password))


def verify(password_hash: str, password: str) -> bool:
    """Return whether the password is the one of the hash; "" as hash matches none and takes as long."""
    try:
        _HASHER.verify(password_hash or _hash_of_nobody(), _normalize(password))
    except (Argon2Error, InvalidHashError):
        return False
    return bool(password_hash)


def make_credential() -> str:
    """Return a random credential for a cookie or a token."""
    return secrets.token_urlsafe(32)


def digest(credential: str) -> str:
    """Return the SHA-256 of a credential, which is what the database holds."""
    return hashlib.sha256(credential.encode("utf-8", "surrogateescape")).hexdigest()


def _normalize(password: str) -> bytes:
    """Return the bytes of a password: keyboards write one letter in several ways (NIST SP 800-63B 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


@cache
def _hash_of_nobody() -> str:
    return _HASHER.hash(secrets.token_bytes(32))
