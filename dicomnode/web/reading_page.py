"""/studies/UID/reading: one result for a reader: sentence, pictures at one slice, table of regions, and the decision.

The page works without scripts: slice and window are fields of a form then.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, Response

from db import contents, readings, studies
from db.models import Job, Study
from db.states import JobState
from dicomnode.report import summary
from dicomnode.report.recorded import read_measurements
from dicomnode.web import reading_figures
from dicomnode.web.context import WebContext, flash_message
from dicomnode.web.figures import JobPictures
from dicomnode.web.holdings import require_uid
from dicomnode.web.picture_routes import LARGEST_SHIFT, STRETCHES, Level, Width
from dicomnode.web.pictures import WindowChange
from dicomnode.web.reading_table import build_table, choose_slice
from dicomnode.web.template_filters import FILTERS
from dicomnode.web.viewer import reading_url, viewer_url

__all__ = ["Summary", "add_routes", "list_readable", "summarize_job"]


@dataclass(frozen=True)
class Summary:
    """Sentence on a job's result and remarks on it; ``prior_date``: of the earlier examination (YYYY-MM-DD), or ""."""

    sentence: str
    remarks: tuple[str, ...]
    prior_date: str


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes of the page and of the export of all decisions."""

    @routes.get("/studies/{uid}/reading")
    def reading(
        uid: str, job: int = 0, at: int | None = None, level: Level = 0, width: Width = 100, done: str = ""
    ) -> HTMLResponse:
        with context.readers() as session:
            study = studies.find_by_uid(session, require_uid(uid))
            results = list_readable(session, study) if study is not None else []
            chosen = next((each for each in results if each.id == job or (not job and not each.is_trial)), None)
            if study is None or chosen is None:
                return context.error_page(404, _describe_none(results), f"/studies/{uid}" if study else "/")
            change = WindowChange(level / 100, width / 100)
            return _reading_page(session, context, study, results, chosen, at, change, flash_message(done))

    @routes.get("/readings.csv")
    def export() -> Response:
        with context.readers() as session:
            rows = readings.describe_readings(session)
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["read_at"])
        writer.writeheader()
        writer.writerows(rows)
        headers = {"Content-Disposition": 'attachment; filename="readings.csv"'}
        return Response(file.getvalue(), media_type="text/csv", headers=headers)


def summarize_job(session: Session, job: Job) -> Summary:
    """Summarize the result of a job."""
    dates = [date for _, date in contents.list_prior_series(session, job.id).values() if date]
    prior_date = FILTERS["date"](dates[0]) if dates else ""
    measurements = read_measurements(job.report)
    sentence = summary.summarize(job.pipeline, measurements, prior_date)
    return Summary(sentence, tuple(summary.find_remarks(measurements)), prior_date)


def list_readable(session: Session, study: Study) -> list[Job]:
    """Return the study's jobs with a result to read, each the newest first; discarded ones, then trials, are last."""
    query = select(Job).where(Job.study_id == study.id, Job.shadow_of_id.is_(None))
    found = [
        job
        for job in session.scalars(query.order_by(Job.id.desc()))
        if readings.is_readable(session, job) and any(output.expired_at is None for output in job.outputs)
    ]
    return sorted(found, key=lambda job: (job.is_trial, job.is_discarded))


def _describe_none(results: list[Job]) -> str:
    if any(each.is_trial for each in results):
        return "The study has no result of a route to read. The result of a trial is read from the page of its job."
    return "The study has no result to read."


def _reading_page(
    session: Session,
    context: WebContext,
    study: Study,
    results: list[Job],
    job: Job,
    at: int | None,
    change: WindowChange,
    message: str,
) -> HTMLResponse:
    pictures = JobPictures(context.readers, context.config.spool_dir, job.id)
    reference = pictures.reference_planes()
    table = build_table(session, context.config.spool_dir, job, reference)
    at = choose_slice(at, table, len(reference))
    return context.page(
        session,
        "reading.html",
        study=study,
        job=job,
        results=results,
        summary=summarize_job(session, job),
        figures=reading_figures.list_figures(session, job),
        table=table,
        slices=len(reference),
        at=at,
        change=change,
        largest_shift=LARGEST_SHIFT,
        stretches=STRETCHES,
        noted=[each for each in job.destinations if context.config.sends_key_objects(each)],
        reading=readings.find_latest(session, job.id),
        is_open=job.state in readings.READABLE_STATES,
        viewer="" if job.is_discarded else _viewer_address(session, context, job, at),
        message=message,
    )


def _viewer_address(session: Session, context: WebContext, job: Job, at: int) -> str:
    is_held = job.state is JobState.HELD
    layout = reading_figures.choose_layout(session, job, context.config.spool_dir, at)
    if layout is None:
        return viewer_url(job.study.study_uid, review=is_held)
    return reading_url(job.study.study_uid, layout, review=is_held)
