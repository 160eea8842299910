"""The disk under the spool: every call crosses a boundary, and a power cut takes what was not synchronised.

A file's content is safe after its fsync, an entry of a folder after the folder's. At a power cut each folder keeps its
entries up to a moment that the seed decides, and a file that was not synchronised keeps all, nothing or the beginning
of what was written since. A rename belongs to the folder that it leads to.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.machine import Machine, PlannedError

__all__ = ["Disk", "DiskState"]

_REAL: dict[str, Callable[..., Any]] = {
    name: getattr(os, name) for name in ("open", "close", "write", "pwrite", "fsync", "rename", "link", "unlink")
}


@dataclass
class _File:
    """A file whatever its name; ``safe``: the content at its last fsync, None where there was none."""

    safe: bytes | None = None
    is_changed: bool = True
    removed: bytes | None = None


@dataclass
class _Entry:
    """A change of folders that is not synchronised yet: what appears, and what vanishes."""

    folder: str
    name: str
    file: int | None
    before: str = ""


@dataclass
class DiskState:
    """What is known of the disk; it outlives the process, not the machine's power."""

    names: dict[str, int] = field(default_factory=dict)
    """Files by path, as the process sees them."""
    safe_names: dict[str, int] = field(default_factory=dict)
    files: dict[int, _File] = field(default_factory=dict)
    entries: list[_Entry] = field(default_factory=list)


