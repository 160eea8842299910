"""POST /jobs/ID/reading: a reader's decision on a result, as a record and as a note for the destinations."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from sqlalchemy.orm import Session, joinedload
from starlette.responses import RedirectResponse, Response

from db import readings
from db.models import Job
from db.result_files import OutputFile
from db.states import InvalidTransition, ReadingVerdict
from dicomnode.errors import NodeError
from dicomnode.execution import reading_notes
from dicomnode.results.reader_decision import ReaderDecision
from dicomnode.web.context import WebContext
from dicomnode.web.forms import Form
from dicomnode.web.reading_page import summarize_job

__all__ = ["add_routes"]

_log = logging.getLogger(__name__)
_MOST_CHARACTERS = {"who": 40, "reason": 300}


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the route that the page's form is sent to."""

    @routes.post("/jobs/{id:row}/reading")
    def read(id: int, form: Form) -> Response:
        with context.readers() as session:
            job = session.get(Job, id, options=[joinedload(Job.study)])
            if job is None:
                return context.error_page(404, f"Job {id} does not exist.", "/jobs")
            back_path = f"/studies/{job.study.study_uid}/reading"
            verdict, who, reason = _read_fields(form)
            if verdict is None or not who or not reason:
                return context.error_page(400, "A decision needs your initials and a reason.", back_path)
            if job.state not in readings.READABLE_STATES:
                return context.error_page(409, f"Job {id} has no result to read any more.", back_path)
            decision = ReaderDecision(verdict is ReadingVerdict.ACCEPTED, who, reason, context.now())
            notes = _write_notes(job, decision, context)
            sentence = summarize_job(session, job).sentence
        try:
            with context.sessions.begin() as writing:
                _record(writing, id, decision, sentence, notes or [])
        except InvalidTransition:
            return context.error_page(409, f"Job {id} was decided in the meantime.", back_path)
        done = verdict if notes is not None else f"{verdict}only"
        return RedirectResponse(f"{back_path}?job={id}&done={done}-{id}", 303)


def _read_fields(form: dict[str, str]) -> tuple[ReadingVerdict | None, str, str]:
    verdict = form.get("verdict", "")
    who, reason = (" ".join(form.get(name, "").split())[:most] for name, most in _MOST_CHARACTERS.items())
    return (ReadingVerdict(verdict) if verdict in list(ReadingVerdict) else None), who, reason


def _write_notes(job: Job, decision: ReaderDecision, context: WebContext) -> list[OutputFile] | None:
    """Write the notes, or return None where that fails: the decision is recorded all the same."""
    try:
        return reading_notes.write_notes(job, decision, context.config)
    except (NodeError, OSError) as error:
        _log.error("web: no note of the decision on job %d: %s", job.id, type(error).__name__)
        return None


def _record(session: Session, id: int, decision: ReaderDecision, sentence: str, notes: list[OutputFile]) -> None:
    verdict = ReadingVerdict.ACCEPTED if decision.is_accepted else ReadingVerdict.REJECTED
    job = session.get_one(Job, id, with_for_update=True)
    readings.record(
        session, job, verdict=verdict, who=decision.who, reason=decision.reason, sentence=sentence, notes=notes,
        now=decision.at,
    )  # fmt: skip
