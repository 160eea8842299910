"""The run of one claimed job, from its task to its end in one transaction."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from sqlalchemy.orm import Session, sessionmaker

from db import deployments, jobs, keywords, workitems
from db.jobs import LeaseLost, OutputFile
from db.models import Job
from dicomnode.config import Config
from dicomnode.datasets import headers
from dicomnode.datasets.objects import KEY_OBJECT, REFUSAL_NOTE, encode, kind_of
from dicomnode.delivery import negotiation
from dicomnode.delivery.negotiation import KindChoice
from dicomnode.errors import InputRefused, NodeError, NotAllowed
from dicomnode.execution import comparing, processing, refusal_notes
from dicomnode.execution import renditions as job_renditions
from dicomnode.execution.comparing import FinishedJob
from dicomnode.execution.lease import Interrupted, Lease
from dicomnode.execution.processing import Task, TaskResult
from dicomnode.storage import spool
from pipelines.contract import Note, Refused

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["JobRun", "WorkerContext", "build_task", "store_outputs"]

log = logging.getLogger("dicomnode.execution.worker")
_TRIAL_NOTE = Note("trial", "A person started this to try the pipeline. It is no result of a route of this node.")

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class WorkerContext:
    """A worker's database, configuration, name, stop signal, clock, and its loader of models if it keeps them."""

    sessions: sessionmaker[Session]
    config: Config
    name: str
    stop: threading.Event
    now: Clock
    load_model: Callable[..., Model] | None = None


class JobRun:
    """One claimed job and its end: done, held, refused, failed with a reason, or back in the queue.

    A shadow job, which runs beside a primary job for comparison, delivers nothing: its report compares both results.
    """

    def __init__(self, context: WorkerContext, job_id: int) -> None:
        self._context, self._job_id = context, job_id
        self._lease = Lease(context.sessions, context.config, job_id, context.name, context.stop, context.now)

    def run(self) -> None:
        """Run the job to its end. Errors are recorded with the job, not raised."""
        try:
            self._load()
            log.info("job %d: started, %s for study %d", self._job_id, self._task.pipeline, self._study_id)
            with self._lease:
                try:
                    end = self.finish(self._process())
                except (Refused, InputRefused) as refusal:
                    end = self.refuse(str(refusal))
            log.info("job %d: %s", self._job_id, end)
        except Interrupted:
            self._give_back()
        except LeaseLost as error:
            log.warning("job %d: %s", self._job_id, error)
        except Exception as error:
            self.fail(error)

    def finish(self, produced: TaskResult) -> str:
        """End the job with its results, or a shadow job with its comparison; return the end in words."""
        if self._primary_job is not None:
            return self._finish_comparison(self._primary_job, produced)
        self._lease.progress(0.99, "storing")
        reasons = {name: each.why for name, each in self._choices.items() if each.why}
        outputs = store_outputs(self._context.config, produced, self._choices)
        with self._context.sessions.begin() as session:
            ended = jobs.finish(
                session,
                job_id=self._job_id,
                worker=self._context.name,
                outputs=outputs,
                report=produced.report | ({"destinations": reasons} if reasons else {}),
                held_because=produced.held_because,
                chosen_kinds=reasons,
                now=self._context.now(),
            )
        return f"{ended.state}, {len(outputs)} objects"

    def refuse(self, reason: str) -> str:
        """End the job as refused, with notes for destinations that are configured for them; return the end in words."""
        primary = self._primary_job
        report: dict[str, Any] = {"verdict": "refuse", "reasons": [reason]}
        if primary is not None:
            report["comparison"] = comparing.compare_with_refusal(primary, self._task, reason)
        outputs = self._store_refusal_notes(reason)
        with self._context.sessions.begin() as session:
            jobs.refuse(
                session,
                job_id=self._job_id,
                worker=self._context.name,
                reason=reason,
                outputs=outputs,
                report=report,
                now=self._context.now(),
            )
        return f"refused, {len(outputs)} notes"  # the reason may quote an age or a weight: it stands in the row

    def fail(self, error: Exception) -> None:
        """Record an error as the job's failure; the job is tried again where another attempt may help."""
        reason, may_retry = _describe_error(error)
        log.error("job %d: %s\n%s", self._job_id, reason, "".join(traceback.format_tb(error.__traceback__)).rstrip())
        settings = self._context.config.worker
        try:
            with self._context.sessions.begin() as session:
                job = jobs.fail(
                    session,
                    job_id=self._job_id,
                    worker=self._context.name,
                    reason=reason,
                    retry=may_retry,
                    attempts=settings.attempts,
                    backoff_s=settings.backoff_s,
                    now=self._context.now(),
                )
            log.info("job %d: %s after attempt %d", self._job_id, job.state, job.attempts)
        except LeaseLost as lost:
            log.warning("job %d: %s", self._job_id, lost)

    def _load(self) -> None:
        with self._context.sessions() as session:
            job = session.get_one(Job, self._job_id)
            reference = deployments.find_reference(session, job)
            self._task = replace(build_task(job, self._context.config), reference=reference)
            self._route, self._destinations, self._study_id = job.route, list(job.destinations), job.study_id

    @cached_property
    def _primary_job(self) -> FinishedJob | None:
        """The finished job that this shadow job is compared with, or None."""
        with self._context.sessions() as session:
            primary = session.get_one(Job, self._job_id).shadow_of
            return comparing.read_finished_job(primary, self._context.config) if primary is not None else None

    @cached_property
    def _choices(self) -> Mapping[str, KindChoice]:
        """The kinds of results for each destination, negotiated once."""
        context = self._context
        return negotiation.negotiate_kinds(context.sessions, context.config, self._destinations, now=context.now())

    def _process(self) -> TaskResult:
        renditions = [] if self._primary_job is not None else negotiation.list_renditions(self._choices)
        context = self._context
        return processing.run_task(
            self._task,
            context.config,
            progress=self._lease.progress,
            renditions=renditions,
            load_model=context.load_model,
        )

    def _finish_comparison(self, primary: FinishedJob, produced: TaskResult) -> str:
        """End a shadow job: its results are measured against the primary job's, and neither kept nor delivered."""
        self._lease.progress(0.97, "comparing")
        report = produced.report | {"comparison": comparing.compare_with_produced(primary, produced)}
        with self._context.sessions.begin() as session:
            jobs.finish(
                session,
                job_id=self._job_id,
                worker=self._context.name,
                outputs=[],
                report=report,
                now=self._context.now(),
            )
        return f"done, compared with job {primary.job_id}"

    def _store_refusal_notes(self, reason: str) -> list[OutputFile]:
        """Store the notes about a refusal: a report as the route has it, a Key Object for destinations that mark."""
        config, outputs = self._context.config, list[OutputFile]()
        if self._primary_job is None and config.sends_refusal_notes(self._route):
            note = self._write_note(refusal_notes.write_refusal_note, reason)
            outputs += [_store(config.spool_dir, note, REFUSAL_NOTE)] if note else []
        marked = tuple(name for name in self._destinations if config.sends_key_objects(name))
        if marked and (note := self._write_note(refusal_notes.write_key_note, reason)):
            outputs.append(replace(_store(config.spool_dir, note), destinations=marked))
        return outputs

    def _write_note(self, write: Callable[[Task, str, Config], Dataset], reason: str) -> Dataset | None:
        """Return a note, or None where not even the headers can be used: the refusal holds all the same."""
        try:
            return write(self._task, reason, self._context.config)
        except Exception as error:
            log.error("no refusal note: %s", _describe_error(error)[0])
            return None

    def _give_back(self) -> None:
        with self._context.sessions.begin() as session:
            jobs.return_to_queue(session, job_id=self._job_id, worker=self._context.name, now=self._context.now())
        log.info("job %d: given back", self._job_id)