class Disk:
    """The calls of ``os`` on files below a folder."""

    def __init__(self, machine: Machine, root: Path) -> None:
        self._machine, self._root = machine, f"{root}/"
        self._open: dict[int, int] = {}
        self._folders: dict[int, str] = {}
        self.state: DiskState = machine.outside.pending_disk or DiskState()
        machine.outside.pending_disk = self.state
        machine.before_death.append(self._end)
        for name in _REAL:
            setattr(os, name, getattr(self, name))

    def release(self) -> None:
        """Give ``os`` its own functions back."""
        for name, function in _REAL.items():
            setattr(os, name, function)

    def open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        name = os.fspath(path)
        if not self._is_mine(name):
            return int(_REAL["open"](path, flags, mode, **more))
        if flags & os.O_CREAT:
            self._machine.cross("open")
        fd = int(_REAL["open"](path, flags, mode, **more))
        if flags & os.O_DIRECTORY:
            self._folders[fd] = name
        elif flags & os.O_CREAT and name not in self.state.names:
            self._add_file(name)
        if name in self.state.names:
            self._open[fd] = self.state.names[name]
        return fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._folders.pop(fd, None)
        _REAL["close"](fd)

    def write(self, fd: int, content: Any) -> int:
        return self._write(fd, content, lambda piece: int(_REAL["write"](fd, piece)))

    def pwrite(self, fd: int, content: Any, at: int) -> int:
        return self._write(fd, content, lambda piece: int(_REAL["pwrite"](fd, piece, at)))

    def fsync(self, fd: int) -> None:
        if fd in self._open or fd in self._folders:
            self._machine.cross("fsync")
        _REAL["fsync"](fd)
        if fd in self._open:
            file = self.state.files[self._open[fd]]
            file.safe, file.is_changed = _read(fd), False
        if fd in self._folders:
            self._keep(lambda entry: entry.folder == self._folders[fd])

    def rename(self, source: Any, target: Any, **more: Any) -> None:
        before, after = os.fspath(source), os.fspath(target)
        if not self._is_mine(before):
            return _REAL["rename"](source, target, **more)  # type: ignore[no-any-return]
        self._machine.cross("rename")
        self._remember_removed(after)
        _REAL["rename"](source, target, **more)
        number = self.state.names.pop(before)
        self.state.names[after] = number
        self.state.entries.append(_Entry(os.path.dirname(after), after, number, before))

    def link(self, source: Any, target: Any, **more: Any) -> None:
        before, after = os.fspath(source), os.fspath(target)
        self._machine.cross("link")
        _REAL["link"](source, target, **more)
        self.state.names[after] = self.state.names[before]
        self.state.entries.append(_Entry(os.path.dirname(after), after, self.state.names[after]))

    def unlink(self, path: Any, **more: Any) -> None:
        name = os.fspath(path)
        if not self._is_mine(name):
            return _REAL["unlink"](path, **more)  # type: ignore[no-any-return]
        self._machine.cross("unlink")
        self._remember_removed(name)
        _REAL["unlink"](path, **more)
        number = self.state.names.pop(name, None)
        self.state.entries.append(_Entry(os.path.dirname(name), name, None))
        digest = re.search(r"[0-9a-f]{64}", name)
        if digest and number not in self.state.names.values():
            self._machine.note_removal(digest[0])

    def _is_mine(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith(self._root)

    def _add_file(self, name: str) -> None:
        number = len(self.state.files)
        self.state.files[number] = _File()
        self.state.names[name] = number
        self.state.entries.append(_Entry(os.path.dirname(name), name, number))

    def _write(self, fd: int, content: Any, write: Callable[[Any], int]) -> int:
        if fd not in self._open:
            return write(content)
        act = self._machine.cross("write")
        self.state.files[self._open[fd]].is_changed = True
        if act == "torn":
            write(memoryview(content)[: len(content) // 2])
            raise PlannedError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(memoryview(content)[: (len(content) + 1) // 2] if act == "short" else content)
        moment = self._machine.now().timestamp()
        os.utime(fd, (moment, moment))
        return count

    def _remember_removed(self, name: str) -> None:
        """Keep the content of a file that loses its name, since the loss may be lost."""
        if (number := self.state.names.get(name)) is not None:
            with open(name, "rb") as file:
                self.state.files[number].removed = file.read()

    def _keep(self, is_kept: Callable[[_Entry], bool]) -> None:
        """Apply the changes that are safe now to the safe names."""
        left = []
        for entry in self.state.entries:
            if not is_kept(entry):
                left.append(entry)
                continue
            if entry.before:
                self.state.safe_names.pop(entry.before, None)
            if entry.file is None:
                self.state.safe_names.pop(entry.name, None)
            else:
                self.state.safe_names[entry.name] = entry.file
        self.state.entries[:] = left

    def _end(self, is_cut: bool) -> None:
        self.release()
        if is_cut:
            self._lose()

    def _lose(self) -> None:
        """Bring the folders into a state that the power cut may leave."""
        state = self.state
        contents = {number: file.removed or b"" for number, file in state.files.items()}
        times: dict[int, float] = {}
        for name, number in state.names.items():
            contents[number], times[number] = Path(name).read_bytes(), os.stat(name).st_mtime
        kept = self._choose_kept()
        self._keep(lambda entry: id(entry) in kept)
        state.entries.clear()
        for name in state.names:
            os.unlink(name)
        for name, number in state.safe_names.items():
            file = state.files[number]
            if file.is_changed:
                file.safe = self._choose_content(file.safe or b"", contents[number])
            content = file.safe if file.safe is not None else b""
            Path(name).write_bytes(content)
            moment = times.get(number, self._machine.now().timestamp())
            os.utime(name, (moment, moment))
            file.is_changed = False
        lost = set(state.names) - set(state.safe_names)
        self._machine.note(f"power cut: {len(lost)} names lost of {len(state.names)}")
        state.names = dict(state.safe_names)

    def _choose_kept(self) -> set[int]:
        """Return which entries are safe although nobody synchronised them: in each folder the first ones."""
        kept: set[int] = set()
        mode = self._machine.random.choice(("none", "all", "some"))
        for folder in sorted({entry.folder for entry in self.state.entries}):
            mine = [id(entry) for entry in self.state.entries if entry.folder == folder]
            count = {"none": 0, "all": len(mine)}.get(mode, self._machine.random.randint(0, len(mine)))
            kept.update(mine[:count])
        return kept

    def _choose_content(self, safe: bytes, written: bytes) -> bytes:
        mode = self._machine.random.choice(("old", "new", "torn"))
        if mode == "torn":
            return written[: self._machine.random.randint(0, len(written))]
        return written if mode == "new" else safe


def _read(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0)
