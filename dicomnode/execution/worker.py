"""A worker: takes jobs under a lease, keeps the lease while it works, and ends each job in one transaction."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from db import jobs, keywords
from db.clock_jumps import ClockWatch
from db.jobs import LeaseLost, OutputFile
from db.models import Job
from dicomnode.config import Config
from dicomnode.datasets import headers
from dicomnode.datasets.objects import KEY_OBJECT, REFUSAL_NOTE, encode, kind_of
from dicomnode.delivery import negotiation
from dicomnode.delivery.negotiation import Chosen
from dicomnode.errors import InputRefused, NodeError, NotAllowed
from dicomnode.execution import comparing, processing, renditions
from dicomnode.execution.comparing import Finished
from dicomnode.execution.host_capabilities import Lacking
from dicomnode.execution.lease import Interrupted, Lease
from dicomnode.execution.model_cache import Warm
from dicomnode.execution.processing import Produced, Task
from dicomnode.storage import spool
from pipelines.contract import Refused

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = [
    "KEY_OBJECT",
    "REFUSAL_NOTE",
    "encode",
    "kind_of",
    "outputs_of",
    "run_job",
    "task_of",
    "work",
]

log = logging.getLogger("dicomnode.execution.worker")

Clock = Callable[[], datetime]

_DATABASE_PAUSE_S = 2.0


def work(
    sessions: sessionmaker[Session],
    config: Config,
    *,
    worker: str,
    stop: threading.Event,
    once: bool = False,
    may_take: Callable[[], bool] = lambda: True,
    now: Clock = lambda: datetime.now(UTC),
) -> int:
    """Take jobs until told to stop, or with ``once`` until none is waiting; the number of jobs taken.

    ``may_take``: whether this host is well enough to take one.
    """
    taken, lacking, load_model = 0, Lacking(sessions, config, worker, now), Warm(config.worker.warm_models)
    watch = ClockWatch(sessions, now, lease_s=config.worker.lease_s, moves_rows=False)
    while not stop.is_set():
        try:
            watch.check()
            job_id = _take(sessions, config, lacking, worker, stop, now) if may_take() else None
            if job_id is not None:
                taken += 1
                run_job(sessions, config, job_id, worker=worker, stop=stop, now=now, load_model=load_model)
            elif once:
                break
            else:
                stop.wait(config.worker.poll_s)
        except (
            InterfaceError,
            OperationalError,
        ) as error:  # it restarts; the lease of a job in hand lapses, and the job is taken again
            if once:
                raise
            log.error("the database does not answer (%s); asked again in %g s", type(error).__name__, _DATABASE_PAUSE_S)
            stop.wait(_DATABASE_PAUSE_S)
    return taken


def _take(
    sessions: sessionmaker[Session],
    config: Config,
    lacking: Lacking,
    worker: str,
    stop: threading.Event,
    now: Clock,
) -> int | None:
    """The next job that this host can run, under a lease."""
    while True:
        with sessions.begin() as session:
            jobs.expire_leases(session, attempts=config.worker.attempts, now=now())
            job = jobs.claim(session, worker=worker, lease_s=config.worker.lease_s, but=lacking.known(), now=now())
        if job is None:
            return None
        with Lease(sessions, config, job.id, worker, stop, now):  # to read large weights takes its time
            why = lacking.why(job)
        if not why:
            return job.id
        log.warning("job %d: not for this host; %s", job.id, why)
        with suppress(LeaseLost), sessions.begin() as session:
            jobs.return_to_queue(session, job_id=job.id, worker=worker, reason=why, now=now())


def run_job(
    sessions: sessionmaker[Session],
    config: Config,
    job_id: int,
    *,
    worker: str,
    stop: threading.Event,
    now: Clock,
    load_model: Callable[..., Model] | None = None,
) -> None:
    """Run a claimed job to one of its ends: done, held, refused, dead with its reason, or back in the queue.

    ``load_model``: what loads its model, where models are kept between jobs.
    """
    log.info("job %d: started", job_id)
    try:
        with sessions() as session:
            job = session.get_one(Job, job_id)
            task, route, to = task_of(job, config), job.route, list(job.destinations)
        with Lease(sessions, config, job_id, worker, stop, now) as lease:
            try:
                ended = _finish(sessions, config, job_id, worker, task, to, lease, now, load_model)
            except (Refused, InputRefused) as refusal:
                ended = _refuse(sessions, config, job_id, worker, task, route, to, str(refusal), now())
        log.info("job %d: %s", job_id, ended)
    except Interrupted:
        with sessions.begin() as session:
            jobs.return_to_queue(session, job_id=job_id, worker=worker, now=now())
        log.info("job %d: given back", job_id)
    except LeaseLost as error:
        log.warning("job %d: %s", job_id, error)
    except Exception as error:
        _fail(sessions, config, job_id, worker, error, now())


def _finish(
    sessions: sessionmaker[Session],
    config: Config,
    job_id: int,
    worker: str,
    task: Task,
    to: Sequence[str],
    lease: Lease,
    now: Clock,
    load_model: Callable[..., Model] | None,
) -> str:
    if (other := _beside(sessions, config, job_id)) is not None:
        return _compare(sessions, config, job_id, worker, task, other, lease, now, load_model)
    chosen = negotiation.for_job(sessions, config, to, now=now())
    forms = negotiation.forms(chosen)
    produced = processing.process(task, config, progress=lease.progress, forms=forms, load_model=load_model)
    lease.progress(0.99, "storing")
    told = {name: each.why for name, each in chosen.items() if each.why}
    outputs = outputs_of(config, produced, chosen)
    with sessions.begin() as session:
        ended = jobs.finish(
            session,
            job_id=job_id,
            worker=worker,
            outputs=outputs,
            report=produced.report | ({"destinations": told} if told else {}),
            held_because=produced.held_because,
            chosen=told,
            now=now(),
        )
    return f"{ended.state}, {len(outputs)} objects"


def _beside(sessions: sessionmaker[Session], config: Config, job_id: int) -> Finished | None:
    """The job beside which this one runs to be compared, if it is such a one."""
    with sessions() as session:
        other = session.get_one(Job, job_id).shadow_of
        return comparing.finished(other, config) if other is not None else None


def _compare(
    sessions: sessionmaker[Session],
    config: Config,
    job_id: int,
    worker: str,
    task: Task,
    other: Finished,
    lease: Lease,
    now: Clock,
    load_model: Callable[..., Model] | None,
) -> str:
    """Whatever it makes is measured against what the other made, and kept and delivered nowhere."""
    produced = processing.process(task, config, progress=lease.progress, load_model=load_model)
    lease.progress(0.97, "comparing")
    report = produced.report | {"comparison": comparing.with_produced(other, produced)}
    with sessions.begin() as session:
        jobs.finish(session, job_id=job_id, worker=worker, outputs=[], report=report, now=now())
    return f"done, compared with job {other.job_id}"


def outputs_of(config: Config, produced: Produced, chosen: Mapping[str, Chosen]) -> list[OutputFile]:
    """The result objects in the spool, with whom each is for."""
    return [
        replace(
            _store(config.spool_dir, each.ds),
            rendition=each.rendition,
            destinations=each.destinations,
            spare_for=each.spare_for,
            at_once=kind_of(each.ds) == KEY_OBJECT,
        )
        for each in renditions.assigned(produced, config.results, chosen)
    ]


def _refuse(
    sessions: sessionmaker[Session],
    config: Config,
    job_id: int,
    worker: str,
    task: Task,
    route: str,
    to: Sequence[str],
    reason: str,
    now: datetime,
) -> str:
    """Nothing broke: the job ends with the reason, and where that is wanted with notes for its destinations."""
    outputs = []
    other = _beside(sessions, config, job_id)
    if (
        other is None
        and config.sends_refusal_notes(route)
        and (note := _note(processing.refusal_note, task, reason, config))
    ):
        outputs.append(_store(config.spool_dir, note, REFUSAL_NOTE))
    marked = tuple(name for name in to if config.sends_key_objects(name))
    if marked and (note := _note(processing.key_note, task, reason, config)):
        outputs.append(replace(_store(config.spool_dir, note), destinations=marked))
    report: dict[str, Any] = {"verdict": "refuse", "reasons": [reason]}
    if other is not None:
        report["comparison"] = comparing.of_refused(other, task, reason)
    with sessions.begin() as session:
        jobs.refuse(session, job_id=job_id, worker=worker, reason=reason, outputs=outputs, report=report, now=now)
    return f"refused, {len(outputs)} notes"  # the reason may quote an age or a weight: it stands in the row


def _note(write: Callable[[Task, str, Config], Dataset], task: Task, reason: str, config: Config) -> Dataset | None:
    """None where not even the headers can be used: the refusal holds all the same."""
    try:
        return write(task, reason, config)
    except Exception as error:
        log.error("no refusal note: %s", _judge(error)[0])
        return None


def task_of(job: Job, config: Config) -> Task:
    """The job as the values that decide its result."""
    inputs: dict[str, list[Path]] = {}
    for each in job.inputs:
        if each.instance.expired_at is not None:
            raise NotAllowed(f"job {job.id}: its input {each.name!r} was deleted by retention; send it again")
        inputs.setdefault(each.name, []).append(spool.path(config.spool_dir, each.instance.sha256))
    drawn_like = job.shadow_of or job  # what is compared differs by its model, not by its dice
    return Task(
        key=job.key,
        pipeline=job.pipeline,
        model=job.model,
        options=job.options,
        inputs=inputs,
        seed=processing.seed_from(drawn_like.key),
        created_at=job.created_at,
        model_digest=job.model_digest,
        helper_models=job.helper_models or {},
    )


def _store(root: Path, ds: Dataset, kind: str = "") -> OutputFile:
    file = spool.write(root, encode(ds))
    facts = headers.read(spool.path(root, file))
    return OutputFile(
        sop_instance_uid=ds.SOPInstanceUID,
        sop_class_uid=ds.SOPClassUID,
        series_uid=ds.SeriesInstanceUID,
        kind=kind or kind_of(ds),
        file=file,
        transfer_syntax_uid=facts.transfer_syntax_uid,
        attributes=keywords.pick(facts.attributes, keywords.RESULT_STORED),
    )


def _fail(
    sessions: sessionmaker[Session], config: Config, job_id: int, worker: str, error: Exception, now: datetime
) -> None:
    reason, retry = _judge(error)
    log.error("job %d: %s\n%s", job_id, reason, "".join(traceback.format_tb(error.__traceback__)).rstrip())
    try:
        with sessions.begin() as session:
            job = jobs.fail(
                session,
                job_id=job_id,
                worker=worker,
                reason=reason,
                retry=retry,
                attempts=config.worker.attempts,
                backoff_s=config.worker.backoff_s,
                now=now,
            )
        log.info("job %d: %s after attempt %d", job_id, job.state, job.attempts)
    except LeaseLost as lost:
        log.warning("job %d: %s", job_id, lost)


def _judge(error: Exception) -> tuple[str, bool]:
    """The reason in words that name no patient, and whether another attempt may help."""
    from model_zoo.bundle import BundleError

    if isinstance(error, BundleError):
        return str(error), False
    if isinstance(error, NodeError):
        return str(error), error.retry
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno} ({last.name})", True
