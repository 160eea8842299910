"""Limits of failed log-ins by account and by address, so that nobody tries many passwords.

Attempts count before the password is checked, so that parallel ones count, too. The counts are of this process. An
account has a low limit at one address and a high one at all: nobody locks another out from elsewhere with few attempts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

__all__ = ["LoginThrottle"]

_WINDOW = timedelta(minutes=15)
_MOST_AT_ONE_ADDRESS, _MOST_BY_ACCOUNT, _MOST_BY_ADDRESS = 10, 100, 40
_MOST_KEYS = 20_000

Key = tuple[str, ...]


class LoginThrottle:
    """Attempts of the last 15 minutes: at most 10 for one name from one address, 100 for one name, 40 from one address.

    Log-ins through the provider, whose name is not known yet, count by themselves: 40 from one address.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._attempts: dict[Key, list[datetime]] = {}
        self._listed_at: dict[Key, datetime] = {}

    def admit(self, account: str | None, address: str) -> int:
        """Count an attempt and return 0, or return the seconds after which one is admitted.

        ``account`` None: one at the provider.
        """
        now, keys = self._now(), _make_keys(account, address)
        wait_s = max(self._find_wait_s(key, most, now) for key, most in keys.items())
        if wait_s == 0:
            for key in keys:
                self._attempts[key] = [*self._attempts.pop(key, []), now]
            while len(self._attempts) > _MOST_KEYS:
                del self._attempts[next(iter(self._attempts))]
        return wait_s

    def forgive(self, account: str | None, address: str) -> None:
        """Forget an attempt that was right, and the wrong ones for its account at this address."""
        if account is not None:
            self._attempts.pop(("account and address", account, address), None)
        for key in _make_keys(account, address):
            if attempts := self._attempts.get(key):
                attempts.pop()

    def list_new_closures(self, account: str | None, address: str) -> list[str]:
        """Return the limits that refuse this attempt, each once in 15 minutes."""
        now = self._now()
        limits = _make_keys(account, address)
        found = [key for key, most in limits.items() if self._find_wait_s(key, most, now)]
        new = [key for key in found if now >= self._listed_at.get(key, now - _WINDOW) + _WINDOW]
        for key in new:
            self._listed_at.pop(key, None)  # the newest last
            self._listed_at[key] = now
        while len(self._listed_at) > _MOST_KEYS:
            del self._listed_at[next(iter(self._listed_at))]
        return [f"{limits[key]} attempts by {key[0]}" for key in new]

    def _find_wait_s(self, key: Key, most: int, now: datetime) -> int:
        attempts = [at for at in self._attempts.get(key, []) if at > now - _WINDOW]
        if key in self._attempts:
            self._attempts[key] = attempts
        return int((attempts[-most] + _WINDOW - now).total_seconds()) + 1 if len(attempts) >= most else 0


def _make_keys(account: str | None, address: str) -> dict[Key, int]:
    if account is None:
        return {("provider", address): _MOST_BY_ADDRESS}
    return {
        ("account and address", account, address): _MOST_AT_ONE_ADDRESS,
        ("account", account): _MOST_BY_ACCOUNT,
        ("address", address): _MOST_BY_ADDRESS,
    }
