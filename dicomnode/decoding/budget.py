"""Limit of the bytes of decoded objects that wait in this process for clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

from dicomnode.errors import NodeBusy

__all__ = ["Budget"]

_WAIT_S = 20.0
_PIECE = 1 << 20


class Budget:
    """A number of bytes shared by all clients; a reservation waits until others release theirs."""

    def __init__(self, total: int) -> None:
        self._total, self._available = total, total
        self._changed = threading.Condition()

    @property
    def available(self) -> int:
        """Bytes that are not reserved."""
        return self._available

    def stream(self, pieces: list[bytes]) -> Generator[bytes, None, None]:
        """Yield the pieces, at most a MiB each, and free each one. Raises NodeBusy before the first."""
        size = min(sum(map(len, pieces)), self._total)
        self._reserve(size)
        try:
            for at in range(len(pieces)):
                piece, pieces[at] = memoryview(pieces[at]), b""
                for start in range(0, len(piece), _PIECE):
                    yield bytes(piece[start : start + _PIECE])
        finally:
            self._release(size)

    def _reserve(self, size: int) -> None:
        deadline = time.monotonic() + _WAIT_S
        with self._changed:
            while self._available < size:
                if not self._changed.wait(deadline - time.monotonic()) and self._available < size:
                    raise NodeBusy("as much is on its way to clients as the node may hold; ask again in a while")
            self._available -= size

    def _release(self, size: int) -> None:
        with self._changed:
            self._available += size
            self._changed.notify_all()
