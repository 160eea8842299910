"""Workers on several hosts: what is killed loses nothing and repeats nothing; a host that is not well takes no job."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from tests import fleet, postgresql
from tests.peers import Node, StoreScp, wait_for

STUDIES = 200
KILL_EVERY = 25


@pytest.mark.timeout(600)
def test_every_study_ends_once_while_workers_are_killed(
    tmp_path: Path, now: datetime, postgresql_server: postgresql.Server, storescp: StoreScp
) -> None:
    with postgresql_server.database() as url:
        site = fleet.Site(tmp_path, url, storescp.peer)
        with site.receiver() as receiver:
            fleet.send_studies(receiver, fleet.small_studies(tmp_path / "send", STUDIES, now))
            with Node(site.host("a"), "work") as a, Node(site.host("b"), "work") as b:
                begin = time.monotonic()
                killed = _kill_now_and_then(receiver, [a, b])
                print(f"{STUDIES} studies, {len(killed)} workers killed, {time.monotonic() - begin:.0f} s")
                assert a.stop() == b.stop() == 0
            assert len(killed) == STUDIES // KILL_EVERY - 1
            jobs = receiver.jobs()
            assert {job.worker.rpartition(":")[0] for job in jobs} == {"a", "b"}
            assert any(job.attempts > 1 for job in jobs)
            with receiver.sessions() as session:
                fleet.each_ended_once(session, site.spool_dir, STUDIES)
            fleet.each_arrived_once(receiver, storescp.files(), STUDIES)
            assert receiver.stop() == 0


def _kill_now_and_then(receiver: Node, hosts: list[Node]) -> list[int]:
    """Each time that so many more studies have ended, kill -9 of a worker with a job in hand; it is started again."""
    killed = []
    for enough in range(KILL_EVERY, STUDIES, KILL_EVERY):
        fleet.wait_until_ended(receiver, enough)
        by_pid = {host.program.pid: host for host in hosts}
        pid = wait_for(lambda: fleet.at_work(receiver), "a worker has a job in hand")
        by_pid[pid].program.kill()
        killed.append(pid)
        by_pid[pid].start()
    fleet.wait_until_ended(receiver, STUDIES)
    return killed
