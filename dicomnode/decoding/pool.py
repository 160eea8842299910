"""Pool of child processes that decode, with limits on their number, their time and their memory."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dicomnode.errors import InputRefused, NodeBusy, NotFound

__all__ = ["LARGEST_ANSWER", "Pool", "Work"]

Work = Callable[..., bytes]
"""A function at the top of a module; arguments and result cross to another process."""

LARGEST_ANSWER = 128 << 20
"""Largest answer in bytes; a larger frame is not decoded."""

_log = logging.getLogger(__name__)
_CHILDREN = 2
_MOST_WAITING = 24
_WAIT_S = 30.0
_WORK_S = 60.0
_MOST_WORK = 1000
_MOST_RESIDENT = 400 << 20
_MOST_CULPRITS, _REFUSAL_S = 1000, 600.0
_PIECE = 1 << 20
_HEAD = struct.Struct("<cQ")
_ERRORS = {b"I": InputRefused, b"N": NotFound}
# One thread: threads of numerical libraries cost address space, which is limited, and the cores are the receiver's.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Pool:
    """Pool of child processes, started on demand; ``run`` can be called from any thread.

    ``children``: most at a time; ``wait_s``: longest wait for one of them; ``work_s``: longest time for an answer;
    ``most_waiting``: most calls that wait for a child.
    """

    def __init__(
        self,
        children: int = _CHILDREN,
        *,
        wait_s: float = _WAIT_S,
        work_s: float = _WORK_S,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._wait_s, self._work_s, self._most_waiting = wait_s, work_s, most_waiting
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(children)
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._waiting = 0
        self._culprits: dict[str, tuple[float, str]] = {}

    def run(self, function: Work, *arguments: object) -> list[bytes]:
        """Return the result of the function, in pieces of a MiB. Raises InputRefused, NotFound, NodeBusy.

        A first argument that ended a child is refused for ten minutes without starting another one.
        """
        culprit = str(arguments[:1])
        self._check_culprit(culprit)
        request = pickle.dumps((function, arguments))
        self._wait_for_turn()
        try:
            self._check_culprit(culprit)
            return self._ask(request, culprit)
        finally:
            self._free.release()

    def _check_culprit(self, culprit: str) -> None:
        with self._lock:
            until, reason = self._culprits.get(culprit, (0.0, ""))
        if time.monotonic() < until:
            raise InputRefused(reason)

    def _add_culprit(self, culprit: str, reason: str) -> None:
        with self._lock:
            while len(self._culprits) >= _MOST_CULPRITS:
                del self._culprits[next(iter(self._culprits))]
            self._culprits[culprit] = time.monotonic() + _REFUSAL_S, reason

    def close(self) -> None:
        """End the children; answers under way are lost."""
        with self._lock:
            idle, self._idle, busy = self._idle, [], set(self._busy)
        for child in idle:
            child.end()
        for child in busy:
            child.kill()

    def _wait_for_turn(self) -> None:
        busy = NodeBusy("the node decodes as much as it may; ask again in a while")
        with self._lock:
            if self._waiting >= self._most_waiting:
                raise busy
            self._waiting += 1
        try:
            if not self._free.acquire(timeout=self._wait_s):
                raise busy
        finally:
            with self._lock:
                self._waiting -= 1

    def _ask(self, request: bytes, culprit: str) -> list[bytes]:
        child = self._take_child()
        try:
            kind, answer = child.ask(request)
        except BaseException as error:
            self._drop_child(child)
            if isinstance(error, InputRefused):
                self._add_culprit(culprit, str(error))
            raise
        self._put_child(child)
        if kind in _ERRORS:
            raise _ERRORS[kind](b"".join(answer).decode("utf-8", "replace")[:500])
        return answer

    def _take_child(self) -> _Child:
        child = self._pop_idle() or _Child(self._work_s)
        with self._lock:
            self._busy.add(child)
        return child

    def _pop_idle(self) -> _Child | None:
        """Return an idle child that lives, or None: where memory is short, the kernel ends idle children first."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None or child.is_alive:
                return child
            child.end()

    def _put_child(self, child: _Child) -> None:
        if child.is_spent:
            self._drop_child(child)
            return
        with self._lock:
            self._busy.remove(child)
            self._idle.append(child)

    def _drop_child(self, child: _Child) -> None:
        with self._lock:
            self._busy.remove(child)
        child.end()


class _Child:
    """One child process and the socket to it."""

    def __init__(self, work_s: float) -> None:
        self._work_s = work_s
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "dicomnode.decoding.child", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=os.environ | _ENVIRONMENT
            )
        self._request_count = 0

    @property
    def is_alive(self) -> bool:
        """False where the process has ended."""
        return self._process.poll() is None

    @property
    def is_spent(self) -> bool:
        """True where the child has served so many requests, or holds so much memory, that it is replaced."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            pages = 0
        return self._request_count >= _MOST_WORK or pages * os.sysconf("SC_PAGE_SIZE") > _MOST_RESIDENT

    def ask(self, request: bytes) -> tuple[bytes, list[bytes]]:
        """Return the kind of the answer and the answer. Raises InputRefused where the child can no longer be used."""
        self._request_count += 1
        deadline = time.monotonic() + self._work_s
        try:
            self._socket.settimeout(self._work_s)
            self._socket.sendall(struct.pack("<Q", len(request)) + request)
            kind, size = _HEAD.unpack(b"".join(self._receive(_HEAD.size, deadline)))
            if size <= LARGEST_ANSWER:
                return kind, self._receive(size, deadline)
        except TimeoutError:
            raise _give_up(f"it takes more than {self._work_s:g} s") from None
        except OSError:
            raise _give_up("it ended the process that decodes") from None
        raise _give_up(f"the answer has more than {LARGEST_ANSWER >> 20} MiB")

    def end(self) -> None:
        """Kill the child and wait for its end; it holds no state."""
        self._socket.close()
        self.kill()
        self._process.wait()

    def kill(self) -> None:
        """Kill the process; the thread that waits for its answer gets none, and ends the child."""
        with suppress(OSError):
            self._process.kill()

    def _receive(self, size: int, deadline: float) -> list[bytes]:
        pieces: list[bytes] = []
        while size:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = self._socket.recv(min(size, _PIECE))
            if not piece:
                raise ConnectionResetError
            pieces.append(piece)
            size -= len(piece)
        return pieces


def _give_up(reason: str) -> InputRefused:
    _log.error("decoding: a process is given up: %s", reason)
    return InputRefused(f"it cannot be decoded: {reason}")
