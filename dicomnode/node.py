"""The node: receiver, clock and local workers, started together and stopped together."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.orm import Session, sessionmaker

from db import clock as clocks
from db import engine as engines
from db import jobs, migrations
from dicomnode import completion, delivery, routing
from dicomnode.awaited import fetching
from dicomnode.backfill import Backfill
from dicomnode.config import Config
from dicomnode.dimse import scp
from dicomnode.monitoring.meters import Meters
from dicomnode.monitoring.pulse import Pulse
from dicomnode.notifications import notification
from dicomnode.storage.retention import Retention

if TYPE_CHECKING:
    from dicomnode.web.server import Server as WebServer

__all__ = ["Crew", "make_clock", "prepare", "serve", "stop_on_signals"]

log = logging.getLogger("dicomnode.node")

SWEEP_S = 1.0
DRAIN_S = 20.0
_PATIENCE_S = dict.fromkeys(("delivery", "fetching", "notifications", "retention"), 1800.0)
"""What waits for others' machines, or deletes much, may take long; the rest has to succeed every minute."""

Clock = Callable[[], datetime]


def prepare(config: Config) -> None:
    """Folders and the newest schema: what every part of the node relies on."""
    config.spool_dir.mkdir(parents=True, exist_ok=True)
    engine = engines.connect(config.database_url)
    migrations.upgrade(engine)
    engine.dispose()


def serve(config: Config, *, workers: int, ready: Callable[[str], None], stop: threading.Event) -> None:
    """Receive, route, run and deliver until ``stop`` is set; then let what is in flight come to a clean end."""
    _raise_open_files()
    prepare(config)
    engine = engines.connect(config.database_url)
    sessions = engines.sessions(engine)
    now = clocks.of(engine)  # the one clock; everything below is handed its moments
    delivery.resume(sessions, now=now())
    notification.resume(sessions, now=now())
    meters, pulse = Meters(), Pulse(now)
    server = scp.start(config, now=now, meters=meters)
    clock = make_clock(sessions, config, now=now, pulse=pulse)
    crew = Crew(config, sessions, workers, now)
    pulse.expected_workers, pulse.count_workers = workers, crew.count
    web = None
    try:
        clock.start()
        web = _start_web(config, sessions, meters, pulse, now) if config.web.enabled else None
        crew.start()
        ready(_ready_line(config, server, workers, web.address if web else ""))
        while not stop.wait(0.5):
            crew.tend()
    finally:
        log.info("stopping")
        crew.ask_to_stop()
        if web is not None:
            web.stop()
        server.stop(DRAIN_S)
        clock.shutdown(wait=True)
        crew.wait(DRAIN_S)
        engine.dispose()


