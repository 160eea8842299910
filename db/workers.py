"""Workers that report heartbeats, on every machine, and the GPUs of their hosts.

These rows decide nothing: only leases say which worker holds a job. A worker writes its own row only.
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

_FORGET_AFTER = timedelta(days=1)


class Worker(Base):
    """Process that runs jobs. ``gpus``: by index the name, the use as a fraction, and memory in bytes."""

    __tablename__ = "workers"

    id: Mapped[Pk]
    name: Mapped[str] = mapped_column(unique=True)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    gpus: Mapped[dict[str, Any]]

    @property
    def host(self) -> str:
        """Machine on which the worker runs (``jobs.worker_name``)."""
        return self.name.rpartition(":")[0]


def report(session: Session, name: str, *, gpus: Mapping[str, Any], now: datetime) -> None:
    """Record a heartbeat of the worker, and delete rows without one for a day."""
    row = session.scalar(select(Worker).where(Worker.name == name))
    if row is None:
        row = Worker(name=name, started_at=now, seen_at=now, gpus={})
        session.add(row)
    row.seen_at, row.gpus = now, dict(gpus)
    session.execute(delete(Worker).where(Worker.seen_at < now - _FORGET_AFTER))


def forget(session: Session, name: str) -> None:
    """Delete the row of a worker that has ended normally."""
    session.execute(delete(Worker).where(Worker.name == name))


def list_alive(session: Session, *, since: datetime) -> list[Worker]:
    """Return the workers that have reported since then, the most recent last."""
    return list(session.scalars(select(Worker).where(Worker.seen_at >= since).order_by(Worker.seen_at, Worker.id)))


def find_busy(session: Session, names: Sequence[str]) -> set[str]:
    """Return those of the named workers that hold a job."""
    held = select(Job.worker).where(Job.state == JobState.RUNNING, Job.worker.in_(names))
    return set(session.scalars(held)) if names else set()


def count_startable_jobs(session: Session, *, now: datetime) -> int:
    """Return the number of jobs that a worker could start now."""
    due = (Job.state == JobState.READY, Job.not_before <= now)
    return session.scalar(select(func.count(Job.id)).where(*due)) or 0
