"""The callers that this process has refused, for the page of the senders; bounded, whatever calls."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime

__all__ = ["RefusedCaller", "RefusedCallers"]

_MOST = 200


@dataclass(frozen=True)
class RefusedCaller:
    """A caller with its AE title ("" before a request), the reason of its refusals, and their number and times."""

    address: str
    ae_title: str
    reason: str
    count: int
    first_at: datetime
    last_at: datetime


class RefusedCallers:
    """The latest refused callers of a receiving process, on any thread; they are forgotten with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers: OrderedDict[tuple[str, str, str], RefusedCaller] = OrderedDict()

    def record(self, address: str, ae_title: str, reason: str, at: datetime) -> None:
        """Record one refusal."""
        key = (address, ae_title, reason)
        with self._lock:
            caller = self._callers.pop(key, RefusedCaller(*key, 0, at, at))
            self._callers[key] = replace(caller, count=caller.count + 1, last_at=at)
            while len(self._callers) > _MOST:
                self._callers.popitem(last=False)

    def list(self) -> list[RefusedCaller]:
        """Return the refused callers, the latest first."""
        with self._lock:
            return list(reversed(self._callers.values()))