def _raise_open_files() -> None:
    """As many files and connections as the system grants us."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, while inside."""
    stop = threading.Event()
    before = {which: signal.signal(which, lambda *_: stop.set()) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def make_clock(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, pulse: Pulse | None = None
) -> BackgroundScheduler:
    """The sweeps, each on a thread of its own: a slow destination does not hold up completion, nor the other way."""
    retention = Retention(sessions, config)
    sweeps: dict[str, Callable[[], int]] = {
        "completion": lambda: completion.close_studies(sessions, config.completion, now=now()),
        "routing": lambda: routing.route_complete(sessions, config, now=now()),
        "fetching": lambda: fetching.fetch_wanted(sessions, config, now=now),
        "leases": lambda: _expire_leases(sessions, config, now()),
        "delivery": lambda: delivery.deliver_due(sessions, config, now=now()),
        "notifications": lambda: notification.notify_due(sessions, config, now=now()),
        "retention": lambda: retention.step(now=now()),
        "backfill": Backfill(sessions, config.spool_dir).step,
    }
    executors = {name: ThreadPoolExecutor(1) for name in sweeps}
    defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    scheduler = BackgroundScheduler(executors=executors, job_defaults=defaults, timezone=UTC)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns of every sweep that is longer than its interval
    pulse = pulse or Pulse(now)
    for name, sweep in sweeps.items():
        pulse.watch(name, _PATIENCE_S.get(name, 60.0))
        scheduler.add_job(_guarded, "interval", (name, sweep, pulse), seconds=SWEEP_S, id=name, executor=name)
    return scheduler


class Crew:
    """The local workers, as processes; one that dies loses its lease at once and is started again."""

    def __init__(self, config: Config, sessions: sessionmaker[Session], size: int, now: Clock) -> None:
        self._config, self._sessions, self._size, self._now = config, sessions, size, now
        self._processes: list[subprocess.Popen[bytes]] = []
        self._not_before = 0.0
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """The processes that were running when last looked at."""
        return [process.pid for process in self._processes]

    def count(self) -> int:
        """How many of them run."""
        return sum(process.poll() is None for process in list(self._processes))

    def start(self) -> None:
        """Start what is missing."""
        while len(self._processes) < self._size:
            command = [sys.executable, "-m", "dicomnode", "--config", str(self._config.path)]
            command += ["work", "--parent", str(os.getpid())]
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, env=_worker_environment(self._size))
            )

    def tend(self) -> None:
        """Replace the dead; a worker that cannot even start is not tried more than once in five seconds."""
        dead = [process for process in self._processes if process.poll() is not None]
        for process in dead:
            log.error("worker %d ended with status %s", process.pid, process.returncode)
            self._processes.remove(process)
            self._abandon(process.pid)
        if len(self._processes) < self._size and time.monotonic() >= self._not_before:
            self._not_before = time.monotonic() + 5.0
            self.start()

    def ask_to_stop(self) -> None:
        """Workers give their jobs back at the next step."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()

    def wait(self, patience_s: float) -> None:
        """Wait for them to end; those that do not are killed, and their jobs taken back."""
        deadline = time.monotonic() + patience_s
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
            lost = jobs.abandon(session, worker=name, attempts=self._config.worker.attempts, now=self._now())
        for job in lost:
            log.error("job %d: its worker died; now %s", job.id, job.state)


def _worker_environment(workers: int) -> dict[str, str]:
    """Ours, with each worker's share of the cores, unless the user says otherwise."""
    # torch's idle threads spin by default: where other work wants the cores, they starve it and one another (tenfold).
    share = max(1, (os.cpu_count() or 1) // max(1, workers))
    return {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(share)} | os.environ


def _expire_leases(sessions: sessionmaker[Session], config: Config, now: datetime) -> int:
    with sessions.begin() as session:
        lapsed = jobs.expire_leases(session, attempts=config.worker.attempts, now=now)
    for job in lapsed:
        log.warning("job %d: lease lapsed; now %s", job.id, job.state)
    return len(lapsed)


def _guarded(name: str, sweep: Callable[[], int], pulse: Pulse) -> None:
    """The door of every sweep: it is tried again in a second, and its error's own words may name a patient."""
    try:
        if done := sweep():
            log.info("%s: %d", name, done)
        pulse.succeeded(name)
    except Exception as error:
        pulse.failed(name)
        last = traceback.extract_tb(error.__traceback__)[-1]
        log.error("%s: %s in %s, line %s", name, type(error).__name__, Path(last.filename).name, last.lineno)


def _start_web(config: Config, sessions: sessionmaker[Session], meters: Meters, pulse: Pulse, now: Clock) -> WebServer:
    from dicomnode.web import server
    from dicomnode.web.app import create_app

    app = create_app(config, sessions, now=now, meters=meters, pulse=pulse)
    return server.start(app, config.web.host, config.web.port, config.web.identity(config.path.parent))


def _ready_line(config: Config, server: scp.Server, workers: int, web: str) -> str:
    node = config.node
    tls = {None: "", server.port: " over TLS"}.get(server.tls_port, f" and over TLS at {server.tls_port}")
    where = f"web {web}/, " if web else ""
    here = f"DICOM {node.ae_title}@{node.host}:{server.port},"
    return f"ready: {here}{tls and tls + ','} {where}{workers} local workers, data in {config.data_dir}"
