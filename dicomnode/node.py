"""The node: receiver, sweeps, web and local workers, started together and stopped together."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session, sessionmaker

from db import clock as clocks
from db import clock_jumps, jobs, migrations
from db import engine as engines
from db.clock_jumps import ClockWatch
from db.models import Chain
from dicomnode import tls
from dicomnode.commitment import proving, reporting
from dicomnode.config import Config
from dicomnode.delivery import delivery
from dicomnode.ingest import scp
from dicomnode.learning.supervising import LearningSupervisor
from dicomnode.maintenance.backfill import Backfill
from dicomnode.maintenance.retention import Retention
from dicomnode.monitoring.meters import Meters
from dicomnode.monitoring.sweep_health import SweepHealth
from dicomnode.notifications import availability, notification
from dicomnode.routing import completion, prefetch, rerouting, routing
from dicomnode.storage.high_water import HighWater, check_nothing_lost
from dicomnode.sweeps import Sweeps
from dicomnode.worklist.performing import Performer

if TYPE_CHECKING:
    from dicomnode.web.server import Server as WebServer

__all__ = [
    "WorkerPool",
    "list_sweeps",
    "make_sweeps",
    "prepare",
    "resume_work",
    "serve",
    "stop_on_signals",
]

log = logging.getLogger("dicomnode.node")

DRAIN_S = 20.0
_DEADLINE_S = dict.fromkeys(
    ("delivery", "proofs", "commitment reports", "fetching", "notifications", "availability", "retention", "worklist"),
    1800.0,
)
"""Longest time between two successes of a sweep; sweeps that wait for other machines, or delete much, get more."""

Clock = Callable[[], datetime]


def prepare(config: Config) -> None:
    """Make the folders, and bring the database to the newest schema."""
    config.data_dir.mkdir(parents=True, exist_ok=True)
    config.spool_dir.mkdir(parents=True, exist_ok=True)
    engine = engines.connect(config.database_url)
    migrations.upgrade(engine)
    engine.dispose()


def serve(config: Config, *, workers: int, ready: Callable[[str], None], stop: threading.Event) -> None:
    """Receive, route, run and deliver until ``stop`` is set; then bring work in flight to a clean end."""
    _raise_open_files()
    prepare(config)
    engine = engines.connect(config.database_url)
    sessions = engines.sessions(engine)
    now = clocks.make_clock(engine)  # one clock, handed to all parts below
    resume_work(sessions, config, now=now)
    meters, sweep_health = Meters(), SweepHealth()
    server = scp.start(config, now=now, meters=meters)
    nights = LearningSupervisor(sessions, config, now)
    learn = nights.step if workers else _do_nothing  # where jobs run, there is memory to train
    sweeps = make_sweeps(sessions, config, now=now, sweep_health=sweep_health, learning=learn)
    pool = WorkerPool(config, sessions, workers, now)
    sweep_health.expected_workers, sweep_health.count_workers = workers, pool.count_running
    web = None
    try:
        sweeps.start()
        web = _start_web(config, sessions, meters, sweep_health, now) if config.web.enabled else None
        pool.start()
        ready(_ready_line(config, server, workers, web.address if web else ""))
        while not stop.wait(0.5):
            pool.supervise()
    finally:
        log.info("stopping")
        pool.request_stop()
        if web is not None:
            web.stop()
        server.stop(DRAIN_S)
        sweeps.stop()
        nights.stop()
        pool.wait(DRAIN_S)
        engine.dispose()


def resume_work(sessions: sessionmaker[Session], config: Config, *, now: Clock) -> None:
    """Take up the work that a former process of this machine left, however it ended. Raises StorageDamaged."""
    with sessions() as session:
        check_nothing_lost(session, config.spool_dir)
    _mend_lost_time(sessions, config, now())
    delivery.reclaim_interrupted(sessions, now=now())
    reporting.reclaim_interrupted(sessions, now=now())
    notification.resume(sessions, now=now())
    rerouting.offer_unrouted(sessions, config, now=now)


def _raise_open_files() -> None:
    """Raise the limit of open files and connections to the most that the system grants."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {which: signal.signal(which, lambda *_: stop.set()) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _do_nothing() -> int:
    return 0


def make_sweeps(
    sessions: sessionmaker[Session],
    config: Config,
    *,
    now: Clock,
    sweep_health: SweepHealth,
    learning: Callable[[], int] = _do_nothing,
) -> Sweeps:
    """Return the sweeps of a node, which follow the clock when it is set."""
    sweeps = list_sweeps(sessions, config, now=now, learning=learning)
    for name in sweeps:
        sweep_health.watch(name, _DEADLINE_S.get(name, 60.0))
    watch = ClockWatch(sessions, now, lease_s=config.worker.lease_s, moves_rows=True)
    return Sweeps(sweeps, sweep_health=sweep_health, before=watch.check)


