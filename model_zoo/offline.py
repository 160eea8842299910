"""A block against connections from a bundle while its network is built and run.

The first line of defence is ``monai_rules``, which refuses or disables downloads. This is the second: Python reports
every connection before it is made (audit events), whichever library asks for it.
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
_LOOKUPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"})
_INTERNET = (socket.AF_INET, socket.AF_INET6)

_current_bundle: ContextVar[str] = ContextVar("_current_bundle", default="")
_original_start = threading.Thread.start
_bundle_of_thread: WeakKeyDictionary[threading.Thread, str] = WeakKeyDictionary()


@contextmanager
def offline(label: str) -> Iterator[None]:
    """Raise BundleError where this block, or a thread that it starts, tries to connect to another host.

    ``label``: the bundle, for the message. Other threads and Unix sockets are not affected.
    """
    _install_hooks()
    token = _current_bundle.set(label)
    try:
        yield
    finally:
        _current_bundle.reset(token)


@cache
def _install_hooks() -> None:
    """Install the hooks, once for the process: an audit hook cannot be removed."""
    sys.addaudithook(_hook)
    threading.Thread.start = _start_recorded  # type: ignore[assignment, method-assign]  # Python 3.11 reports no start of a thread


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECTS and arguments[0].family in _INTERNET:
        _refuse(f"to connect to {arguments[1]}")
    elif event in _LOOKUPS:
        _refuse(f"to look up {arguments[0]}")
    elif event == "urllib.Request":
        _refuse(f"to open {arguments[0]}")


def _start_recorded(thread: threading.Thread) -> None:
    """Start a thread, in place of ``Thread.start``, and record the bundle that starts it."""
    if label := _current_bundle.get():
        _bundle_of_thread[thread] = label
    _original_start(thread)


def _refuse(action: str) -> None:
    label = _current_bundle.get() or (_bundle_of_thread and _bundle_of_thread.get(threading.current_thread()))
    if label:
        raise BundleError(f"{label} tried {action}: a bundle makes no connections, and its weights come with it")
