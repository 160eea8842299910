"""Blocks of routes: text from values, and their addition to node.toml without a change of anything else."""

from __future__ import annotations

import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dicomnode.config import Route, load, route_blocks
from dicomnode.errors import ConfigError, NotAllowed

pytestmark = pytest.mark.fast

NOW = datetime(2026, 11, 30, 16, 25, 48, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "name": "flair-to-lesions",
    "pipeline": "ms_lesions",
    "match": {"Modality": "MR", "SeriesDescription": r'~(?i)"fl\d', "MagneticFieldStrength": ["1.5", 3]},
    "with": {"t1w": {"Modality": "MR", "EchoTime": "< 5"}},
    "destinations": ["pacs"],
    "options": {"passes": 3, "lesion_sure": 0.5, "turned": True, "words": "a\x7f\tü", "list": [1, 2]},
    "model": "",
}
FILE = """# the node of the ward
[node]
ae_title = "WARD"  # ask Mia

[[peers]]
name = "pacs"
ae_title = "A"
port = 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(FILE)
    path.chmod(0o640)
    return path


def test_a_block_reads_back_as_the_same_route() -> None:
    block = route_blocks.make_block(VALUES)
    (found,) = tomllib.loads(block.text)["routes"]
    assert found == {key: value for key, value in VALUES.items() if value}
    assert Route.model_validate(found) == block.route


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match": {}}, "match has no condition"),
        ({"match": {"SeriesName": "a"}}, "'SeriesName' is no DICOM keyword"),
        ({"match": {"Modality": "~("}}, r"match.Modality: '~\(' is no regular expression"),
        ({"match": {"EchoTime": "< soon"}}, "compares with something that is no number"),
        ({"colour": "red"}, "a route has no key 'colour'; it has: name, pipeline, match"),
        ({"pipeline": None}, "pipeline is missing"),
        ({"options": {"at": datetime(2026, 1, 1)}}, "is no value of a route"),
        ({"options": {"limit": float("inf")}}, "inf is no value of a route"),
        ({"priority": "high"}, "priority: "),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        route_blocks.make_block(VALUES | changes)


@pytest.mark.parametrize("text", ["[[routes]]\nname = 'a'", "Modality = ", "[match]"])
def test_lines_of_conditions_hold_nothing_else(text: str) -> None:
    with pytest.raises(ConfigError, match="conditions: "):
        route_blocks.parse_table(text, "conditions")


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("true", True), ("[1, 2]", [1, 2]), ("words", "words"), ("1\nb = 2", "1\nb = 2")]
)
def test_a_value_is_toml_or_text(text: str, value: Any) -> None:
    assert route_blocks.parse_value(text) == value


def test_an_added_route_leaves_every_byte_before_it(path: Path) -> None:
    addition = route_blocks.plan(path, route_blocks.make_block(VALUES), "by MK: lesions\n[node]")
    assert path.read_text() == FILE, "a plan writes nothing"
    assert '+name = "flair-to-lesions"' in addition.diff
    assert "-" not in {line[:1] for line in addition.diff.splitlines()[2:]}, "nothing is removed"
    kept_path = route_blocks.write(addition, now=NOW)
    assert kept_path.name == "node.toml.20261130T162548Z"
    assert kept_path.read_text() == FILE
    assert path.read_text().startswith(FILE + "\n# by MK: lesions[node]\n[[routes]]\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert [route.name for route in load(path).routes] == ["flair-to-lesions"]
    assert sorted(each.name for each in path.parent.iterdir()) == ["node.toml", kept_path.name]


@pytest.mark.parametrize("content", [FILE.replace("\n", "\r\n"), FILE.rstrip("\n"), "\ufeff" + FILE])
def test_line_ends_and_byte_order_mark_stay(path: Path, content: str) -> None:
    path.write_bytes(content.encode())
    route_blocks.write(route_blocks.plan(path, route_blocks.make_block(VALUES), ""), now=NOW)
    written = path.read_bytes()
    assert written.startswith(content.encode())
    assert load(path).routes[0].name == "flair-to-lesions"
    if "\r\n" in content:
        assert written.count(b"\n") == written.count(b"\r\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"destinations": ["nowhere"]}, r"node.toml, line \d+: route 'flair-to-lesions' delivers to 'nowhere'"),
        ({"name": "trial:x"}, "names that begin with 'trial:' are of trials"),
    ],
)
def test_a_route_that_the_node_would_refuse_is_not_planned(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        route_blocks.plan(path, route_blocks.make_block(VALUES | changes), "")


def test_a_name_is_added_once(path: Path) -> None:
    block = route_blocks.make_block(VALUES)
    route_blocks.write(route_blocks.plan(path, block, ""), now=NOW)
    with pytest.raises(ConfigError, match="another of the routes is already named 'flair-to-lesions'"):
        route_blocks.plan(path, block, "")


def test_a_file_that_changed_since_it_was_shown_is_not_replaced(path: Path) -> None:
    addition = route_blocks.plan(path, route_blocks.make_block(VALUES), "")
    path.write_text(FILE + "# a colleague was here\n")
    with pytest.raises(NotAllowed, match=r"node.toml has changed meanwhile"):
        route_blocks.write(addition, now=NOW)
    assert path.read_text().endswith("# a colleague was here\n")
    assert len(list(path.parent.iterdir())) == 1


def test_two_in_one_second_do_not_replace_the_file_that_is_kept(path: Path) -> None:
    route_blocks.write(route_blocks.plan(path, route_blocks.make_block(VALUES), ""), now=NOW)
    second = route_blocks.plan(path, route_blocks.make_block(VALUES | {"name": "other"}), "")
    with pytest.raises(NotAllowed, match=r"node.toml.20261130T162548Z exists"):
        route_blocks.write(second, now=NOW)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_a_message(path: Path) -> None:
    addition = route_blocks.plan(path, route_blocks.make_block(VALUES), "")
    path.parent.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match=r"cannot be written .*: copy the block into it by hand"):
            route_blocks.write(addition, now=NOW)
    finally:
        path.parent.chmod(0o700)


def test_a_disk_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addition = route_blocks.plan(path, route_blocks.make_block(VALUES), "")

    def refuse(source: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written \(Read-only file system\): copy the block"):
        route_blocks.write(addition, now=NOW)
    assert path.read_text() == FILE
    assert list(path.parent.iterdir()) == [path], "no copy is left"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@needs_root
def test_new_and_kept_file_have_the_owner_of_the_old_one(path: Path) -> None:
    os.chown(path, 1234, 1235)
    kept_path = route_blocks.write(route_blocks.plan(path, route_blocks.make_block(VALUES), ""), now=NOW)
    for each in (path, kept_path):
        assert (each.stat().st_uid, each.stat().st_gid, each.stat().st_mode & 0o777) == (1234, 1235, 0o640)


@needs_root
@pytest.mark.parametrize(("mode", "is_written"), [(0o644, True), (0o640, False)])
def test_an_owner_that_cannot_be_given_is_needed_where_others_may_not_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_written: bool
) -> None:
    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    path.chmod(mode)
    os.chown(path, 1234, 1235)
    addition = route_blocks.plan(path, route_blocks.make_block(VALUES), "")
    monkeypatch.setattr(os, "fchown", refuse)
    if is_written:
        assert route_blocks.write(addition, now=NOW).stat().st_mode & 0o777 == mode
        return
    with pytest.raises(ConfigError, match=r"cannot be written \(Operation not permitted\)"):
        route_blocks.write(addition, now=NOW)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == FILE


def test_a_change_is_undone_unless_somebody_went_on(path: Path) -> None:
    addition = route_blocks.plan(path, route_blocks.make_block(VALUES), "")
    route_blocks.restore(addition, route_blocks.write(addition, now=NOW))
    assert (path.read_text(), list(path.parent.iterdir())) == (FILE, [path])
    kept_path = route_blocks.write(addition, now=NOW)
    path.write_text("# mine\n")
    route_blocks.restore(addition, kept_path)
    assert (path.read_text(), kept_path.read_text()) == ("# mine\n", FILE)


def test_a_file_with_a_block_is_read(tmp_path: Path) -> None:
    file = tmp_path / "route.toml"
    file.write_text(route_blocks.make_block(VALUES).text)
    assert route_blocks.read(file).route.pipeline == "ms_lesions"
    file.write_text(FILE)
    with pytest.raises(ConfigError, match=r"must hold one \[\[routes\]\] block"):
        route_blocks.read(file)
