"""Nights of learning: their hours, processes that end with them, and the comparison that they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db.models import LearningRun
from db.states import LearningState
from dicomnode import cli
from dicomnode.config import Config, load
from dicomnode.config.learning import LearningConfig
from dicomnode.errors import ConfigError, NodeError, NotAllowed
from dicomnode.learning.beginning import check_cases
from dicomnode.learning.commands import Commands, OutOfTime
from dicomnode.learning.comparison import compare_rows, summarize
from dicomnode.learning.folders import remove_ended, remove_images
from dicomnode.learning.running import run_night
from dicomnode.learning.supervising import LearningSupervisor, is_due
from model_zoo import registry
from tests import databases
from tests.learning_site import LEARNING, ROUTE
from tests.peers import write_config

NIGHT = LearningConfig(**LEARNING | {"start": "22:00", "hours": 6})


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-11-30T21:59", None),
        ("2026-11-30T22:00", "2026-11-30T22:00"),
        ("2026-12-01T03:59", "2026-11-30T22:00"),
        ("2026-12-01T04:00", None),
    ],
)
def test_a_night_goes_over_midnight(at: str, expected: str | None) -> None:
    found = NIGHT.find_night(datetime.fromisoformat(at))
    assert found == (
        None
        if expected is None
        else (datetime.fromisoformat(expected), datetime.fromisoformat(expected) + timedelta(hours=6))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "25:00"}, "is no time of day"),
        ({"hours": 0}, "greater than 0"),
        ({"name": "../pet"}, "name"),
        ({"pipeline": "anatomy"}, "no route runs the pipeline 'anatomy'"),
    ],
)
def test_node_toml_is_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_config(tmp_path, routes=[ROUTE], learning=[LEARNING | changes])
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_route_that_names_its_model_leaves_nothing_to_learn(tmp_path: Path) -> None:
    path = write_config(tmp_path, routes=[ROUTE | {"model": "standard_dose_pet@1.4.0"}], learning=[LEARNING])
    with pytest.raises(ConfigError, match="name their model, which nothing replaces"):
        load(path)


def test_a_condition_of_learning_counts_as_routed(tmp_path: Path) -> None:
    conditions = {"standard": {"Modality": "PT", "ProtocolName": "~full"}}
    config = load(write_config(tmp_path, routes=[ROUTE], learning=[LEARNING | {"with": conditions}]))
    assert "ProtocolName" in config.routed_keywords


@pytest.fixture
def site(tmp_path: Path) -> Config:
    config = load(write_config(tmp_path, routes=[ROUTE], learning=[LEARNING | {"start": "00:00", "hours": 24}]))
    databases.prepare(config)
    return config


@pytest.fixture
def sessions(site: Config) -> Iterator[sessionmaker[Session]]:
    engine = engines.connect(site.database_url)
    yield engines.sessions(engine)
    engine.dispose()


def add_run(sessions: sessionmaker[Session], state: LearningState = LearningState.TRAINING) -> int:
    now = datetime.now(UTC)
    with sessions.begin() as session:
        run = LearningRun(
            name="pet", pipeline="standard_dose_pet", recipe="standard-dose-pet",
            base="standard_dose_pet@1.4.0", base_digest="0" * 64, model="standard_dose_pet@1.4.0+site.1", state=state,
            settings={}, cases=[], scores=[], created_at=now, begun_at=now,
        )  # fmt: skip
        session.add(run)
        session.flush()
        return run.id


def test_a_process_is_killed_when_the_night_is_over(
    site: Config, tmp_path: Path, children: Callable[[], set[str]]
) -> None:
    began = time.monotonic()
    seen: list[bool] = []
    with (tmp_path / "lock").open("w") as lock:
        commands = Commands(site.path, lambda: began + 3 - time.monotonic(), lock.fileno())
        with pytest.raises(OutOfTime, match="the hours of this night are over"):
            commands.run(["work"], log=tmp_path / "log", watch=lambda: seen.append(bool(children())))
    assert any(seen)
    assert children() == set()
    assert time.monotonic() - began < 30


def test_a_failed_command_is_named_with_its_last_line(site: Config, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        commands = Commands(site.path, lambda: 60.0, lock.fileno())
        with pytest.raises(NodeError, match=r"^jobs ended with status 1: .*999"):
            commands.run(["jobs", "show", "999"], log=tmp_path / "log")


@pytest.fixture
def children() -> Callable[[], set[str]]:
    """Return a function that lists the processes which this test has started and which still run."""

    def list_all() -> set[str]:
        found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        return {pid for path in found for pid in path.read_text().split()}

    before = list_all()
    return lambda: list_all() - before


def test_an_open_run_is_due_and_is_tried_once_a_night(
    site: Config, sessions: sessionmaker[Session], children: Callable[[], set[str]]
) -> None:
    moment = datetime.now(UTC)
    supervisor = LearningSupervisor(sessions, site, lambda: moment)
    assert not is_due(sessions, site.learning[0])
    assert supervisor.step() == 0
    add_run(sessions)
    assert is_due(sessions, site.learning[0])
    assert supervisor.step() == 0  # this night was looked at before
    moment += timedelta(days=1)
    assert supervisor.step() == 1
    assert supervisor.step() == 0
    supervisor.stop()
    assert children() == set()


def test_a_process_that_outlives_its_night_is_killed(
    site: Config, sessions: sessionmaker[Session], children: Callable[[], set[str]]
) -> None:
    add_run(sessions)
    moment = datetime.now(UTC)
    supervisor = LearningSupervisor(sessions, site, lambda: moment)
    assert supervisor.step() == 1
    moment += timedelta(days=1, minutes=5)
    supervisor.step()
    assert children() == set()


def test_too_few_cases_are_refused_and_named(
    site: Config, sessions: sessionmaker[Session], capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dicomnode", "--config", str(site.path), "learn", "run", "pet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        "usable cases of 0 patients in the split train, 1 needed; 'dicomnode learn cases pet' lists them" in done.stderr
    )
    assert cli.main(["--config", str(site.path), "learn", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["--config", str(site.path), "learn", "cases", "nothing"]) == 1
    assert "no [[learning]] is named 'nothing'" in capsys.readouterr().err


def test_an_open_run_without_its_folder_is_left_alone_until_it_is_cancelled(
    site: Config, sessions: sessionmaker[Session], capsys: pytest.CaptureFixture[str]
) -> None:
    id = add_run(sessions)
    words = ["--config", str(site.path), "learn"]
    with pytest.raises(NotAllowed, match="the folder of run 1 is not here"):
        run_night(site, sessions, site.learning[0], now=lambda: datetime.now(UTC), left_s=lambda: 60.0)
    assert cli.main([*words, "cancel", str(id), "--reason", "host is gone", "--who", "AB"]) == 0
    assert "cancelled by AB: host is gone" in capsys.readouterr().out
    with sessions() as session:
        assert session.get_one(LearningRun, id).state is LearningState.FAILED
    assert cli.main([*words, "cancel", str(id)]) == 1
    assert not is_due(sessions, site.learning[0])


def test_one_run_of_a_name_is_open_at_a_time(sessions: sessionmaker[Session]) -> None:
    add_run(sessions)
    with pytest.raises(IntegrityError):
        add_run(sessions)


def test_cancelling_removes_the_images_also_of_names_that_are_gone(
    site: Config, sessions: sessionmaker[Session]
) -> None:
    id = add_run(sessions)
    folders = [site.learning_dir / name / str(id) / "cases" for name in ("pet", "no longer there")]
    for folder in folders:
        folder.mkdir(parents=True)
    remove_ended(site.learning_dir, sessions)
    assert [folder.exists() for folder in folders] == [True, False]
    assert cli.main(["--config", str(site.path), "learn", "cancel", str(id), "--reason", "x"]) == 0
    assert not folders[0].exists()


def test_nights_without_a_checkpoint_end_a_run_and_a_signal_does_not(
    site: Config, sessions: sessionmaker[Session]
) -> None:
    id = add_run(sessions)
    (site.learning_dir / "pet" / str(id)).mkdir(parents=True)

    def spend_night() -> LearningRun:
        return run_night(site, sessions, site.learning[0], now=lambda: datetime.now(UTC), left_s=lambda: 0.0)

    with sessions.begin() as session:
        run = session.get_one(LearningRun, id)
        run.base_digest = registry.find("standard_dose_pet").digest
        run.settings = {"set": {}, "configuration": "smoke", "device": "cpu", "shadow": False, "numbers": {}}
    found = [spend_night() for _ in range(3)]
    assert [(run.state, run.idle_nights) for run in found] == [
        (LearningState.TRAINING, 1), (LearningState.TRAINING, 2), (LearningState.FAILED, 3),
    ]  # fmt: skip
    assert "3 nights gave no new checkpoint" in found[-1].reason


def test_a_signal_to_a_command_ends_the_night_and_not_the_run(site: Config, tmp_path: Path) -> None:
    def interrupt() -> None:
        for pid in Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)

    with (tmp_path / "lock").open("w") as lock:
        commands = Commands(site.path, lambda: 60.0, lock.fileno())
        with pytest.raises(OutOfTime, match="work was ended by a signal"):
            commands.run(["work"], log=tmp_path / "log", watch=interrupt)


def test_a_night_leaves_no_images_of_ended_runs(tmp_path: Path) -> None:
    for name in ("1/cases/7", "1/run", "2/cases/8", "incoming/cases/9"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "1" / "table.csv").touch()
    remove_images(tmp_path, keep=2)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "1", "1/table.csv", "2", "2/cases", "2/cases/8",
    ]  # fmt: skip


def test_each_split_needs_its_patients() -> None:
    splits = ("train", "validation", *["test"] * 9)
    cases = [{"split": split, "subject": f"s{n}", "left_out": ""} for n, split in enumerate(splits)]
    again = {"split": "test", "subject": "s2", "left_out": ""}
    for further in (again, again | {"subject": "new", "left_out": "it has no partner"}):
        with pytest.raises(NotAllowed, match="usable cases of 9 patients in the split test, 10 needed"):
            check_cases([*cases, further], NIGHT)
    check_cases([*cases, again | {"subject": "new"}], NIGHT)


def make_scores(better: int, worse: int, equal: int = 0) -> list[dict[str, Any]]:
    kinds = [True] * better + [False] * worse + [None] * equal
    return [{"subject": f"s{n}", "job_id": n, "is_better": kind} for n, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("scores", "sentence", "chance"),
    [
        (
            make_scores(38, 2),
            "The new version is better on 38 of 40 test cases; here are the 2 on which it is worse.",
            821 / 2**40,
        ),
        (make_scores(1, 0), "The new version is better on 1 of 1 test case, and worse on none.", 0.5),
        (
            make_scores(3, 1, 2),
            "The new version is better on 3 of 6 test cases; equal on 2; here is the one on which it is worse.",
            5 / 16,
        ),
        (make_scores(0, 0, 2), "The new version is better on 0 of 2 test cases; equal on 2, and worse on none.", None),
    ],
)
def test_the_sentence_counts_cases(scores: list[dict[str, Any]], sentence: str, chance: float | None) -> None:
    found = summarize(scores)
    assert found.sentence == sentence
    assert found.chance == pytest.approx(chance)


def test_several_cases_of_one_patient_count_once_for_chance() -> None:
    scores = [each | {"subject": "one"} for each in make_scores(5, 0)]
    found = summarize([*scores, *make_scores(0, 1)])
    assert (found.better, found.total, found.patients) == (5, 6, 2)
    assert found.chance == pytest.approx(0.75)


def test_a_version_without_a_figure_is_worse_and_numbers_of_one_version_do_not_count() -> None:
    cases = [{"job_id": n, "study_id": n, "subject": "s", "verdict": "accepted", "line": n} for n in (2, 3, 4)]
    rows = [
        {"line": 2, "scores": {"new": {"mae": float("nan")}, "old": {"mae": 1.0}}},
        {"line": 3, "scores": {"new": {"mae": 1.0, "mae_far": 0.0}, "old": {"mae": 1.0}}},
        {"line": 4, "scores": {"new": {}, "old": {}}, "fault": "math domain error"},
    ]
    found = {each["job_id"]: each for each in compare_rows(rows, cases, "new", "old", "mae")}
    assert (found[2]["new"], found[2]["is_better"]) == (None, False)
    assert (found[3]["new"], found[3]["is_better"]) == (1.0, None)
    assert (found[4]["fault"], found[4]["is_better"]) == ("math domain error", None)
    assert "NaN" not in json.dumps(found)


def test_rows_become_figures_of_cases_the_worse_ones_first() -> None:
    cases = [{"job_id": n, "study_id": n, "subject": "s", "verdict": "accepted", "line": n} for n in (2, 3)] + [
        {"job_id": 4, "study_id": 4, "subject": "t", "verdict": "rejected"}
    ]
    rows = [
        {
            "line": 2,
            "scores": {
                "new": {"gain_db_0.1": 3.0, "gain_db_0.2": 5.0},
                "old": {"gain_db_0.1": 1.0, "gain_db_0.2": 1.0},
            },
        },
        {"line": 3, "scores": {"new": {"gain_db_0.1": 1.0, "bias": 9.0}, "old": {"gain_db_0.1": 2.0}}},
    ]
    found = compare_rows(rows, cases, "new", "old", "gain_db_")
    assert [(each["job_id"], each["new"], each["old"], each["is_better"]) for each in found] == [
        (3, 1.0, 2.0, False), (2, 4.0, 1.0, True),
    ]  # fmt: skip
    lower = compare_rows(
        [{"line": 2, "scores": {"new": {"mae": 1.0}, "old": {"mae": 2.0}}}], cases, "new", "old", "mae"
    )
    assert lower[0]["is_better"] is True
    with pytest.raises(NodeError, match="no number dice"):
        compare_rows(rows, cases, "new", "old", "dice")
