"""Durable store of files: committed files survive a power cut.

A file is written under ``incoming/`` and synchronised, renamed to ``aa/<sha256>.dcm``, and then its folder is
synchronised: under a name of the store lies nothing but whole, durable files. The name is the SHA-256 of the content,
so nothing that a sender chose reaches the file system, equal content is kept once, and a file can be checked against
its own name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from db.studies import StoredFile
from dicomnode.errors import OutOfSpace

if TYPE_CHECKING:
    from dicomnode.config.spool import SpoolConfig

__all__ = [
    "Writer",
    "check_space",
    "is_fresh",
    "open_folder",
    "open_writer",
    "path",
    "prepare",
    "remove",
    "sweep",
    "write",
]

_INCOMING = "incoming"
_LEAVING = ".leaving"
_PIECE = 1 << 20  # what is collected in memory before it is written: most images are hashed and written in one go
_WRITE = 1 << 16  # larger ones ask the page cache for large folios, dear once memory was in use (measured)
_FRESH_S = 3600.0
"""Longest time of any write from its file to its row."""
_START_EVERY = 4 << 20  # bytes after which the disk begins, so that a large file does not end in one long wait


class Writer:
    """File on its way into the store; as a context manager it deletes the file unless it was committed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._digest = hashlib.sha256()
        self._name, self._fd = "", -1
        self._pending = bytearray()
        self._written = self._started = 0

    @property
    def size_bytes(self) -> int:
        """Number of bytes written so far."""
        return self._written + len(self._pending)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append to the file and to its digest."""
        self._pending += chunk
        if len(self._pending) >= _PIECE:
            self._flush()
            if self._written - self._started >= _START_EVERY:
                self._start_writing()

    def read(self, at: int, count: int) -> bytes:
        """Return ``count`` bytes of the written content from position ``at``."""
        if at >= self._written:
            begin = at - self._written
            return bytes(self._pending[begin : begin + count])
        self._flush()
        return os.pread(self._fd, count, at)

    def finish(self) -> StoredFile:
        """Begin to write the rest to disk without waiting for it, and return the final name, digest and size."""
        self._flush()
        self._start_writing()
        sha256 = self._digest.hexdigest()
        return StoredFile(sha256, self._written, f"{sha256[:2]}/{sha256}.dcm")

    def commit(self) -> StoredFile:
        """Make the file durable under its final name: after this returns it survives a power cut."""
        stored = self.finish()
        final = self._root / stored.relative_path
        with _out_of_space_is_refused():
            os.fsync(self._fd)
            self._rename(final)
            _sync_folder(final.parent)
        self._name = ""
        return stored

    def _flush(self) -> None:
        with _out_of_space_is_refused():
            if self._fd < 0:
                self._name, self._fd = _create(self._root / _INCOMING)
            self._digest.update(self._pending)
            with memoryview(self._pending) as view:
                at = 0
                while at < len(view):
                    at += os.write(self._fd, view[at : at + _WRITE])
        self._written += at
        self._pending = bytearray()

    def _start_writing(self) -> None:
        if self._written > self._started:
            os.posix_fadvise(self._fd, self._started, 0, os.POSIX_FADV_DONTNEED)
            self._started = self._written

    def _rename(self, final: Path) -> None:
        try:
            os.rename(self._name, final)
        except FileNotFoundError:
            final.parent.mkdir(exist_ok=True)
            _sync_folder(self._root)
            os.rename(self._name, final)

    def discard(self) -> None:
        """Delete the file, unless it was committed."""
        if self._fd >= 0:
            if self._name:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()


def prepare(root: Path) -> None:
    """Create the store's folders, so that receiving never has to, and remove the files of killed processes."""
    (root / _INCOMING).mkdir(parents=True, exist_ok=True)
    for first in range(256):
        (root / f"{first:02x}").mkdir(exist_ok=True)
    _sync_folder(root)
    sweep(root)


def open_writer(root: Path) -> Writer:
    """Begin a file in the store at ``root``."""
    return Writer(root)


