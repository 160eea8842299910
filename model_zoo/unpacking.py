"""Copy a bundle, a folder or a zip, into a folder where it can be checked: no file leaves that folder."""

from __future__ import annotations

import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from model_zoo.bundle import BundleError

__all__ = ["MOST_FILES", "bundle_name", "copy_bundle"]

MOST_FILES = 2000
_CHUNK = 1 << 20
_DEEPEST = 16
"""Largest depth of folders in folders."""
_MOST_SWELLING = 100
_ALWAYS_ALLOWED = 10_000_000
_SIGNED_FILES = ("SHA256SUMS", "SHA256SUMS.sig")
_UNREADABLE = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError,
    struct.error,
)  # fmt: skip
_METADATA = PurePosixPath("configs/metadata.json")


def copy_bundle(source: Path, target: Path, *, max_bytes: int) -> None:
    """Write the bundle's files below ``target``. A zip may hold them in one folder.

    Raises BundleError for a source that is no bundle or too large, for links, and for names that lead elsewhere.
    """
    target.mkdir(parents=True)
    if source.is_dir():
        _copy_folder(source, target, max_bytes)
    elif source.is_file() and zipfile.is_zipfile(source):
        _copy_zip(source, target, max_bytes)
    else:
        raise BundleError(f"{source.name} is neither a folder nor a zip" if source.exists() else f"no file {source}")
    if not (target / _METADATA).is_file():
        raise BundleError(f"{source.name} is no bundle: it holds no {_METADATA}")


def bundle_name(source: Path) -> str:
    """Return the name for a bundle whose metadata hold prose: its folder's, or its zip's without the version."""
    if source.is_dir():
        return source.resolve().name
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            top = _bundle_folder(archive)
        if top.parts:
            return top.name
    return source.stem.partition("_v")[0]


def _copy_folder(source: Path, target: Path, max_bytes: int) -> None:
    remaining = max_bytes
    for number, path in enumerate(_files(source), 1):
        if number > MOST_FILES:
            raise BundleError(f"{source.name} holds more than {MOST_FILES} files: no bundle does")
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reader:
            remaining -= _copy_file(reader, place, remaining, max_bytes)


def _files(source: Path) -> Iterator[Path]:
    """Yield plain files that are not hidden; links are refused, as they may lead anywhere."""
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(name for name in files if not name.startswith("."))]:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BundleError(f"{path.relative_to(source)} is a link or no plain file: copy what it leads to")
            if stat.S_ISREG(mode):
                yield path


def _copy_zip(source: Path, target: Path, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            _check_swelling(archive, source.stat().st_size)
            _extract(archive, target, max_bytes)
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else error
        raise BundleError(f"{source.name}: the zip cannot be read ({reason})") from None


def _check_swelling(archive: zipfile.ZipFile, size: int) -> None:
    """Raise BundleError for a zip made to fill the disk: weights hardly get smaller in a zip."""
    if not all(info.filename for info in archive.infolist()):
        raise BundleError("the zip holds a file without a name")
    total = sum(info.file_size for info in archive.infolist())
    if total > _MOST_SWELLING * size + _ALWAYS_ALLOWED:
        raise BundleError(f"the zip of {size / 1e6:.3g} MB would become {total / 1e6:.3g} MB: no bundle does")


def _extract(archive: zipfile.ZipFile, target: Path, max_bytes: int) -> None:
    members = [info for info in archive.infolist() if not info.is_dir()]
    if len(archive.infolist()) > 2 * MOST_FILES:
        raise BundleError(f"the zip holds {len(archive.infolist())} names: no bundle has so many")
    if len(members) > MOST_FILES:
        raise BundleError(f"the zip holds {len(members)} files: no bundle has more than {MOST_FILES}")
    if sum(info.file_size for info in members) > max_bytes:
        raise BundleError(_too_large(max_bytes))
    for info in members:
        _check_member(info)
    top, remaining = _bundle_folder(archive), max_bytes
    for info in members:
        path = PurePosixPath(info.filename)
        if not path.is_relative_to(top) and path.name in _SIGNED_FILES:
            raise BundleError(f"the zip holds {path} outside of the bundle's folder {top}: it belongs into it")
        if not path.is_relative_to(top) or any(part.startswith(".") for part in path.parts):
            continue
        place = target / path.relative_to(top)
        if place.exists():
            raise BundleError(f"the zip holds {path} twice")
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as reader:
            remaining -= _copy_file(reader, place, remaining, max_bytes)


def _check_member(info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in info.orig_filename or ":" in info.filename or not path.parts:
        raise BundleError(f"the zip holds the name {info.orig_filename!r}, which leads out of its folder")
    if not info.filename.isprintable() or len(path.parts) > _DEEPEST:
        raise BundleError(f"the zip holds the name {info.filename[:80]!r}, which no bundle has")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise BundleError(f"the zip holds {path}, a link or no plain file")


def _bundle_folder(archive: zipfile.ZipFile) -> PurePosixPath:
    """Return the folder in the zip that is the bundle."""
    metadata = [PurePosixPath(name) for name in archive.namelist() if name.endswith(str(_METADATA))]
    folders = sorted({path.parent.parent for path in metadata if path.is_relative_to(path.parent.parent)}, key=str)
    highest = min((len(path.parts) for path in folders), default=0)
    tops = [path for path in folders if len(path.parts) == highest]
    if len(tops) > 1:
        raise BundleError(f"the zip holds {len(tops)} bundles ({tops[0]}, {tops[1]}): bring one at a time")
    return tops[0] if tops else PurePosixPath()


def _copy_file(reader: IO[bytes], place: Path, remaining: int, max_bytes: int) -> int:
    """Copy a file and return the number of bytes written; the sizes recorded in a zip are not trusted."""
    written = 0
    with place.open("xb") as file:
        while chunk := reader.read(_CHUNK):
            written += len(chunk)
            if written > remaining:
                raise BundleError(_too_large(max_bytes))
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return written


def _too_large(max_bytes: int) -> str:
    return f"the bundle takes more than {max_bytes / 1e9:g} GB, which [models] max_bundle_gb allows"
