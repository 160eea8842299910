"""``python -m dicomnode.decoding.child FD``: does what comes through the socket, one after the other, until it closes.

The limits are set before anything is read, and cannot be taken back.
"""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import socket
import struct
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from dicomnode.errors import InputRefused, NotFound

__all__ = ["main"]

_MEMORY = 1200 << 20
"""Bytes of address space beyond what the program itself takes."""

_CPU_S = 90

_BROKEN = (
    AssertionError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, OverflowError, RecursionError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


def main(fd: int) -> None:
    """Serve until the parent closes its end."""
    _load()
    _limit()
    with socket.socket(fileno=fd) as parent:
        while request := _request(parent):
            _limit_time()
            kind, content = _answer(request)
            parent.sendall(struct.pack("<cQ", kind, len(content)))
            parent.sendall(content)
            del content


def _load() -> None:
    """Everything that decoding needs, so that the limit is for the work alone."""
    import PIL.Image

    for name in (
        "dicomnode.web.pictures",
        "dicomnode.transcoding.convert",
        "PIL.JpegImagePlugin",
        "PIL.PngImagePlugin",
    ):
        importlib.import_module(name)
    warnings.simplefilter("ignore")  # they quote values
    PIL.Image.MAX_IMAGE_PIXELS = None  # sizes are checked before


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_time() -> None:
    """The parent waits no longer than this, and when it is gone nobody else would end what never ends."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + _CPU_S, resource.RLIM_INFINITY))


def _request(parent: socket.socket) -> bytes:
    head = _take(parent, 8)
    return _take(parent, struct.unpack("<Q", head)[0]) if head else b""


def _take(parent: socket.socket, size: int) -> bytes:
    """So many bytes; none when the parent has gone."""
    taken = b""
    while len(taken) < size:
        piece = parent.recv(size - len(taken))
        if not piece:
            return b""
        taken += piece
    return taken


def _answer(request: bytes) -> tuple[bytes, bytes]:
    """R and the result, I or N and the words of a refusal."""
    function, arguments = pickle.loads(request)
    try:
        return b"R", function(*arguments)
    except InputRefused as error:
        return b"I", str(error).encode()
    except NotFound as error:
        return b"N", str(error).encode()
    except MemoryError:
        return b"I", b"it cannot be decoded: it needs more memory than one object may have"
    except _BROKEN as error:
        return b"I", f"it cannot be decoded ({type(error).__name__})".encode()


if __name__ == "__main__":
    main(int(sys.argv[1]))