def build_task(job: Job, config: Config) -> Task:
    """Return the values that decide a job's result. Raises NotAllowed where retention deleted an input."""
    inputs: dict[str, list[Path]] = {}
    for each in job.inputs:
        if each.instance.expired_at is not None:
            raise NotAllowed(f"job {job.id}: its input {each.name!r} was deleted by retention; send it again")
        inputs.setdefault(each.name, []).append(spool.path(config.spool_dir, each.instance.sha256))
    seed_source = job.shadow_of or job  # a shadow job differs from its primary by the model, not by the seed
    return Task(
        key=job.key,
        pipeline=job.pipeline,
        model=job.model,
        options=job.options,
        inputs=inputs,
        seed=processing.derive_seed(seed_source.key),
        created_at=job.created_at,
        model_digest=job.model_digest,
        helper_models=job.helper_models or {},
        notes=(_TRIAL_NOTE,) if job.is_trial else (),
        workitem_uid=workitems.uid_of_route(job.route),
    )


def store_outputs(config: Config, produced: TaskResult, choices: Mapping[str, KindChoice]) -> list[OutputFile]:
    """Store the result objects in the spool, and return them with the destinations of each."""
    return [
        replace(
            _store(config.spool_dir, each.ds),
            rendition=each.rendition,
            destinations=each.destinations,
            spare_for=each.spare_for,
            at_once=kind_of(each.ds) == KEY_OBJECT,
        )
        for each in job_renditions.assign_objects(produced, config.results, choices)
    ]


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


def _describe_error(error: Exception) -> tuple[str, bool]:
    """Return the reason in words that name no patient, and whether another attempt may help."""
    from model_zoo.bundle import BundleError

    if isinstance(error, BundleError):
        return str(error), False
    if isinstance(error, NodeError):
        return str(error), error.retry
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno} ({last.name})", True
