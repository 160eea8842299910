"""How many bytes of decoded objects may wait in this process for clients to take them."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

from dicomnode.errors import NodeBusy

__all__ = ["Budget"]

_WAIT_S = 20.0
_PIECE = 1 << 20


class Budget:
    """So many bytes, shared by all; who wants some waits until others give theirs back."""

    def __init__(self, total: int) -> None:
        self._total, self._left = total, total
        self._changed = threading.Condition()

    @property
    def left(self) -> int:
        """Bytes that nobody has."""
        return self._left

    def sent(self, pieces: list[bytes]) -> Generator[bytes, None, None]:
        """The pieces, at most a MiB each, which are let go one by one. Raises NodeBusy before the first."""
        size = min(sum(map(len, pieces)), self._total)
        self._take(size)
        try:
            for at in range(len(pieces)):
                piece, pieces[at] = memoryview(pieces[at]), b""
                for start in range(0, len(piece), _PIECE):
                    yield bytes(piece[start : start + _PIECE])
        finally:
            self._give_back(size)

    def _take(self, size: int) -> None:
        deadline = time.monotonic() + _WAIT_S
        with self._changed:
            while self._left < size:
                if not self._changed.wait(deadline - time.monotonic()) and self._left < size:
                    raise NodeBusy("as much is on its way to clients as the node may hold; ask again in a while")
            self._left -= size

    def _give_back(self, size: int) -> None:
        with self._changed:
            self._left += size
            self._changed.notify_all()
