"""Workers on several hosts: what they share, and how a host acts that lacks a model, a file or memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from db import clock, jobs, workers
from db import engine as engines
from db.models import Instance, Job
from db.states import JobState
from dicomnode import checks, config
from dicomnode.config import Config
from dicomnode.errors import ConfigError
from dicomnode.execution import worker, worker_process
from dicomnode.execution.model_cache import ModelCache
from dicomnode.storage import shared
from dicomnode.storage.shared import SpoolMarker
from model_zoo import registry
from model_zoo.bundle import BundleError, BundleFacts, Model
from tests import fleet
from tests.prior_bundle import write_prior_bundle
from tests.rows import add_job

A_MINUTE = timedelta(minutes=1)


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> fleet.Site:
    """Return the settings of hosts on an empty database of either kind."""
    return fleet.Site(tmp_path, database_url)


@pytest.fixture
def rows(site: fleet.Site) -> Iterator[sessionmaker[Session]]:
    engine = engines.connect(site.database_url)
    yield engines.sessions(engine)
    engine.dispose()


def add_prior_job(rows: sessionmaker[Session], model: str, digest: str) -> int:
    with rows.begin() as session:
        return add_job(
            session, datetime.now(UTC) - A_MINUTE, pipeline="mri_reconstruction", model=model, model_digest=digest
        ).id


def work_once(rows: sessionmaker[Session], own: Config, name: str, **more: Any) -> Job:
    """Let one host work until no job waits for it; return the only job."""
    worker.run_worker(rows, own, worker=f"{name}:1", stop=threading.Event(), once=True, **more)
    with rows() as session:
        return session.scalars(select(Job)).one()


def is_alive(rows: sessionmaker[Session], name: str) -> None:
    with rows.begin() as session:
        workers.report(session, f"{name}:1", gpus={}, now=datetime.now(UTC))


def digest_of(path: Path) -> str:
    own = config.load(path)
    return registry.find("mri_prior", "9.0.0", own.models_dir).digest


@pytest.mark.parametrize("lack", ["no bundle", "other weights", "damaged weights"])
def test_a_host_without_the_deployed_model_leaves_the_job_to_another_and_says_why(
    site: fleet.Site, rows: sessionmaker[Session], lack: str
) -> None:
    complete, without = site.host("whole"), site.host("lacking", bundle=None)
    digest = digest_of(complete)
    if lack != "no bundle":
        bundle = config.load(without).models_dir / "mri_prior" / "9.0.0"
        write_prior_bundle(bundle, "9.0.0", seed=int(lack == "other weights"))
    if lack == "damaged weights":
        with (bundle / registry.WEIGHTS).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
    add_prior_job(rows, "mri_prior@9.0.0", digest)
    is_alive(rows, "whole")
    job = work_once(rows, config.load(without), "lacking")
    assert (job.state, job.attempts) == (JobState.READY, 0)
    assert job.reason.startswith("lacking cannot run it: ")
    assert {"no bundle": "no bundle", "other weights": "other weights", "damaged weights": "SHA-256"}[
        lack
    ] in job.reason
    with rows() as session:
        given_back = session.get_one(Job, job.id).not_before
    assert given_back <= datetime.now(UTC), "another host may take it at once"
    assert work_once(rows, config.load(complete), "whole").attempts >= 1


def test_where_no_other_host_works_the_job_ends_with_what_is_lacking(
    site: fleet.Site, rows: sessionmaker[Session]
) -> None:
    without = config.load(site.host("lacking", bundle=None))
    add_prior_job(rows, "mri_prior@9.0.0", "f" * 64)
    is_alive(rows, "lacking")
    with rows.begin() as session:  # its input exists, so that it fails for the model
        _add_file(session, without)
    job = work_once(rows, without, "lacking")
    assert (job.state, job.attempts) == (JobState.DEAD, 1)
    assert "no bundle mri_prior@9.0.0" in job.reason


def test_a_worker_takes_no_job_while_its_mark_is_not_in_the_spool(
    site: fleet.Site, rows: sessionmaker[Session]
) -> None:
    add_prior_job(rows, "mri_prior@9.0.0", "")
    own = config.load(site.host("a"))
    mark = SpoolMarker(own.spool_dir, "a:1")
    mark.set()
    guard = worker_process.SpoolGuard(mark)
    own.spool_dir.rename(site.root / "unmounted")
    mark.renew()
    assert work_once(rows, own, "a", may_take=guard.may_take).attempts == 0
    (site.root / "unmounted").rename(own.spool_dir)
    assert work_once(rows, own, "a", may_take=guard.may_take).attempts > 0
    mark.remove()
    assert not shared.is_marked(own.spool_dir, "a:1")


def test_a_worker_does_not_start_on_a_spool_of_its_own(site: fleet.Site, rows: sessionmaker[Session]) -> None:
    add_prior_job(rows, "mri_prior@9.0.0", "")
    own = config.load(site.host("a"))
    with pytest.raises(ConfigError, match="is not the spool of this database"):
        worker_process.run_worker_process(own, once=True, stop=threading.Event())
    with rows() as session:
        assert session.scalars(select(Job)).one().attempts == 0


def test_check_names_the_host_that_works_on_another_spool(site: fleet.Site, rows: sessionmaker[Session]) -> None:
    own = config.load(site.host("receiver"))
    for name in ("a", "b"):
        is_alive(rows, name)
        SpoolMarker(own.spool_dir, f"{name}:1").set()
    found = {each.what: each for each in checks.run(own)}
    assert (found["workers"].result, found["workers"].detail) == ("ok", "2 on 2 hosts, on this spool: a, b")
    SpoolMarker(own.spool_dir, "b:1").remove()
    found = {each.what: each for each in checks.run(own)}
    assert found["workers"].result == "failed"
    assert "b:1" in found["workers"].detail
    assert "a:1" not in found["workers"].detail


def test_a_host_whose_clock_runs_ahead_takes_no_job_from_a_living_worker(
    database_url: str, rows: sessionmaker[Session]
) -> None:
    add_prior_job(rows, "mri_prior@9.0.0", "")
    engine = engines.connect(database_url)
    now, ahead = clock.make_clock(engine), _advance_clock(engine)
    with rows.begin() as session:
        assert jobs.claim(session, worker="a:1", lease_s=60, now=now()) is not None
        assert jobs.expire_leases(session, attempts=3, now=ahead()) == []
    if engine.dialect.name == "postgresql":
        assert abs(ahead() - datetime.now(UTC)) < A_MINUTE
    engine.dispose()


def test_the_clock_goes_on_while_the_database_does_not_answer(tmp_path: Path, now: datetime) -> None:
    passed = [0.0]
    engine = _FixedClockEngine(now)
    ours = clock.DatabaseClock(engine, machine_clock=lambda: now, passed_s=lambda: passed[0])  # type: ignore[arg-type]
    assert ours() == now
    passed[0], engine.answers = 3600.0, False
    assert ours() == now + timedelta(hours=1)


def test_a_warm_model_is_loaded_once_and_again_when_a_file_of_it_changed(tmp_path: Path) -> None:
    facts = registry.read_facts(write_prior_bundle(tmp_path / "mri_prior", "1.0.0"))
    calls: list[str] = []

    def load(facts: BundleFacts, *, device: str) -> Model:
        calls.append(facts.version)
        return registry.load_from(facts, device=device)

    warm = ModelCache(2, load)
    assert warm(facts, device="cpu") is warm(facts, device="cpu")
    assert calls == ["1.0.0"]
    with (facts.path / registry.WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(BundleError, match="SHA-256"):
        warm(facts, device="cpu")
    assert calls == ["1.0.0", "1.0.0"]


def test_of_more_models_than_are_kept_the_one_not_used_for_longest_goes(tmp_path: Path) -> None:
    found = [
        registry.read_facts(write_prior_bundle(tmp_path / v, v, seed=n)) for n, v in enumerate(("1.0", "2.0", "3.0"))
    ]
    warm = ModelCache(2)
    first, second = (warm(facts, device="cpu") for facts in found[:2])
    assert warm(found[0], device="cpu") is first
    warm(found[2], device="cpu")
    assert warm(found[0], device="cpu") is first
    assert warm(found[1], device="cpu") is not second


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_workers": 5}, "min_workers is more than max_workers"),
        ({"engine": "ray", "device": "cuda:1"}, "Ray gives every actor its GPU"),
        ({"host": "a:1"}, "a host is named by"),
        ({"engine": "slurm"}, "'processes' or 'ray'"),
    ],
)
def test_what_cannot_be_is_refused_by_the_configuration(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "node.toml").write_text("\n".join(["[worker]", *lines]))
    with pytest.raises(ConfigError, match=message):
        config.load(tmp_path / "node.toml")


def _add_file(session: Session, own: Config) -> None:
    from dicomnode.storage import spool
    from tests.peers.kspaces import raw_data

    file = spool.write(own.spool_dir, raw_data(own.path.parent / "raw.dcm", datetime.now(UTC)).read_bytes())
    session.scalars(select(Instance)).one().sha256 = file.sha256


def _advance_clock(engine: Engine) -> Callable[[], datetime]:
    """Put the host's clock an hour ahead; with SQLite there is one clock only, and it counts."""
    if engine.dialect.name == "sqlite":
        return clock.make_clock(engine)
    return clock.DatabaseClock(engine, machine_clock=lambda: datetime.now(UTC) + timedelta(hours=1))


class _FixedClockEngine:
    """An engine whose clock stands at one moment, while it answers at all."""

    def __init__(self, moment: datetime) -> None:
        self.moment, self.answers = moment, True

    def connect(self) -> _FixedClockEngine:
        from sqlalchemy.exc import OperationalError

        if not self.answers:
            raise OperationalError("connect", None, Exception("gone"))
        return self

    def __enter__(self) -> _FixedClockEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def execute(self, statement: object) -> _FixedClockEngine:
        return self

    def scalar_one(self) -> datetime:
        return self.moment
