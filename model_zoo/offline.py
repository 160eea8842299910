"""No connection from a bundle: while its network is built and run, whatever would reach another host is stopped.

The first line of defence are the rules, which refuse or switch off what downloads. This is the second: Python reports
every connection before it is made (its audit events), whichever library asks for it.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from model_zoo.bundle import BundleError

__all__ = ["offline"]

_CONNECTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_LOOKS_UP = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"})
_INTERNET = (socket.AF_INET, socket.AF_INET6)

_inside: ContextVar[str] = ContextVar("_inside", default="")
_start_of_threading = threading.Thread.start
_started: WeakKeyDictionary[threading.Thread, str] = WeakKeyDictionary()


@contextmanager
def offline(called: str) -> Iterator[None]:
    """Nothing in this block, nor in threads that it starts, connects to another host; BundleError where it tries.

    ``called``: the bundle, for the message. Other threads are not touched, nor are sockets within this machine's files.
    """
    _watch()
    token = _inside.set(called)
    try:
        yield
    finally:
        _inside.reset(token)


@cache
def _watch() -> None:
    """Once for the process: a hook cannot be taken away again."""
    sys.addaudithook(_hook)
    threading.Thread.start = _start  # type: ignore[assignment, method-assign]  # Python 3.11 reports no start of a thread


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECTS and arguments[0].family in _INTERNET:
        _refuse(f"to connect to {arguments[1]}")
    elif event in _LOOKS_UP:
        _refuse(f"to look up {arguments[0]}")
    elif event == "urllib.Request":
        _refuse(f"to open {arguments[0]}")


def _start(thread: threading.Thread) -> None:
    """In place of ``Thread.start``: a thread is of the bundle that starts it."""
    if called := _inside.get():
        _started[thread] = called
    _start_of_threading(thread)


def _refuse(what: str) -> None:
    called = _inside.get() or (_started and _started.get(threading.current_thread()))
    if called:
        raise BundleError(f"{called} tried {what}: a bundle makes no connections, and its weights come with it")