def list_sweeps(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, learning: Callable[[], int] = _do_nothing
) -> dict[str, Callable[[], int]]:
    """Return by name what the node repeats; each returns how many things it did."""
    retention, performer = Retention(sessions, config), Performer(sessions, config)
    return {
        "completion": lambda: completion.close_due_studies(sessions, config.completion, now=now),
        "routing": lambda: routing.route_complete_studies(sessions, config, now=now),
        "fetching": lambda: prefetch.run_pending_retrievals(sessions, config, now=now),
        "leases": lambda: _expire_leases(sessions, config, now),
        "delivery": lambda: delivery.deliver_due(sessions, config, now=now),
        "proofs": lambda: proving.prove_due(sessions, config, now=now),
        "commitment reports": lambda: reporting.report_due(sessions, config, now=now),
        "notifications": lambda: notification.notify_due(sessions, config, now=now),
        "availability": lambda: availability.announce_due(sessions, config, now=now),
        "retention": lambda: retention.step(now=now),
        "worklist": lambda: performer.step(now=now),
        "learning": learning,
        "backfill": Backfill(sessions, config.spool_dir).step,
        "high water": partial(_raise_high_water, sessions, HighWater(config.spool_dir)),
    }


def _raise_high_water(sessions: sessionmaker[Session], mark: HighWater) -> int:
    """Raise the high-water mark to the newest event, whichever commit wrote it."""
    with engines.readers(sessions.kw["bind"])() as session:
        head = session.get_one(Chain, 1)
    mark.raise_to(head.seq, head.hash)
    return 0


def _mend_lost_time(sessions: sessionmaker[Session], config: Config, now: datetime) -> None:
    """Shift open rows with a clock that was set back while the node was down."""
    with sessions.begin() as session:
        lost = clock_jumps.measure_time_lost(session, now=now)
        if lost <= -clock_jumps.TOLERANCE:
            log.warning("the clock is %.0f s behind the newest event; due times follow it", -lost.total_seconds())
            clock_jumps.shift_open_rows(session, lost, now=now)
            clock_jumps.grant_leases(session, lease_s=config.worker.lease_s, now=now)


class WorkerPool:
    """The local workers, as processes; one that dies loses its lease at once and is started again."""

    def __init__(self, config: Config, sessions: sessionmaker[Session], size: int, now: Clock) -> None:
        self._config, self._sessions, self._size, self._now = config, sessions, size, now
        self._processes: list[subprocess.Popen[bytes]] = []
        self._not_before = 0.0
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """Process IDs of the workers, some of which may have ended since the last ``supervise``."""
        return [process.pid for process in self._processes]

    def count_running(self) -> int:
        """Return the number of workers that run."""
        return sum(process.poll() is None for process in list(self._processes))

    def start(self) -> None:
        """Start workers until the pool is full."""
        while len(self._processes) < self._size:
            command = [sys.executable, "-m", "dicomnode", "--config", str(self._config.path)]
            command += ["work", "--parent", str(os.getpid())]
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, env=_worker_environment(self._size))
            )

    def supervise(self) -> None:
        """Replace ended workers, at most once in five seconds."""
        dead = [process for process in self._processes if process.poll() is not None]
        for process in dead:
            log.error("worker %d ended with status %s", process.pid, process.returncode)
            self._processes.remove(process)
            self._abandon(process.pid)
        if len(self._processes) < self._size and time.monotonic() >= self._not_before:
            self._not_before = time.monotonic() + 5.0
            self.start()

    def request_stop(self) -> None:
        """Ask every worker to stop; each gives its job back at the next step."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait for the workers to end; kill those that do not, and take their jobs back."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self._abandon(process.pid)

    def _abandon(self, pid: int) -> None:
        with self._sessions.begin() as session:
            name = jobs.worker_name(pid, self._config.worker.host)
            lost = jobs.reclaim(session, worker=name, attempts=self._config.worker.attempts, now=self._now())
        for job in lost:
            log.error("job %d: its worker died; now %s", job.id, job.state)


def _worker_environment(workers: int) -> dict[str, str]:
    """Return this process's environment with a worker's share of the cores, unless the user set it."""
    # torch's idle threads spin by default: where other work wants the cores, they starve it and one another (tenfold).
    share = max(1, (os.cpu_count() or 1) // max(1, workers))
    return {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(share)} | os.environ


def _expire_leases(sessions: sessionmaker[Session], config: Config, now: Clock) -> int:
    with sessions.begin() as session:
        lapsed = jobs.expire_leases(session, attempts=config.worker.attempts, now=now())
    for job in lapsed:
        log.warning("job %d: lease lapsed; now %s", job.id, job.state)
    return len(lapsed)


def _start_web(
    config: Config, sessions: sessionmaker[Session], meters: Meters, sweep_health: SweepHealth, now: Clock
) -> WebServer:
    from dicomnode.web import server
    from dicomnode.web.app import create_app

    app = create_app(config, sessions, now=now, meters=meters, sweep_health=sweep_health)
    return server.start_server(app, config.web.host, config.web.port, tls.web_identity(config.web))


def _ready_line(config: Config, server: scp.Server, workers: int, web: str) -> str:
    node = config.node
    over = {None: "", server.port: " over TLS"}.get(server.tls_port, f" and over TLS at {server.tls_port}")
    where = f"web {web}/, " if web else ""
    here = f"DICOM {node.ae_title}@{node.host}:{server.port},"
    return f"ready: {here}{over and over + ','} {where}{_describe_workers(workers)}, data in {config.data_dir}"


def _describe_workers(count: int) -> str:
    """Return the number of local workers in words. They load torch when the receiver is ready already."""
    if not count:
        return "no local workers"
    return f"{count} local worker{'s' * (count > 1)} starting"
