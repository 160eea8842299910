"""The spool: files named by content, made durable in the right order, and no remains after a failure."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicomnode.config.spool import SpoolConfig
from dicomnode.errors import OutOfSpace
from dicomnode.storage import spool


def _list_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_file_is_named_by_the_digest_of_its_content(tmp_path: Path) -> None:
    stored = spool.write(tmp_path, [b"one ", b"two"])
    assert stored.sha256 == hashlib.sha256(b"one two").hexdigest()
    assert stored.size_bytes == 7
    assert spool.path(tmp_path, stored) == spool.path(tmp_path, stored.sha256)
    assert spool.path(tmp_path, stored).read_bytes() == b"one two"
    assert _list_files(tmp_path) == [tmp_path / stored.relative_path]


def test_equal_content_is_kept_once(tmp_path: Path) -> None:
    assert spool.write(tmp_path, b"same") == spool.write(tmp_path, b"same")
    assert len(_list_files(tmp_path)) == 1


def test_what_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    with spool.open_writer(tmp_path) as writer:
        writer.write(b"half of")
    assert _list_files(tmp_path) == []


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with spool.open_writer(tmp_path) as writer:
            writer.write(b"half of")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _list_files(tmp_path) == []


def _record_syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that records each sync and rename, in order."""
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watch_fsync(fd: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def watch_rename(old: str, new: Path) -> None:
        events.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "rename", watch_rename)
    return events


def test_a_file_has_its_name_only_once_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.prepare(tmp_path)
    events = _record_syncs(monkeypatch)
    spool.write(tmp_path, b"content")
    assert events == ["file", "rename", "folder"]


def test_a_file_that_is_put_back_has_its_name_durable_before_the_other_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = spool.write(tmp_path, b"content")
    events = _record_syncs(monkeypatch)
    unlink = os.unlink

    def watch_unlink(path: Path) -> None:
        events.append("unlink")
        unlink(path)

    monkeypatch.setattr(os, "unlink", watch_unlink)
    written = datetime.fromtimestamp(spool.path(tmp_path, stored).stat().st_mtime, UTC)
    assert not spool.remove(tmp_path, stored.sha256, now=written)
    assert events == ["rename", "folder", "unlink"]
    assert spool.path(tmp_path, stored).read_bytes() == b"content"


def test_a_disk_without_space_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutOfSpace, match="No space left"):
        spool.write(tmp_path, b"content")
    monkeypatch.undo()
    assert _list_files(tmp_path) == []


def test_a_disk_that_fails_to_synchronise_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        spool.write(tmp_path, b"content")


@pytest.mark.parametrize(
    ("limits", "reason"), [({"min_free_gb": 1e9}, "GB free"), ({"refuse_at_percent": 1e-9}, "% full")]
)
def test_a_nearly_full_disk_is_refused(tmp_path: Path, limits: dict[str, float], reason: str) -> None:
    with pytest.raises(OutOfSpace, match=reason) as refusal:
        spool.check_space(tmp_path, SpoolConfig.model_validate({"min_free_gb": 0, "refuse_at_percent": 100} | limits))
    assert refusal.value.dicom_status == 0xA700


@pytest.mark.slow
def test_a_sweep_takes_what_a_killed_process_left_and_nothing_that_is_written(tmp_path: Path) -> None:
    left = "import os, sys; from pathlib import Path; from dicomnode.storage import spool;"
    left += "spool.open_writer(Path(sys.argv[1])).write(bytes(2000000)); os.kill(os.getpid(), 9)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", left, str(tmp_path)], env=environment, check=False)
    with spool.open_writer(tmp_path) as writer:
        writer.write(bytes(2_000_000))
        assert len(_list_files(tmp_path)) == 2
        assert spool.sweep(tmp_path) == 1
        stored = writer.commit()
    assert _list_files(tmp_path) == [spool.path(tmp_path, stored)]


def test_the_folder_of_a_killed_process_is_swept_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    spool.prepare(tmp_path)
    left = tmp_path / "incoming" / "0123.part"
    left.mkdir()
    (left / "head.nii").write_bytes(b"a")
    with spool.open_folder(tmp_path) as folder:
        (folder / "head.nii").write_bytes(b"b")
        assert spool.sweep(tmp_path) == 1
        assert list((tmp_path / "incoming").iterdir()) == [folder]
    assert list((tmp_path / "incoming").iterdir()) == []