def write(root: Path, chunks: bytes | Iterable[bytes]) -> StoredFile:
    """Store one file durably."""
    with open_writer(root) as writer:
        for chunk in [chunks] if isinstance(chunks, bytes) else chunks:
            writer.write(chunk)
        return writer.commit()


def path(root: Path, stored: StoredFile | str) -> Path:
    """Return the path of a stored file, or of the file with that SHA-256."""
    if isinstance(stored, StoredFile):
        return root / stored.relative_path
    return root / stored[:2] / f"{stored}.dcm"


def check_space(root: Path, limits: SpoolConfig, *, coming_bytes: int = 0) -> None:
    """Raise OutOfSpace when the disk is as full as the configuration lets it become, with ``coming_bytes`` on it."""
    disk = os.statvfs(root)
    coming = coming_bytes // disk.f_frsize
    free_gb = (disk.f_bavail - coming) * disk.f_frsize / 1e9
    if free_gb < limits.min_free_gb:
        raise OutOfSpace(f"the spool's disk has {free_gb:.2f} GB free, less than min_free_gb = {limits.min_free_gb}")
    used = disk.f_blocks - disk.f_bfree
    percent = 100 * (used + coming) / max(1, used + disk.f_bavail)
    if percent >= limits.refuse_at_percent:
        limit = limits.refuse_at_percent
        raise OutOfSpace(f"the spool's disk is {percent:.1f} % full, refuse_at_percent = {limit}")


@contextlib.contextmanager
def open_folder(root: Path) -> Iterator[Path]:
    """Yield a new folder below ``incoming/`` and delete it afterwards; a sweep deletes that of a killed process."""
    folder = root / _INCOMING / f"{secrets.token_hex(16)}.part"
    folder.mkdir(parents=True, mode=0o750)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def sweep(root: Path) -> int:
    """Remove the files of killed processes under ``incoming/``; return how many. Living processes lock theirs."""
    removed = 0
    for left in (root / _INCOMING).glob("*.part"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            _remove_unlocked(left)
            removed += 1
    for left in (root / _INCOMING).glob(f"*{_LEAVING}"):  # killed between the move aside and the deletion
        with contextlib.suppress(FileNotFoundError):
            _put_back(left, path(root, left.name.removesuffix(_LEAVING)))
    return removed


def remove(root: Path, sha256: str, *, now: datetime) -> bool:
    """Delete a file that no row claims; return whether it is gone.

    A recently written file stays, as its row may not be committed yet. The file is moved aside before it is checked, so
    that no writer can replace it meanwhile.
    """
    final, aside = path(root, sha256), root / _INCOMING / f"{sha256}{_LEAVING}"
    try:
        os.rename(final, aside)
    except FileNotFoundError:
        return True
    if is_fresh(aside, now=now):
        _put_back(aside, final)
        return False
    aside.unlink()
    return True


def is_fresh(path: Path, *, now: datetime) -> bool:
    """Return whether the file was written so recently that its row may not be committed yet, or is gone."""
    try:
        return now.timestamp() - path.stat().st_mtime < _FRESH_S
    except FileNotFoundError:
        return True


def _put_back(aside: Path, final: Path) -> None:
    """Move the file back, unless the same content has been stored again meanwhile.

    Its name is durable before the other one goes, so that a power cut loses neither.
    """
    with contextlib.suppress(FileExistsError):
        os.link(aside, final)
    _sync_folder(final.parent)
    aside.unlink()


def _remove_unlocked(left: Path) -> None:
    """Delete a file or folder. Raises BlockingIOError where a living process holds its lock."""
    fd = os.open(left, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    finally:
        os.close(fd)


def _create(folder: Path) -> tuple[str, int]:
    while True:
        name = f"{folder}/{secrets.token_hex(16)}.part"
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return name, fd
        os.close(fd)  # a sweep took it between its creation and its lock


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _out_of_space_is_refused() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfSpace(f"the spool's disk: {exc.strerror}") from exc
        raise
