"""One life of the node: its start, its receiver, sweeps and workers, until it dies or nothing is left to do."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from db import engine as engines
from db import jobs
from db.clock_jumps import ClockWatch
from dicomnode import node
from dicomnode.commitment import requesting
from dicomnode.config import Config, Peer
from dicomnode.config.completion import CompletionConfig
from dicomnode.config.database import DatabaseConfig
from dicomnode.config.node import NodeConfig
from dicomnode.config.results import ResultsConfig
from dicomnode.config.retention import RetentionConfig
from dicomnode.config.routes import Route
from dicomnode.config.spool import SpoolConfig
from dicomnode.config.worker import WorkerConfig
from dicomnode.delivery import delivery, negotiation
from dicomnode.dimse import peers, queries
from dicomnode.errors import NodeError
from dicomnode.execution import processing, worker
from dicomnode.ingest.group_commit import Ledger
from dicomnode.storage import spool
from tests.simulation import network, scheduling
from tests.simulation.auditor import count_open
from tests.simulation.database import Database, PlannedDatabaseError, set_database
from tests.simulation.disk import Disk
from tests.simulation.machine import Machine, Outside, PlannedError, start_machine
from tests.simulation.plan import Life, Plan
from tests.simulation.scheduling import Scheduler, Task
from tests.simulation.subjects import make_subjects, run_task

__all__ = ["live", "make_config", "substitute"]

_SWEEPS = ("completion", "routing", "leases", "delivery", "proofs", "retention", "high water")
_LAST = Life(0.0, False, ())
_ROUNDS_S = (1.0, 30.0, 60.0, 60.0, 120.0, 300.0, 600.0)
_MOST_ROUNDS = 16
_DAY_S = 86400.0
_POLL_S = 30.0


def make_config(folder: Path, *, is_retaining: bool) -> Config:
    """Return the node's configuration."""
    days = 1.0 if is_retaining else 0.0
    return Config(
        node=NodeConfig(data_dir=folder, network_timeout_s=10),
        database=DatabaseConfig(url=f"sqlite:///{folder / 'node.sqlite'}"),
        spool=SpoolConfig(min_free_gb=0, refuse_at_percent=100),
        completion=CompletionConfig(quiet_s=20),
        peers=(
            Peer(name="pacs", ae_title="PACS", port=104, commitment=False, verify="c-find"),
            Peer(name="archive", ae_title="ARCHIVE", port=104, commitment=False),
        ),
        routes=(Route(name="mr", pipeline="simulated", match={"Modality": "MR"}, destinations=("pacs", "archive")),),
        worker=WorkerConfig(device="cpu", attempts=50, poll_s=_POLL_S, backoff_s=1),
        results=ResultsConfig(image_kind="single", labelled_kind="single"),
        retention=RetentionConfig(sources_days=days, results_days=days),
        path=folder / "node.toml",
    )


def substitute() -> None:
    """Put the simulated network, pipeline and randomness in the place of the node's."""
    for module in (negotiation, peers, queries, requesting):
        module.association = network.association  # type: ignore[attr-defined]
    delivery.ThreadPoolExecutor = scheduling.SerialExecutor  # type: ignore[assignment,attr-defined]
    processing.run_task = run_task
    random.Random = _CountedRandom  # type: ignore[assignment,misc]


class _CountedRandom(random.Random):
    """random.Random that is seeded by its number where the caller gives no seed."""

    numbers: Iterator[int] = count()

    def __init__(self, seed: Any = None) -> None:
        super().__init__(f"unseeded {next(self.numbers)}" if seed is None else seed)


def live(plan: Plan, number: int, outside: Outside, engine: Engine, home: Path) -> None:
    """Live the life of that number; with the number after the last one, until nothing is left to do."""
    _CountedRandom.numbers = count()
    life = plan.lives[number] if number < len(plan.lives) else _LAST
    seed = f"{plan.seed} {number}"
    scheduler = Scheduler(seed, outside.passed_s, plan.switch_share)
    machine = Machine(outside, scheduler, life.faults, seed, home)
    machine.job_s = plan.job_s
    start_machine(machine)
    set_database(Database(machine, home / "data" / "node.sqlite"))
    config = make_config(home / "data", is_retaining=plan.is_retaining)
    disk = Disk(machine, config.spool_dir)
    process = _Process(plan, number, machine, config, engine)
    try:
        scheduler.run(process.settle if life is _LAST else partial(process.live, life))
    finally:
        disk.release()
    machine.save()


