"""Buffered reading from the socket of an association."""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Iterator

__all__ = ["ConnectionLostError", "Wire"]

_BUFFER = 1 << 20


class ConnectionLostError(Exception):
    """The peer closed the connection."""


class Wire:
    """The bytes that a peer sends; what is read ahead waits here."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._view = memoryview(bytearray(_BUFFER))
        self._begin = self._end = 0
        self._timeout_s: float | None = -1.0

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next ``count`` bytes, as they arrive; a piece is valid until the next one is asked for."""
        while count:
            if self._begin == self._end:
                self._fill()
            piece = self._view[self._begin : min(self._end, self._begin + count)]
            self._begin += len(piece)
            count -= len(piece)
            yield piece

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; for what is known to be short."""
        return b"".join(map(bytes, self.pieces(count)))

    def has_more(self) -> bool:
        """Whether something can be read without waiting."""
        if self._begin < self._end or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            return True
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        return bool(waiting.poll(0))

    def settimeout(self, timeout_s: float | None) -> None:
        """How long to wait for the peer, both ways; by the kernel's own timer, which saves a poll before each read."""
        if timeout_s == self._timeout_s:
            return
        self._timeout_s = timeout_s
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(timeout_s)
            return
        limit = struct.pack("ll", int(timeout_s or 0), int((timeout_s or 0) % 1 * 1e6))
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def _fill(self) -> None:
        try:
            self._begin, self._end = 0, self._sock.recv_into(self._view)
        except BlockingIOError as exc:
            raise TimeoutError from exc
        if not self._end:
            raise ConnectionLostError
