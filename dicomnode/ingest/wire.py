"""Buffered reading from the socket of an association, plain or with TLS."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["ConnectionLostError", "Wire"]

_BUFFER = 1 << 20
_GLANCE_S = 0.5


class ConnectionLostError(Exception):
    """The peer closed the connection."""


class Wire:
    """The bytes that a peer sends; what is read ahead waits here."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._view = memoryview(bytearray(_BUFFER))
        self._begin = self._end = 0
        self._timeout_s: float | None = -1.0
        self._deadline: float | None = None
        self._woken = False

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
        if self._begin < self._end:
            return True
        if isinstance(self._sock, ssl.SSLSocket):
            return self._read_ahead(self._sock)
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

    @contextmanager
    def all_within(self, timeout_s: float | None) -> Iterator[None]:
        """While inside, everything has to come in that time: a peer that sends a byte now and then gains nothing."""
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.settimeout(timeout_s)
        try:
            yield
        finally:
            self._deadline = None

    def wake(self) -> None:
        """From another thread: let the one that waits for the peer find the connection lost."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.version() is not None:
            self._woken = True  # an end of the TCP stream would break TLS, and the A-ABORT could not be sent
        else:
            with suppress(OSError):
                socket.socket.shutdown(self._sock, socket.SHUT_RD)

    def _read_ahead(self, sock: ssl.SSLSocket) -> bool:
        """What the TCP socket has may be half a record, or one that TLS keeps to itself: only reading tells."""
        before = sock.gettimeout()
        sock.settimeout(0)
        try:
            self._begin, self._end = 0, sock.recv_into(self._view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._begin = self._end = 0
            return False
        except OSError:
            return True  # whoever reads next meets it, too
        finally:
            sock.settimeout(before)
        return True

    def _fill(self) -> None:
        if self._deadline is not None:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.settimeout(max(left_s, 0.001))  # to the kernel, less than a microsecond would be for ever
        try:
            secured = isinstance(self._sock, ssl.SSLSocket)
            self._begin, self._end = 0, self._read_secured() if secured else self._sock.recv_into(self._view)
        except BlockingIOError as exc:
            raise TimeoutError from exc
        if not self._end:
            raise ConnectionLostError

    def _read_secured(self) -> int:
        """Looks up every now and then whether it is woken."""
        until = float("inf") if self._timeout_s is None else time.monotonic() + self._timeout_s
        try:
            while not self._woken:
                self._sock.settimeout(min(_GLANCE_S, max(0.001, until - time.monotonic())))
                with suppress(TimeoutError):
                    return self._sock.recv_into(self._view)
                if time.monotonic() >= until:
                    raise TimeoutError
        finally:
            self._sock.settimeout(self._timeout_s)
        raise ConnectionLostError