class _Process:
    """The node's process: what ``node.serve`` starts, as tasks."""

    def __init__(self, plan: Plan, number: int, machine: Machine, config: Config, engine: Engine) -> None:
        self._plan, self._number, self._machine, self._config = plan, number, machine, config
        self._scheduler, self.now = machine.scheduler, machine.now
        self._sessions = engines.sessions(engine)
        self._stop = scheduling.Event()
        self._names = (f"simulated:{number}.{each}" for each in count())
        self._lost: list[str] = []
        machine.on_kill = self._note_killed

    def live(self, life: Life) -> None:
        """Work for the life's duration, then die."""
        if self._start():
            for name, sweep in self._sweeps.items():
                self._scheduler.spawn(name, partial(self._repeat, name, sweep))
            self._scheduler.spawn("pool", self._supervise)
            self._scheduler.sleep(life.duration_s / 2)
            self._machine.outside.clock_offset_s += life.clock_jump_s
            self._scheduler.sleep(life.duration_s / 2)
        self._machine.die(is_cut=life.is_cut)

    def settle(self) -> None:
        """Work until nothing is left to do, and some days longer; then stop."""
        if not self._start():
            return
        folder = self._config.data_dir
        for number in range(_MOST_ROUNDS):
            self._run_sweeps()
            self._scheduler.sleep(_ROUNDS_S[min(number, len(_ROUNDS_S) - 1)])
            if not count_open(folder) and not any(self._machine.outside.open_dispatches.values()):
                break
        self._stop.set()
        for _ in range(4 if self._plan.is_retaining else 1):
            self._scheduler.sleep(_DAY_S)
            self._run_sweeps()

    def _start(self) -> bool:
        """Do what the node does at its start; return whether it may go on."""
        try:
            node.resume_work(self._sessions, self._config, now=self.now)
            spool.prepare(self._config.spool_dir)
        except (PlannedError, PlannedDatabaseError) as error:
            self._machine.note(f"the start fails: {type(error).__name__}")
            return False
        except NodeError as error:
            self._machine.outside.surprises.append(f"the node does not start: {type(error).__name__}")
            return False
        sweeps = node.list_sweeps(self._sessions, self._config, now=self.now)
        self._sweeps = {name: sweeps[name] for name in _SWEEPS}
        lease_s = self._config.worker.lease_s
        self._watch = ClockWatch(self._sessions, self.now, lease_s=lease_s, moves_rows=True)
        self._spawn_senders()
        for _ in range(self._plan.workers):
            self._spawn_worker()
        return True

    def _spawn_senders(self) -> None:
        ledger = Ledger(self._config.spool_dir, self._sessions, self.now)
        for number, dispatch in enumerate(self._plan.dispatches):
            self._machine.outside.open_dispatches.setdefault(number, list(range(len(dispatch.instances))))
            send = partial(network.send_all, ledger, self._config, number, dispatch, make_subjects())
            self._scheduler.spawn(dispatch.sender, partial(self._guard, dispatch.sender, send))

    def _repeat(self, name: str, sweep: Callable[[], int]) -> None:
        """Run a sweep again and again, as ``sweeps.Sweeps`` does."""
        while True:
            self._scheduler.sleep(self._machine.random.uniform(1, 40))
            self._run_sweep(name, sweep)

    def _run_sweeps(self) -> None:
        self._reclaim()
        for name, sweep in self._sweeps.items():
            self._run_sweep(name, sweep)

    def _run_sweep(self, name: str, sweep: Callable[[], int]) -> None:
        def step() -> None:
            self._watch.check()
            if done := sweep():
                self._machine.note(f"{name}: {done}")

        self._guard(name, step)

    def _spawn_worker(self) -> None:
        name = next(self._names)
        self._machine.workers[self._scheduler.spawn(name, partial(self._work, name))] = name

    def _work(self, name: str) -> None:
        def run() -> None:
            worker.run_worker(self._sessions, self._config, worker=name, stop=self._stop, now=self.now)  # type: ignore[arg-type]

        self._guard(name, run)
        if not self._stop.is_set():
            self._lost.append(name)

    def _note_killed(self, task: Task) -> None:
        name = self._machine.workers.pop(task)
        self._machine.outside.runs.append(("kill", "", name))
        self._lost.append(name)

    def _supervise(self) -> None:
        """Start workers for those that died, as the node's pool does; sometimes only their leases end their jobs."""
        while True:
            self._scheduler.sleep(5)
            self._guard("pool", self._reclaim)

    def _reclaim(self) -> None:
        while self._lost and not self._stop.is_set():
            if self._machine.random.random() < 0.5:
                with self._sessions.begin() as session:
                    jobs.reclaim(session, worker=self._lost[0], attempts=50, now=self.now())
            del self._lost[0]
            self._spawn_worker()

    def _guard(self, name: str, work: Callable[[], None]) -> None:
        """Let work fail in the ways that are planned, and write down every other way."""
        try:
            work()
        except (PlannedError, PlannedDatabaseError) as error:
            self._machine.note(f"{name}: {type(error).__name__}")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
            self._machine.note(f"{name}: {place}\n{traceback.format_exc()}")
            self._machine.outside.surprises.append(f"{name}: {place}")
