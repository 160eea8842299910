"""The way of a study through the node, in five steps: what is done, what goes on, what stopped it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from db.models import Job, Study
from db.overview import Tally
from db.states import DeliveryState, JobState, StudyState
from dicomnode.web.words import span

__all__ = ["Running", "Step", "Way", "remaining_s", "running", "way"]

_SURE_FROM = 0.02
"""Below this progress only earlier jobs tell how long it takes: the first steps are reading and loading."""


@dataclass(frozen=True)
class Step:
    """``state``: done, active, held, failed, refused, waiting, or none (not there yet)."""

    name: str
    state: str
    words: str


@dataclass(frozen=True)
class Running:
    """A job at work; ``remaining_s`` None where nothing tells."""

    job_id: int
    percent: int
    step: str
    remaining_s: float | None

    @property
    def words(self) -> str:
        """For people."""
        left = "" if self.remaining_s is None else f", about {span(max(1.0, self.remaining_s))} left"
        if self.remaining_s is not None and self.remaining_s < 1:
            left = ", nearly finished"
        return f"{self.percent} %{left}"


@dataclass(frozen=True)
class Way:
    """``state`` and ``headline``: where the study stands, as one word and as a sentence."""

    state: str
    headline: str
    steps: tuple[Step, ...]
    running: tuple[Running, ...] = ()


def way(study: Study, tally: Tally, typical: Mapping[str, float], now: datetime) -> Way:
    """From its rows. ``typical``: the usual seconds of each pipeline's jobs."""
    at_work = tuple(running(job, typical, now) for job in tally.jobs if job.state is JobState.RUNNING)
    steps = (
        _received(study, tally), _completed(study), _routed(study, tally), _ran(tally, at_work), _delivered(tally)
    )  # fmt: skip
    decisive = _decisive(study, steps)
    return Way(decisive.state, decisive.words, steps, at_work)


def running(job: Job, typical: Mapping[str, float], now: datetime) -> Running:
    """How far a job is."""
    since_s = (now - job.started_at).total_seconds() if job.started_at else 0.0
    left = remaining_s(job.progress, since_s, typical.get(job.pipeline))
    return Running(job.id, round(100 * min(max(job.progress, 0.0), 1.0)), job.step, left)


def remaining_s(progress: float, since_s: float, typical_s: float | None) -> float | None:
    """Seconds to the end: by its own speed, and the less it has done, the more by that of earlier jobs."""
    if progress < _SURE_FROM:
        return None if typical_s is None else max(0.0, typical_s - since_s)
    own = since_s * (1 - progress) / progress
    if typical_s is None:
        return own
    return progress * own + (1 - progress) * typical_s * (1 - progress)


def _received(study: Study, tally: Tally) -> Step:
    count = f"{tally.instances} instance{'s' * (tally.instances != 1)}"
    arriving = study.state is StudyState.RECEIVING
    return Step("Received", "active" if arriving else "done", f"{count} so far" if arriving else count)


def _completed(study: Study) -> Step:
    if study.state is StudyState.RECEIVING:
        return Step("Complete", "none", "not yet")
    waits = study.state is StudyState.COMPLETE
    return Step("Complete", "active" if waits else "done", study.completed_by)


def _routed(study: Study, tally: Tally) -> Step:
    if tally.jobs:
        jobs = len(tally.jobs)
        return Step("Routed", "done", f"{jobs} job{'s' * (jobs != 1)}")
    if study.state is not StudyState.ROUTED:
        return Step("Routed", "none", "not yet")
    return Step("Routed", "unrouted", "no route takes it")


_WORST_FIRST = (
    (JobState.RUNNING, "active"), (JobState.READY, "waiting"), (JobState.HELD, "held"), (JobState.DEAD, "failed"),
    (JobState.REFUSED, "refused"),
)  # fmt: skip
_JOBS_IN_WORDS = {
    JobState.READY: "waiting for a worker",
    JobState.HELD: "held for your decision",
    JobState.DEAD: "failed",
    JobState.REFUSED: "refused",
}


def _ran(tally: Tally, at_work: Sequence[Running]) -> Step:
    for state, shown in _WORST_FIRST:
        mine = [job for job in tally.jobs if job.state is state]
        if mine:
            several = f"{len(mine)} jobs " if len(mine) > 1 else ""
            words = _at_work(at_work[0]) if state is JobState.RUNNING else _JOBS_IN_WORDS[state]
            return Step("Run", shown, f"{several}{words}")
    if any(job.state is JobState.DONE for job in tally.jobs):
        return Step("Run", "done", "finished")
    return Step("Run", "cancelled", "cancelled") if tally.jobs else Step("Run", "none", "")


def _at_work(job: Running) -> str:
    return f"running: {job.step}" if job.step else "running"


def _delivered(tally: Tally) -> Step:
    total, there = sum(tally.deliveries.values()), tally.deliveries.get(DeliveryState.DELIVERED, 0)
    if not total:
        return Step("Delivered", "none", "")
    if tally.deliveries.get(DeliveryState.GIVEN_UP):
        return Step("Delivered", "failed", f"delivery given up, {there} of {total} are there")
    return Step("Delivered", "done" if there == total else "active", f"{there} of {total} delivered")


def _decisive(study: Study, steps: Sequence[Step]) -> Step:
    """The step that a person wants to know of."""
    received, _, routed, ran, delivered = steps
    if ran.state in ("active", "held", "failed", "refused"):
        return Step("", "running" if ran.state == "active" else ran.state, _capital(ran.words))
    if delivered.state == "failed":
        return Step("", "failed", _capital(delivered.words))
    if study.state is StudyState.RECEIVING:
        return Step("", "receiving", f"Receiving, {received.words}")
    if study.state is StudyState.COMPLETE:
        return Step("", "complete", "Complete, waits to be routed")
    if routed.state == "unrouted":
        return Step("", "unrouted", "Not routed: no route takes it")
    if ran.state in ("waiting", "cancelled"):
        return Step("", ran.state, _capital(ran.words))
    if delivered.state == "active":
        return Step("", "delivering", _capital(delivered.words))
    if delivered.state == "done":
        return Step("", "delivered", f"Delivered, {delivered.words.split(' ')[0]} objects")
    return Step("", "done", "Finished, nothing to deliver")


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
