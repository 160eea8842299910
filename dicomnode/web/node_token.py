"""The node's token, and the sessions that were opened with it.

The cookie of a session is a random name, not the token: this process keeps sessions until log-out, expiry or its own
end, so that log-out is effective at once; a signed cookie (itsdangerous) would stay valid.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

from dicomnode.config import Config
from dicomnode.config.secrets import read_secret
from dicomnode.errors import ConfigError

__all__ = ["SESSION_LENGTH", "Token", "read_token"]

SESSION_LENGTH = timedelta(hours=12)
_LEAST_TOKEN_LENGTH = 16
_MOST_SESSIONS = 1000

Clock = Callable[[], datetime]


class Token:
    """The node's token and the sessions that were opened with it."""

    def __init__(self, secret: str, now: Clock) -> None:
        self._secret, self._now = secret.encode(), now
        self._sessions: dict[bytes, datetime] = {}

    def matches(self, credential: str) -> bool:
        """Return whether the credential is the token, in constant time."""
        return hmac.compare_digest(credential.encode(), self._secret)

    def open_session(self) -> str:
        """Open a session of SESSION_LENGTH and return its cookie."""
        now = self._now()
        for name in [name for name, until in self._sessions.items() if until <= now]:
            del self._sessions[name]
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(32)
        self._sessions[_digest(cookie)] = now + SESSION_LENGTH
        return cookie

    def is_session(self, credential: str) -> bool:
        """Return whether the credential is the cookie of an open session."""
        until = self._sessions.get(_digest(credential))
        return until is not None and self._now() < until

    def close_session(self, credential: str) -> None:
        """Close the session of a cookie."""
        self._sessions.pop(_digest(credential), None)


def _digest(cookie: str) -> bytes:
    """Return the key of a session: a digest, so that the time of the look-up reveals nothing about the cookie."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()


def read_token(config: Config, now: Clock) -> Token | None:
    """Read the token from the file that the configuration names, if any. Raises ConfigError for an unusable file."""
    if config.web.token_file is None:
        return None
    path = config.web.token_file
    secret = read_secret(path, "web.token_file")
    if len(secret) < _LEAST_TOKEN_LENGTH or not secret.isascii() or not secret.isprintable():
        header = f"a token of at least {_LEAST_TOKEN_LENGTH} printable ASCII characters"
        raise ConfigError(f"web.token_file: {path} must hold {header}; 'openssl rand -hex 32' makes one")
    return Token(secret, now)
