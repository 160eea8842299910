"""POST /jobs/ID/reading: a reader's decision on a result, as a record and as a note for the destinations."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from db import readings
from db.models import Job, Reading
from db.result_files import OutputFile
from db.states import InvalidTransition, ReadingVerdict
from dicomnode.errors import NodeError, NotAllowed, NotFound
from dicomnode.execution import reading_notes
from dicomnode.results.reader_decision import ReaderDecision
from dicomnode.web.context import WebContext
from dicomnode.web.decisions import UNSIGNED
from dicomnode.web.forms import Form, read_line
from dicomnode.web.holdings import require_uid
from dicomnode.web.reading_page import summarize_job

__all__ = ["add_routes"]

_log = logging.getLogger(__name__)
_INITIALS = re.compile(r"[^\W_][\w .'-]*")
"""Initials or a name without the separators of a DICOM person name (PS3.5 6.2.1): letters first."""


@dataclass(frozen=True)
class _Fields:
    verdict: ReadingVerdict
    who: str
    reason: str


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the route that the page's form is sent to."""

    @routes.post("/jobs/{id:row}/reading")
    def read(id: int, form: Form) -> Response:
        back_path = _find_page(context, id)
        fields = _read_fields(form)
        if isinstance(fields, str):
            return context.error_page(400, fields, back_path)
        try:
            reading_id, is_new = _record(context, id, fields)
        except NotFound as error:
            return context.error_page(404, str(error), back_path)
        except NotAllowed as error:
            return context.error_page(409, str(error), back_path)
        done = _deliver_notes(context, reading_id, is_new)
        return RedirectResponse(f"{back_path}?job={id}&done={done}-{id}", 303)


def _find_page(context: WebContext, id: int) -> str:
    with context.readers() as session:
        job = session.get(Job, id)
        return f"/studies/{require_uid(job.study.study_uid)}/reading" if job is not None else "/jobs"


def _read_fields(form: dict[str, str]) -> _Fields | str:
    """Return the fields of a decision, or the sentence that says what is wrong with them."""
    verdict = form.get("verdict", "")
    who, reason = read_line(form, "who"), read_line(form, "reason")
    if verdict not in list(ReadingVerdict) or not who or not reason:
        return UNSIGNED
    if not _INITIALS.fullmatch(who):
        return "Initials are letters, digits, spaces, points, hyphens and apostrophes, a letter or digit first."
    return _Fields(ReadingVerdict(verdict), who, reason)


def _record(context: WebContext, id: int, fields: _Fields) -> tuple[int, bool]:
    """Record a decision; return its row number, and whether it is new. Raises NotFound, NotAllowed."""
    with context.sessions.begin() as session:
        job = session.get(Job, id, with_for_update=True)
        if job is None:
            raise NotFound(f"Job {id} does not exist.")
        try:
            reading, is_new = readings.record(
                session, job, verdict=fields.verdict, who=fields.who, reason=fields.reason,
                sentence=summarize_job(session, job).sentence, now=context.now(),
            )  # fmt: skip
        except InvalidTransition:
            raise NotAllowed(f"Job {id} has no result to read any more.") from None
        return reading.id, is_new


def _deliver_notes(context: WebContext, reading_id: int, is_new: bool) -> str:
    """Write and enqueue the notes that a decision lacks; return the name of the message on what was done.

    The notes on a repeated decision are missing where the disk was full or the node stopped after the decision.
    """
    with context.readers() as session:
        reading = session.get_one(Reading, reading_id)
        if readings.is_noted(session, reading):
            return "read"
        verb = str(reading.verdict)
        try:
            notes = reading_notes.write_notes(reading.job, _to_decision(reading), context.config)
        except (NodeError, OSError) as error:
            _log.error("web: no note of the decision on job %d: %s", reading.job_id, type(error).__name__)
            return f"{verb}unnoted"
    if not notes:
        return verb if is_new else "read"
    return f"{verb}sent" if _add_notes(context, reading_id, notes) else "read"


def _to_decision(reading: Reading) -> ReaderDecision:
    return ReaderDecision(reading.verdict is ReadingVerdict.ACCEPTED, reading.who, reading.reason, reading.created_at)


def _add_notes(context: WebContext, reading_id: int, notes: Sequence[OutputFile]) -> bool:
    """Enqueue the notes; return False where a second click has done so meanwhile."""
    with context.sessions.begin() as session:
        reading = session.get_one(Reading, reading_id)
        session.get_one(Job, reading.job_id, with_for_update=True)
        if readings.is_noted(session, reading):
            return False
        readings.add_notes(session, reading, notes, now=context.now())
    return True
