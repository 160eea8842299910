"""Cache of answers, limited by their bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from dicomnode.errors import InputRefused

__all__ = ["AnswerCache"]

_ENTRY_BYTES = 512
"""Bytes that an entry takes besides its answer."""


class AnswerCache:
    """Cache of the answers used last; a refusal is an answer, too."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, bytes | str] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Size of all entries in bytes."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return the answer of the key, from the cache or by ``make``. Raises InputRefused, also from the cache."""
        with self._lock:
            answer = self._answers.get(key)
            if answer is not None:
                self._answers.move_to_end(key)
        if answer is None:
            answer = _make_answer(make)
            self._put(key, answer)
        if isinstance(answer, str):
            raise InputRefused(answer)
        return answer

    def _put(self, key: Hashable, answer: bytes | str) -> None:
        if len(answer) > self._most // 8:
            return
        with self._lock:
            self._bytes += _size(answer) - (_size(self._answers[key]) if key in self._answers else 0)
            self._answers[key] = answer
            while self._bytes > self._most:
                self._bytes -= _size(self._answers.popitem(last=False)[1])


def _make_answer(make: Callable[[], bytes]) -> bytes | str:
    try:
        return make()
    except InputRefused as error:
        return str(error)


def _size(answer: bytes | str) -> int:
    return len(answer) + _ENTRY_BYTES
