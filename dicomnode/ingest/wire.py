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
_POLL_S = 0.5


class ConnectionLostError(Exception):
    """The peer closed the connection."""


class Wire:
    """Buffered reader of the bytes that a peer sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._view = memoryview(bytearray(_BUFFER))
        self._begin = self._end = 0
        self._timeout_s: float | None = -1.0
        self._deadline: float | None = None
        self._woken = False

    def read_pieces(self, count: int) -> Iterator[memoryview]:
        """Yield the next ``count`` bytes as they arrive; a piece is valid until the next one is read."""
        while count:
            if self._begin == self._end:
                self._fill()
            piece = self._view[self._begin : min(self._end, self._begin + count)]
            self._begin += len(piece)
            count -= len(piece)
            yield piece

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes, which have to be few."""
        return b"".join(map(bytes, self.read_pieces(count)))

    def has_more(self) -> bool:
        """Return whether bytes can be read without waiting."""
        if self._begin < self._end:
            return True
        if isinstance(self._sock, ssl.SSLSocket):
            return self._read_ahead(self._sock)
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        return bool(waiting.poll(0))

    def settimeout(self, timeout_s: float | None) -> None:
        """Set the time to wait for the peer, both ways, by the kernel's own timer: it saves a poll before each read."""
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
    def deadline(self, timeout_s: float | None) -> Iterator[None]:
        """Limit the time of all reads in the context together: a peer that sends a byte now and then gains nothing."""
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.settimeout(timeout_s)
        try:
            yield
        finally:
            self._deadline = None

    def wake(self) -> None:
        """Let the thread that waits for the peer find the connection lost; called from another thread."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.version() is not None:
            self._woken = True  # an end of the TCP stream would break TLS, and the A-ABORT could not be sent
        else:
            with suppress(OSError):
                socket.socket.shutdown(self._sock, socket.SHUT_RD)

    def _read_ahead(self, sock: ssl.SSLSocket) -> bool:
        """Return whether a read gives bytes: the TCP socket may hold half a record, or one that TLS keeps to itself."""
        before = sock.gettimeout()
        sock.settimeout(0)
        try:
            self._begin, self._end = 0, sock.recv_into(self._view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._begin = self._end = 0
            return False
        except OSError:
            return True  # the next read meets the error, too
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
        """Read, looking every half second whether ``wake`` was called."""
        until = float("inf") if self._timeout_s is None else time.monotonic() + self._timeout_s
        try:
            while not self._woken:
                self._sock.settimeout(min(_POLL_S, max(0.001, until - time.monotonic())))
                with suppress(TimeoutError):
                    return self._sock.recv_into(self._view)
                if time.monotonic() >= until:
                    raise TimeoutError
        finally:
            self._sock.settimeout(self._timeout_s)
        raise ConnectionLostError
