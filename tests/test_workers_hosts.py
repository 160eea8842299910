"""Workers on several hosts: a killed one loses nothing and repeats nothing; an unhealthy host takes no job."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from db import workers
from dicomnode.config import load
from dicomnode.node import prepare
from tests import fleet, postgresql
from tests.peers import Node, StoreScp, make_route, wait_for, write_config
from tests.peers.kspaces import raw_data
from tests.test_node import put

pytestmark = pytest.mark.slow

STUDIES = 80
KILL_EVERY = 10


@pytest.mark.timeout(600)
def test_every_study_ends_once_while_workers_are_killed(
    tmp_path: Path, now: datetime, postgresql_server: postgresql.Server, storescp: StoreScp
) -> None:
    with postgresql_server.database() as url:
        site = fleet.Site(tmp_path, url, storescp.peer)
        with site.receiver() as receiver:
            fleet.send_studies(receiver, fleet.write_small_studies(tmp_path / "send", STUDIES, now))
            with Node(site.host("a"), "work") as a, Node(site.host("b"), "work") as b:
                begin = time.monotonic()
                killed = _kill_repeatedly(receiver, [a, b])
                print(f"{STUDIES} studies, {len(killed)} workers killed, {time.monotonic() - begin:.0f} s")
                assert a.stop() == b.stop() == 0
            assert len(killed) == STUDIES // KILL_EVERY - 1
            jobs = receiver.jobs()
            assert {job.worker.rpartition(":")[0] for job in jobs} == {"a", "b"}
            assert any(job.attempts > 1 for job in jobs)
            with receiver.sessions() as session:
                fleet.check_each_job_ended_once(session, site.spool_dir, STUDIES)
            fleet.check_each_result_arrived_once(receiver, storescp.files(), STUDIES)
            assert receiver.stop() == 0


def test_a_worker_outlives_a_restart_of_the_database(tmp_path: Path, now: datetime) -> None:
    if missing := postgresql.reason_unavailable():
        pytest.skip(missing)
    with postgresql.run_server() as server, server.database() as url:
        path = write_config(tmp_path, database={"url": url}, routes=[make_route(steps=2, mean_steps=2, samples=2)])
        prepare(load(path))
        with Node(path, "work") as running:
            wait_for(lambda: _has_reported(running), "it works", within_s=60)
            server.stop()
            wait_for(lambda: "the database does not answer" in running.log, "it notices", within_s=30)
            server.start()
            put(running, raw_data(tmp_path / "raw.dcm", now), now)
            assert running.wait_for_job("done").attempts == 1
            assert running.stop() == 0


def _has_reported(running: Node) -> bool:
    with running.sessions() as session:
        return bool(workers.list_alive(session, since=datetime.now(UTC) - timedelta(minutes=1)))


def _kill_repeatedly(receiver: Node, hosts: list[Node]) -> list[int]:
    """Kill (-9) a worker that runs a job each time that a further share of the studies has ended; start it again."""
    killed = []
    for enough in range(KILL_EVERY, STUDIES, KILL_EVERY):
        fleet.wait_until_ended(receiver, enough)
        by_pid = {host.program.pid: host for host in hosts}
        pid = wait_for(lambda: fleet.find_busy_worker(receiver), "a worker has a job in hand")
        by_pid[pid].program.kill()
        killed.append(pid)
        by_pid[pid].start()
    fleet.wait_until_ended(receiver, STUDIES)
    return killed
