"""Installation of the viewer: the known package only, its prebuilt files only, and only into its folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from dicomnode.errors import NodeError, NotFound
from dicomnode.web import ohif
from tests.web_node import Web


def make_package(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: bytes) -> Path:
    """Make a package of a few files whose digest the node accepts."""
    files = {
        "package/package.json": b"{}",
        "package/dist/index.html": b'<script src="/app.js"></script>',
        "package/dist/app.js": b'__webpack_require__.p = "/";',
        "package/dist/ort/model.wasm": b"large",
        "package/dist/../../outside.js": b"evil",
        "/package/dist/absolute.js": b"evil",
    } | more
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        linked = tarfile.TarInfo("package/dist/link.js")
        linked.type, linked.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(linked)
    monkeypatch.setattr(ohif, "PACKAGE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_only_prebuilt_files_are_unpacked_and_their_paths_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "share" / "viewer"
    facts = ohif.install_viewer(make_package(tmp_path, monkeypatch), where)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
    assert names == {"package.tgz", "share/viewer/index.html", "share/viewer/app.js", "share/viewer/viewer.json"}
    assert (where / "index.html").read_text() == '<script src="/viewer/app.js"></script>'
    assert (where / "app.js").read_text() == '__webpack_require__.p = "/viewer/";'
    assert ohif.find_installed(where) == facts


def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "viewer"
    where.mkdir()
    (where / "old.js").write_text("old")
    ohif.install_viewer(make_package(tmp_path, monkeypatch), where)
    assert not (where / "old.js").exists()


def test_another_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.tgz"
    path.write_bytes(b"something else")
    with pytest.raises(NodeError, match=r"is not @ohif/app 3\.13\.2"):
        ohif.install_viewer(path, tmp_path / "viewer")
    with pytest.raises(NodeError, match="cannot be read"):
        ohif.install_viewer(tmp_path / "nothing.tgz", tmp_path / "viewer")
    assert not (tmp_path / "viewer").exists()


def test_without_npm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotFound, match=r"npm pack @ohif/app@3\.13\.2"):
        ohif.fetch_package(tmp_path)


def test_a_node_without_viewer_says_how_to_install_it(tmp_path: Path) -> None:
    with Web(tmp_path, {"viewer_dir": "nowhere"}) as running:
        answer = running.client.get("/viewer?StudyInstanceUIDs=1.2", follow_redirects=True)
    assert answer.status_code == 503
    assert "dicomnode viewer install" in answer.text
