"""Progress of a study through the node, in five steps: received, complete, routed, run, delivered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from db.models import Job, Study
from db.overview import Tally
from db.states import DeliveryState, JobState, StudyState
from dicomnode.web.template_filters import format_duration

__all__ = [
    "JobProgress",
    "Step",
    "StudyProgress",
    "describe_job_progress",
    "describe_study_progress",
    "estimate_remaining_s",
]

_OWN_SPEED_FROM = 0.02
"""Progress below which the estimate uses earlier jobs only: the first steps are reading and loading."""


@dataclass(frozen=True)
class Step:
    """A step of the progress.

    ``state``: done, active, held, failed, refused, waiting, cancelled, unrouted, or none (not reached).
    """

    name: str
    state: str
    text: str


@dataclass(frozen=True)
class JobProgress:
    """Progress of a running job; ``remaining_s``: None where no estimate is possible."""

    job_id: int
    percent: int
    step: str
    remaining_s: float | None

    @property
    def text(self) -> str:
        """Percentage and remaining time as text."""
        return f"{self.percent} %" + ("" if self.remaining_s is None else f", {self._describe_rest(self.remaining_s)}")

    def _describe_rest(self, remaining_s: float) -> str:
        if remaining_s < 1 and self.percent >= 50:
            return "nearly finished"
        if remaining_s <= 0:
            return "longer than the last runs"
        return f"about {format_duration(max(1.0, remaining_s))} left"


@dataclass(frozen=True)
class StudyProgress:
    """Progress of a study; ``state`` and ``headline``: its present state as one word and as a sentence."""

    state: str
    headline: str
    steps: tuple[Step, ...]
    running: tuple[JobProgress, ...] = ()


def describe_study_progress(study: Study, tally: Tally, typical: Mapping[str, float], now: datetime) -> StudyProgress:
    """Describe the progress of a study. ``typical``: typical duration of each pipeline's jobs in seconds."""
    at_work = tuple(describe_job_progress(job, typical, now) for job in tally.jobs if job.state is JobState.RUNNING)
    ran = _run_step(tally, at_work)
    steps = (
        _received_step(study, tally),
        _complete_step(study),
        _routed_step(study, tally),
        ran,
        _delivered_step(tally, ran),
    )
    decisive = _decisive_step(study, steps)
    return StudyProgress(decisive.state, decisive.text, steps, at_work)


def describe_job_progress(job: Job, typical: Mapping[str, float], now: datetime) -> JobProgress:
    """Describe the progress of a running job."""
    since_s = (now - job.started_at).total_seconds() if job.started_at else 0.0
    left = estimate_remaining_s(job.progress, since_s, typical.get(job.pipeline))
    return JobProgress(job.id, round(100 * min(max(job.progress, 0.0), 1.0)), job.step, left)


def estimate_remaining_s(progress: float, since_s: float, typical_s: float | None) -> float | None:
    """Estimate the remaining seconds of a job from its own speed and, the earlier the more, from earlier jobs."""
    if progress < _OWN_SPEED_FROM:
        return None if typical_s is None else max(0.0, typical_s - since_s)
    own = since_s * (1 - progress) / progress
    if typical_s is None:
        return own
    return progress * own + (1 - progress) * typical_s * (1 - progress)


def _received_step(study: Study, tally: Tally) -> Step:
    count = f"{tally.instances} instance{'s' * (tally.instances != 1)}"
    arriving = study.state is StudyState.RECEIVING
    return Step("Received", "active" if arriving else "done", f"{count} so far" if arriving else count)


def _complete_step(study: Study) -> Step:
    if study.state is StudyState.RECEIVING:
        return Step("Complete", "none", "not yet")
    waits = study.state is StudyState.COMPLETE
    return Step("Complete", "active" if waits else "done", study.completed_by)


def _routed_step(study: Study, tally: Tally) -> Step:
    if tally.jobs:
        jobs = len(tally.jobs)
        return Step("Routed", "done", f"{jobs} job{'s' * (jobs != 1)}")
    if study.state is not StudyState.ROUTED:
        return Step("Routed", "none", "not yet")
    return Step("Routed", "unrouted", "no route took it")


_STATES_BY_PRIORITY = (
    (JobState.RUNNING, "active"), (JobState.READY, "waiting"), (JobState.HELD, "held"), (JobState.DEAD, "failed"),
    (JobState.REFUSED, "refused"),
)  # fmt: skip
_STATE_PHRASES = {
    JobState.READY: "waiting for a worker",
    JobState.HELD: "held for your decision",
    JobState.DEAD: "failed",
    JobState.REFUSED: "refused",
}


def _run_step(tally: Tally, at_work: Sequence[JobProgress]) -> Step:
    for state, step_state in _STATES_BY_PRIORITY:
        matching = [job for job in tally.jobs if job.state is state]
        if matching:
            several = f"{len(matching)} jobs " if len(matching) > 1 else ""
            text = _describe_running(at_work[0]) if state is JobState.RUNNING else _STATE_PHRASES[state]
            return Step("Run", step_state, f"{several}{text}")
    if any(job.state is JobState.DONE for job in tally.jobs):
        return Step("Run", "done", "finished")
    if not tally.jobs:
        return Step("Run", "none", "")
    is_discarded = any(job.is_discarded for job in tally.jobs)
    return Step("Run", "cancelled", "discarded" if is_discarded else "cancelled")


def _describe_running(job: JobProgress) -> str:
    return f"running: {job.step}" if job.step else "running"


def _delivered_step(tally: Tally, ran: Step) -> Step:
    total, delivered = sum(tally.deliveries.values()), tally.deliveries.get(DeliveryState.DELIVERED, 0)
    if not total:
        return Step("Delivered", "none", "nothing to deliver" if ran.state in ("done", "cancelled") else "")
    if tally.deliveries.get(DeliveryState.GIVEN_UP):
        return Step("Delivered", "failed", f"delivery given up, {delivered} of {total} delivered")
    return Step("Delivered", "done" if delivered == total else "active", f"{delivered} of {total} delivered")


def _decisive_step(study: Study, steps: Sequence[Step]) -> Step:
    """Return state and headline of the study as a step: the step that needs attention, else the latest."""
    received, _, routed, ran, delivered = steps
    if ran.state in ("active", "held", "failed", "refused"):
        return Step("", "running" if ran.state == "active" else ran.state, _capitalize(ran.text))
    if delivered.state == "failed":
        return Step("", "failed", _capitalize(delivered.text))
    if study.state is StudyState.RECEIVING:
        return Step("", "receiving", f"Receiving, {received.text}")
    if study.state is StudyState.COMPLETE:
        return Step("", "complete", "Complete, waiting for routing")
    if routed.state == "unrouted":
        return Step("", "unrouted", "Not routed: no route took it")
    if ran.state in ("waiting", "cancelled"):
        return Step("", ran.state, _capitalize(ran.text))
    if delivered.state == "active":
        return Step("", "delivering", _capitalize(delivered.text))
    if delivered.state == "done":
        return Step("", "delivered", f"Delivered, {delivered.text.split(' ')[0]} objects")
    return Step("", "done", f"Finished, {delivered.text}")


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
