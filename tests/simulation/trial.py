"""A trial: the lives of one plan, each in a forked process, then the auditor."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import pickle
import shutil
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from dicomnode.storage import spool
from tests import databases
from tests.simulation import life, loading
from tests.simulation.auditor import audit_life, audit_trial, read_head
from tests.simulation.database import watch_engine
from tests.simulation.machine import Outside
from tests.simulation.plan import Plan
from tests.simulation.planted import PlantedFault

__all__ = ["Simulator", "Verdict"]

_TIME_LIMIT_S = 300


@dataclass
class Verdict:
    """Outcome of a trial: what the auditor found, and what happened."""

    plan: Plan
    findings: list[str]
    outside: Outside = field(default_factory=Outside)

    @property
    def digest(self) -> str:
        """SHA-256 of everything of the outcome that the seed decides."""
        outside = self.outside
        parts = (sorted(outside.acknowledged.items()), outside.held, outside.accepted, len(outside.removed),
                     sorted(outside.crossings.items()), outside.passed_s, self.findings)  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class Simulator:
    """Runs trials in one folder, one after the other; the process must have no other threads."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.planted: PlantedFault | None = None
        self._engine: Engine = watch_engine(f"sqlite:///{home / 'data' / 'node.sqlite'}")
        life.substitute()

    def warm_up(self, plan: Plan) -> list[str]:
        """Run the last life of a plan in this process, so that its forks find everything loaded."""
        self._prepare()
        outside = Outside()
        life.live(plan, len(plan.lives), outside, self._engine, self._home)
        self._engine.dispose()
        return audit_trial(self._home / "data", outside, plan)

    def run(self, plan: Plan) -> Verdict:
        """Run a trial."""
        self._prepare()
        outside = Outside()
        for number in range(len(plan.lives) + 1):
            failure = self._fork(plan, number, outside)
            outside = self._read_outside(outside)
            if failure:
                return Verdict(plan, [f"life {number} {failure}"], outside)
            outside.runs.append(("over", "", ""))
            if findings := audit_life(self._home / "data", outside, plan):
                return Verdict(plan, [f"after life {number}: {each}" for each in findings], outside)
            outside.heads.append(read_head(self._home / "data"))
        return Verdict(plan, audit_trial(self._home / "data", outside, plan), outside)

    def _prepare(self) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
        databases.copy_sqlite(self._home / "data" / "node.sqlite")
        spool.prepare(self._home / "data" / "spool")

    def _read_outside(self, before: Outside) -> Outside:
        path = self._home / "outside"
        return pickle.loads(path.read_bytes()) if path.exists() else before

    def _fork(self, plan: Plan, number: int, outside: Outside) -> str:
        """Live one life in a child process; return how it failed, or ""."""
        sys.stdout.flush()
        if pid := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return f"ends with status {status}" if status else ""
        faulthandler.dump_traceback_later(_TIME_LIMIT_S, exit=True)
        try:
            if self.planted is not None:
                loading.plant(self.planted.module, self.planted.old, self.planted.new)
            life.live(plan, number, outside, self._engine, self._home)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
