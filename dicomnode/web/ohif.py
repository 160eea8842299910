"""Installation of the viewer: OHIF's prebuilt files, unpacked from its npm package into a folder of the node.

Only the version that this node was tested with is installed, identified by the package's SHA-256. The files expect to
be at the root of a site; the installation rewrites their paths to ``BASE``.
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

__all__ = [
    "BASE",
    "FACTS_FILE",
    "PACKAGE",
    "PACKAGE_SHA256",
    "VERSION",
    "InstalledViewer",
    "fetch_package",
    "find_installed",
    "install_viewer",
    "viewer_folder",
]

PACKAGE, VERSION = "@ohif/app", "3.13.2"
PACKAGE_SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"
BASE = "/viewer/"
FACTS_FILE = "viewer.json"
_PACKAGE_FOLDER = PurePosixPath("package/dist")
_EXCLUDED = frozenset({"ort", "app-config.js", "sw.js", "_headers", "_redirects", "serve.json"})
"""Files that are not installed: the ONNX runtime for models from other sites, and configuration of the node's own."""
_MOST_FILE_BYTES = 1 << 28
_BASE_REPLACEMENTS = {
    ".js": ((b'__webpack_require__.p = "/"', b'__webpack_require__.p = "/viewer/"'),),
    ".css": ((b"url(/", b"url(/viewer/"),),
    ".html": ((b'="/', b'="/viewer/'),),
    ".json": ((b'"src": "/', b'"src": "/viewer/'),),
}


@dataclass(frozen=True)
class InstalledViewer:
    """Facts of an installed viewer."""

    package: str
    version: str
    sha256: str
    files: int
    folder: str


def viewer_folder(web: WebConfig) -> Path:
    """Return the folder of the viewer, installed or not: ``[web] viewer_dir``, else below Python's prefix."""
    if web.viewer_dir is not None:
        return web.viewer_dir.resolve()
    return Path(sys.prefix) / "share" / "dicomnode" / "viewer"


def find_installed(folder: Path) -> InstalledViewer | None:
    """Return the viewer in a folder, or None unless it has the required version."""
    try:
        found = InstalledViewer(
            **json.loads((folder / FACTS_FILE).read_text(encoding="utf-8")) | {"folder": str(folder)}
        )
    except (OSError, TypeError, ValueError):
        return None
    return found if found.sha256 == PACKAGE_SHA256 else None


def fetch_package(into: Path) -> Path:
    """Fetch the package with npm. Raises NodeError."""
    npm = shutil.which("npm")
    if npm is None:
        raise NotFound(f"npm is not here: install it, or name the package with --from (npm pack {PACKAGE}@{VERSION})")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(into), "--silent"]
    result = subprocess.run(command, cwd=into, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    found = sorted(into.glob("*.tgz"))
    if result.returncode or not found:
        raise NodeError(
            f"npm pack {PACKAGE}@{VERSION} failed (status {result.returncode}): is a registry within reach?"
        )
    return found[0]


def install_viewer(package: Path, folder: Path) -> InstalledViewer:
    """Install the prebuilt files of a package in place of earlier ones. Raises NodeError."""
    digest = _sha256(package)
    if digest != PACKAGE_SHA256:
        raise NodeError(f"{package} is not {PACKAGE} {VERSION}: its SHA-256 is {digest}, not {PACKAGE_SHA256}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".viewer-") as temporary:
        fresh = Path(temporary) / "viewer"
        fresh.mkdir()
        count = sum(1 for _ in _unpack(package, fresh))
        facts = InstalledViewer(PACKAGE, VERSION, digest, count, str(folder))
        (fresh / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
        fresh.chmod(0o755)
        if folder.exists():
            folder.rename(Path(temporary) / "before")
        fresh.rename(folder)
    return facts


def _unpack(package: Path, into: Path) -> Iterator[Path]:
    with tarfile.open(package) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            inside = path.is_relative_to(_PACKAGE_FOLDER) and path != _PACKAGE_FOLDER
            relative = path.relative_to(_PACKAGE_FOLDER) if inside else path
            if not inside or not member.isfile() or ".." in relative.parts or relative.parts[0] in _EXCLUDED:
                continue
            content = tar.extractfile(member)
            if content is None or member.size > _MOST_FILE_BYTES:
                raise NodeError(f"{package}: {relative} cannot be unpacked")
            target = into / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_rebase_paths(relative, content.read()))
            yield target


def _rebase_paths(path: PurePosixPath, content: bytes) -> bytes:
    for old, new in _BASE_REPLACEMENTS.get(path.suffix, ()):
        content = content.replace(old, new)
    return content


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NodeError(f"{path} cannot be read: {error.strerror}") from None
