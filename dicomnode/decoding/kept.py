"""Answers that are remembered, as many as a number of bytes allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from dicomnode.errors import InputRefused

__all__ = ["Kept"]

_OF_A_KEY = 512
"""Bytes that an entry takes besides its answer."""


class Kept:
    """The answers that were asked for last; refusals are answers too."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, bytes | str] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The answer of that key, made where it is not there. Raises InputRefused, also when it did so before."""
        with self._lock:
            found = self._answers.get(key)
            if found is not None:
                self._answers.move_to_end(key)
        if found is None:
            found = _made(make)
            self._put(key, found)
        if isinstance(found, str):
            raise InputRefused(found)
        return found

    def _put(self, key: Hashable, answer: bytes | str) -> None:
        if len(answer) > self._most // 8:
            return
        with self._lock:
            self._bytes += _size(answer) - (_size(self._answers[key]) if key in self._answers else 0)
            self._answers[key] = answer
            while self._bytes > self._most:
                self._bytes -= _size(self._answers.popitem(last=False)[1])


def _made(make: Callable[[], bytes]) -> bytes | str:
    try:
        return make()
    except InputRefused as error:
        return str(error)


def _size(answer: bytes | str) -> int:
    return len(answer) + _OF_A_KEY
