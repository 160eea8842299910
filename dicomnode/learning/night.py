"""One night of a learning run: its values, its folder, and the changes of its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import learning
from db.models import LearningRun
from db.states import LearningState
from dicomnode.config import Config
from dicomnode.config.learning import LearningConfig
from dicomnode.learning.commands import Commands

__all__ = ["Night"]


@dataclass(frozen=True)
class Night:
    """The parts of a night that stay the same: its run, the folder of the run, and the commands it may give.

    ``first_step``: steps at its begin; None where it began with the export.
    """

    config: Config
    sessions: sessionmaker[Session]
    entry: LearningConfig
    now: Callable[[], datetime]
    commands: Commands
    run_id: int
    first_step: int | None

    @property
    def folder(self) -> Path:
        return self.config.learning_dir / self.entry.name / str(self.run_id)

    def read(self) -> LearningRun:
        with engines.readers(self.sessions.kw["bind"])() as session:
            return session.get_one(LearningRun, self.run_id)

    def record(self, **values: Any) -> None:
        with self.sessions.begin() as session:
            run = session.get_one(LearningRun, self.run_id, with_for_update=True)
            for name, value in values.items():
                setattr(run, name, value)

    def move_in(self, session: Session, state: LearningState, reason: str, **values: Any) -> None:
        """Change the state and further values of the run, in a transaction of the caller's."""
        run = session.get_one(LearningRun, self.run_id, with_for_update=True)
        for name, value in values.items():
            setattr(run, name, value)
        learning.move(session, run, state, reason=reason, now=self.now())
