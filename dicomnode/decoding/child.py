"""``python -m dicomnode.decoding.child FD``: serves requests from a socket one after another, until it closes.

The limits are set before anything is read, and cannot be raised again.
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
import zlib
from contextlib import suppress
from pathlib import Path

from dicomnode.errors import InputRefused, NotFound

__all__ = ["limit_cpu_time", "main"]

_MEMORY = 1200 << 20
"""Bytes of address space in addition to those of the program itself."""

_CPU_S = 90

_BROKEN = (
    AssertionError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, OverflowError, RecursionError,
    RuntimeError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


def main(fd: int) -> None:
    """Serve until the parent closes its end."""
    _import_decoders()
    _limit_memory()
    with socket.socket(fileno=fd) as parent:
        while request := _read_request(parent):
            limit_cpu_time()
            kind, content = _run_request(request)
            parent.sendall(struct.pack("<cQ", kind, len(content)))
            parent.sendall(content)
            del content


def _import_decoders() -> None:
    """Import everything that decoding needs, so that the memory limit covers the work alone."""
    import PIL.Image

    for name in (
        "dicomnode.web.pictures",
        "dicomnode.transcoding.convert",
        "PIL.JpegImagePlugin",
        "PIL.PngImagePlugin",
    ):
        importlib.import_module(name)
    warnings.simplefilter("ignore")  # warnings quote values
    PIL.Image.MAX_IMAGE_PIXELS = None  # sizes are checked before


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_cpu_time(cpu_s: int = _CPU_S) -> None:
    """Limit the CPU time of one request: without a parent, no other process ends endless work."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_s, resource.RLIM_INFINITY))


def _read_request(parent: socket.socket) -> bytes:
    head = _read_bytes(parent, 8)
    return _read_bytes(parent, struct.unpack("<Q", head)[0]) if head else b""


def _read_bytes(parent: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes, or no bytes where the parent has gone."""
    content = b""
    while len(content) < size:
        piece = parent.recv(size - len(content))
        if not piece:
            return b""
        content += piece
    return content


def _run_request(request: bytes) -> tuple[bytes, bytes]:
    """Return R and the result, or I (InputRefused) or N (NotFound) and the message."""
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
