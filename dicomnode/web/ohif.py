"""The viewer: OHIF's prebuilt files, from its npm package into a folder from which the node serves them.

Only what is of the version that this node was tried with is installed: the package's SHA-256 is known here. The files
expect to lie at the root of a site; installing moves the paths in them to ``BASE``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dicomnode.errors import NodeError, NotFound

if TYPE_CHECKING:
    from dicomnode.config.web import WebConfig

__all__ = ["BASE", "FACTS", "PACKAGE", "VERSION", "Viewer", "fetch", "folder", "install", "installed"]

PACKAGE, VERSION = "@ohif/app", "3.13.2"
BASE = "/viewer/"
_SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"
FACTS = "viewer.json"
_INSIDE = PurePosixPath("package/dist")
_LEFT_OUT = frozenset({"ort", "app-config.js", "sw.js", "_headers", "_redirects", "serve.json"})
"""ONNX runtime for models that OHIF would fetch from elsewhere, and what the node says itself."""
_LARGEST_BYTES = 1 << 28
_MOVED = {
    ".js": ((b'__webpack_require__.p = "/"', b'__webpack_require__.p = "/viewer/"'),),
    ".css": ((b"url(/", b"url(/viewer/"),),
    ".html": ((b'="/', b'="/viewer/'),),
    ".json": ((b'"src": "/', b'"src": "/viewer/'),),
}


@dataclass(frozen=True)
class Viewer:
    """What was installed where."""

    package: str
    version: str
    sha256: str
    files: int
    folder: str


def folder(web: WebConfig) -> Path:
    """Return the folder of the viewer, installed or not: ``[web] viewer_dir``, else beside this Python's packages."""
    if web.viewer_dir is not None:
        return web.viewer_dir.resolve()
    return Path(sys.prefix) / "share" / "dicomnode" / "viewer"


def installed(where: Path) -> Viewer | None:
    """The viewer there, when it is of our version."""
    try:
        found = Viewer(**json.loads((where / FACTS).read_text(encoding="utf-8")) | {"folder": str(where)})
    except (OSError, TypeError, ValueError):
        return None
    return found if found.sha256 == _SHA256 else None


def fetch(into: Path) -> Path:
    """The package as npm gives it. Raises NodeError."""
    npm = shutil.which("npm")
    if npm is None:
        raise NotFound(f"npm is not here: install it, or name the package with --from (npm pack {PACKAGE}@{VERSION})")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(into), "--silent"]
    done = subprocess.run(command, cwd=into, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    found = sorted(into.glob("*.tgz"))
    if done.returncode or not found:
        raise NodeError(f"npm pack {PACKAGE}@{VERSION} failed (status {done.returncode}): is a registry within reach?")
    return found[0]


def install(package: Path, where: Path) -> Viewer:
    """Unpack the prebuilt files of a package, in place of those that were there. Raises NodeError."""
    digest = _sha256(package)
    if digest != _SHA256:
        raise NodeError(f"{package} is not {PACKAGE} {VERSION}: its SHA-256 is {digest}, not {_SHA256}")
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where.parent, prefix=".viewer-") as temporary:
        fresh = Path(temporary) / "viewer"
        fresh.mkdir()
        count = sum(1 for _ in _unpack(package, fresh))
        facts = Viewer(PACKAGE, VERSION, digest, count, str(where))
        (fresh / FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
        fresh.chmod(0o755)
        if where.exists():
            where.rename(Path(temporary) / "before")
        fresh.rename(where)
    return facts


def _unpack(package: Path, into: Path) -> Iterator[Path]:
    with tarfile.open(package) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            inside = path.is_relative_to(_INSIDE) and path != _INSIDE
            relative = path.relative_to(_INSIDE) if inside else path
            if not inside or not member.isfile() or ".." in relative.parts or relative.parts[0] in _LEFT_OUT:
                continue
            content = tar.extractfile(member)
            if content is None or member.size > _LARGEST_BYTES:
                raise NodeError(f"{package}: {relative} cannot be unpacked")
            target = into / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_moved(relative, content.read()))
            yield target


def _moved(path: PurePosixPath, content: bytes) -> bytes:
    for old, new in _MOVED.get(path.suffix, ()):
        content = content.replace(old, new)
    return content


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NodeError(f"{path} cannot be read: {error.strerror}") from None
