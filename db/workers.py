"""The workers that say they are alive, on whatever machine, and the GPUs that they see.

Not part of anything's state: leases alone decide whose a job is. A worker writes its own row and nobody else's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from db.base import Base, Pk
from db.models import Job
from db.states import JobState

__all__ = ["Worker", "count_startable_jobs", "find_busy", "forget", "list_alive", "report"]

_KEPT = timedelta(days=1)


class Worker(Base):
    """A process that takes jobs. ``gpus``: by index, its name, use as a fraction, and memory in bytes."""

    __tablename__ = "workers"

    id: Mapped[Pk]
    name: Mapped[str] = mapped_column(unique=True)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    gpus: Mapped[dict[str, Any]]

    @property
    def host(self) -> str:
        """The machine on which it runs (``jobs.worker_name``)."""
        return self.name.rpartition(":")[0]


def report(session: Session, name: str, *, gpus: Mapping[str, Any], now: datetime) -> None:
    """That worker is alive; rows of those that were not for a day go."""
    row = session.scalar(select(Worker).where(Worker.name == name))
    if row is None:
        row = Worker(name=name, started_at=now, seen_at=now, gpus={})
        session.add(row)
    row.seen_at, row.gpus = now, dict(gpus)
    session.execute(delete(Worker).where(Worker.seen_at < now - _KEPT))


def forget(session: Session, name: str) -> None:
    """That worker has ended as it should."""
    session.execute(delete(Worker).where(Worker.name == name))


def list_alive(session: Session, *, since: datetime) -> list[Worker]:
    """Those that have said so since then, the last to say so last."""
    return list(session.scalars(select(Worker).where(Worker.seen_at >= since).order_by(Worker.seen_at, Worker.id)))


def find_busy(session: Session, names: Sequence[str]) -> set[str]:
    """Those of these workers that have a job in hand."""
    held = select(Job.worker).where(Job.state == JobState.RUNNING, Job.worker.in_(names))
    return set(session.scalars(held)) if names else set()


def count_startable_jobs(session: Session, *, now: datetime) -> int:
    """For how many jobs a worker could begin at once."""
    due = (Job.state == JobState.READY, Job.not_before <= now)
    return session.scalar(select(func.count(Job.id)).where(*due)) or 0
