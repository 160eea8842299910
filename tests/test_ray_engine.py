"""Ray as the engine: whichever part of it dies, every study ends once."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import update

from db import engine as engines
from db.models import Job
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.worker import WorkerConfig
from dicomnode.errors import ConfigError
from dicomnode.execution import ray_actors
from tests import fleet, postgresql
from tests.peers import Node, wait_for
from tests.peers.ray_cluster import RayCluster, descendants, reason_unavailable

pytestmark = pytest.mark.slow

STUDIES = 60
KILL_EVERY = 12

needs_ray = pytest.mark.skipif(bool(reason_unavailable()), reason=reason_unavailable())


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the token of the tests' clusters, so that no other process joins and none is written into the user's home.

    Actors get the processor as other tests do: by Ray's own setting they wait for all that runs beside them.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    monkeypatch.setenv("RAY_worker_niceness", "0")


@needs_ray
@pytest.mark.timeout(900)
def test_every_study_ends_once_while_actors_a_machine_and_the_driver_are_killed(
    tmp_path: Path, now: datetime, postgresql_server: postgresql.Server
) -> None:
    with postgresql_server.database() as url:
        site = fleet.Site(tmp_path, url)
        a, b = ({"DICOMNODE_CONFIG": str(site.host(name))} for name in "ab")
        with RayCluster(tmp_path / "ray", a) as cluster, site.receiver() as receiver:
            cluster.add("second", b)
            driver = Node(_start_driver(site, cluster, 2), "work")
            fleet.send_studies(receiver, fleet.write_small_studies(tmp_path / "send", STUDIES, now))
            with driver:
                begin = time.monotonic()
                blows = [
                    _kill_busy_actor,
                    lambda r: _replace_machine(cluster, b),
                    _kill_busy_actor,
                    lambda r: _kill_driver(driver),
                ]
                _strike_repeatedly(receiver, blows)
                print(f"{STUDIES} studies, {len(blows)} blows, {time.monotonic() - begin:.0f} s")
                assert driver.stop() == 0
            assert {job.worker.rpartition(":")[0] for job in receiver.jobs()} == {"a", "b"}
            with receiver.sessions() as session:
                fleet.check_each_job_ended_once(session, site.spool_dir, STUDIES)
            assert any(job.attempts > 1 for job in receiver.jobs())


@needs_ray
@pytest.mark.timeout(600)
def test_actors_come_with_the_jobs_take_the_urgent_one_first_and_go(
    tmp_path: Path, now: datetime, postgresql_server: postgresql.Server
) -> None:
    with postgresql_server.database() as url:
        site = fleet.Site(tmp_path, url)
        there = {"DICOMNODE_CONFIG": str(site.host("a"))}
        with RayCluster(tmp_path / "ray", there) as cluster, site.receiver() as receiver:
            fleet.send_studies(receiver, fleet.write_small_studies(tmp_path / "send", 6, now))
            urgent = _make_urgent(receiver)
            ray = {"engine": "ray", "ray_address": cluster.client_address, "min_workers": 0, "max_workers": 1}
            with Node(site.host("driver", bundle=None, idle_s=1, **ray), "work") as driver:
                fleet.wait_until_ended(receiver, 6)
                wait_for(lambda: "ended after" in driver.log, "nobody needs the actor", within_s=120)
                assert driver.stop() == 0
            with receiver.sessions() as session:
                fleet.check_each_job_ended_once(session, site.spool_dir, 6)
            begun = sorted(receiver.jobs(), key=lambda job: job.started_at or now)
            assert begun[0].id == urgent
            assert len({job.worker for job in begun}) == 1


@needs_ray
@pytest.mark.timeout(600)
def test_a_node_alone_brings_its_own_ray_and_takes_it_along(tmp_path: Path, now: datetime) -> None:
    site = fleet.Site(tmp_path, f"sqlite:///{tmp_path / 'node.sqlite'}")
    with Node(site.host("alone", engine="ray", max_workers=1), "serve") as node:
        fleet.send_studies(node, fleet.write_small_studies(tmp_path / "send", 2, now))
        fleet.wait_until_ended(node, 2)
        (driver,) = node.children
        ray = descendants(driver)
        assert len(ray) > 2
        with node.sessions() as session:
            fleet.check_each_job_ended_once(session, site.spool_dir, 2)
        assert node.stop() == 0
        wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in ray), "Ray ends with the node")


class BusyRay:
    """A module ray whose cluster refuses every connection, as a busy one does; sets ``stop`` at the third."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop, self.attempts = stop, 0

    def init(self, **_: object) -> None:
        self.attempts += 1
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray sets a handler of its own before it connects
        if self.attempts == 3:
            self.stop.set()
        raise ConnectionAbortedError("Initialization failure from server")

    def shutdown(self) -> None:
        pass


def test_a_driver_waits_for_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    ray = BusyRay(stop)
    monkeypatch.setattr(ray_actors, "import_ray", lambda: ray)
    worker = WorkerConfig(engine="ray", ray_address="ray://head.example:10001")
    config = Config(node=NodeConfig(data_dir=tmp_path), worker=worker).with_absolute_paths(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    ray_actors.run_actor_pool(config, stop=stop)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert ray.attempts == 3
    pauses = re.findall(r"does not answer \(ConnectionAbortedError\); next attempt in (\d) s", caplog.text)
    assert pauses == ["1", "2", "4"]


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'dicomnode\[ray\]'"):
        ray_actors.import_ray()


def _start_driver(site: fleet.Site, cluster: RayCluster, actors: int) -> Path:
    ray = {"engine": "ray", "ray_address": cluster.address, "min_workers": actors, "max_workers": actors}
    return site.host("driver", bundle=None, **ray)


def _make_urgent(node: Node) -> int:
    """Make the newest job urgent; return its number."""
    job = node.jobs()[-1]
    engine = engines.connect(node.config.database_url)
    with engine.begin() as connection:
        connection.execute(update(Job).where(Job.id == job.id).values(priority=5))
    engine.dispose()
    return job.id


def _strike_repeatedly(receiver: Node, blows: list[Callable[[Node], None]]) -> None:
    """Strike once each time that a further share of the studies has ended."""
    for number, blow in enumerate(blows, start=1):
        fleet.wait_until_ended(receiver, number * KILL_EVERY)
        blow(receiver)
    fleet.wait_until_ended(receiver, STUDIES)


def _kill_busy_actor(receiver: Node) -> None:
    """Kill (-9) one actor that runs a job."""
    os.kill(wait_for(lambda: fleet.find_busy_worker(receiver), "an actor has a job in hand"), signal.SIGKILL)


def _replace_machine(cluster: RayCluster, environment: dict[str, str]) -> None:
    """Kill the second machine with all its processes, and add another."""
    cluster.nodes[-1].kill()
    cluster.add("third", environment)


def _kill_driver(driver: Node) -> None:
    driver.program.kill()
    driver.start()
