"""``dicomnode data``: the kit by its own index, and every file by its SHA-256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dicomnode import cli
from model_zoo import data_index

INDEX = """# Data kit

| item | path | what | size (MB) | licence | origin |
| --- | --- | --- | --- | --- | --- |
| MRI: one head | `mri/head/` | a T1w | 1.5 | CC0 | example.org |
| k-space: one | `kspace/one/` | 8 coils | 2 | MIT | example.org |
"""


@pytest.fixture
def small_kit(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(INDEX)
    for path, layout, purpose in (
        ("mri/head", "    {}  {}  (5 bytes)\n", "- good for: held-out heads\n"),
        ("kspace/one", "| `{}` | {} |\n", ""),
    ):
        folder = tmp_path / path
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "a b.bin").write_bytes(path.encode())
        digest = hashlib.sha256(path.encode()).hexdigest()
        (folder / "README.md").write_text(f"# Item\n\n{purpose}\n{layout.format(digest, 'deep/a b.bin')}")
    return tmp_path


def test_the_list_has_licence_origin_size_and_use(small_kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list", "--data", str(small_kit), "--json"]) == 0
    head, kspace = json.loads(capsys.readouterr().out)
    assert (head["path"], head["mb"], head["licence"], head["origin"]) == ("mri/head/", 1.5, "CC0", "example.org")
    assert head["for"] == "held-out heads"
    assert kspace["for"] == "demo, benchmarks and tests of reconstruction"


def test_the_table_fits_80_columns(
    small_kit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["data", "list", "--data", str(small_kit)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("2 items, 4 MB")


def test_an_unchanged_kit_passes(small_kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_kit / "mri" / "head" / "mine.txt").write_text("note")
    assert cli.main(["data", "check", "--data", str(small_kit), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["files"], row["state"], row["faults"]) for row in rows] == [(1, "ok", "1 not listed"), (1, "ok", "")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("changed", "deep/a b.bin changed"), ("missing", "deep/a b.bin missing"), ("no item", "is not there")],
)
def test_a_fault_is_named(small_kit: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str) -> None:
    path = small_kit / "mri" / "head" / "deep" / "a b.bin"
    if fault == "changed":
        path.write_bytes(b"other")
    elif fault == "missing":
        path.unlink()
    else:
        (small_kit / "mri" / "head" / "README.md").unlink()
    assert cli.main(["data", "check", "--data", str(small_kit), "--json"]) == 1
    shown = capsys.readouterr()
    assert message in json.loads(shown.out)[0]["faults"]
    assert "mri/head/" in shown.err
    assert cli.main(["data", "check", "kspace/one", "--data", str(small_kit)]) == 0


def test_an_item_without_digests_is_not_listed(small_kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_kit / "mri" / "head" / "README.md").write_text("# Item\n")
    assert cli.main(["data", "check", "mri/head", "--data", str(small_kit), "--json"]) == 1
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    assert (row["files"], row["state"], row["faults"]) == (0, "not listed", "1 not listed")
    assert "mri/head/" in shown.err


def test_without_a_kit_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMNODE_DATA", str(tmp_path / "nowhere"))
    assert cli.main(["data", "list"]) == 1
    assert "set DICOMNODE_DATA to its folder" in capsys.readouterr().err
    monkeypatch.setenv("DICOMNODE_DATA", str(tmp_path))
    assert cli.main(["data", "list"]) == 1
    assert "no index at" in capsys.readouterr().err


@pytest.mark.slow
def test_every_item_of_the_kit_has_a_use_and_its_files(kit: Path) -> None:
    items = data_index.read_index(kit)
    assert len(items) > 20
    assert [item.path for item in items if not (item.purpose and item.licence and item.origin)] == []
    small = [item for item in items if item.size_mb < 1]
    faults = {state.path: state.state for item in small for state in data_index.check_item(item)}
    assert {path: state for path, state in faults.items() if state in ("missing", "changed")} == {}
