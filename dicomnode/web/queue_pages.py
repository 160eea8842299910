"""Pages of jobs: /hold, results held for a decision; /failures; /jobs, all jobs; and /jobs/ID."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload
from starlette.responses import HTMLResponse

from db import contents, overview, readings
from db.models import Delivery, Job, Output, Study
from db.states import DeliveryState, JobState
from dicomnode.web import figures, study_progress
from dicomnode.web.context import WebContext, flash_message, paginate, parse_page_number
from dicomnode.web.study_page import build_job_cards
from dicomnode.web.viewer import viewer_url

__all__ = ["add_routes"]

_PER_PAGE = 50
_HELD_PER_PAGE = 8


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes of the pages."""

    @routes.get("/hold")
    def hold(page: str = "1", done: str = "") -> HTMLResponse:
        with context.readers() as session:
            return _hold_page(session, context, parse_page_number(page), flash_message(done))

    @routes.get("/failures")
    def failures(page: str = "1", done: str = "") -> HTMLResponse:
        with context.readers() as session:
            return _failures_page(session, context, parse_page_number(page), flash_message(done))

    @routes.get("/jobs")
    def jobs(state: str = "", page: str = "1", done: str = "") -> HTMLResponse:
        selected = JobState(state) if state in list(JobState) else None
        with context.readers() as session:
            return _jobs_page(session, context, selected, parse_page_number(page), flash_message(done))

    @routes.get("/jobs/{id:row}")
    def job(id: int, done: str = "") -> HTMLResponse:
        with context.readers() as session:
            found = session.get(Job, id, options=[joinedload(Job.study)])
            if found is not None:
                return _job_page(session, context, found, flash_message(done))
        return context.error_page(404, f"Job {id} does not exist.", "/jobs")


def _hold_page(session: Session, context: WebContext, page: int, message: str) -> HTMLResponse:
    total = overview.count_jobs_by_state(session).get(JobState.HELD, 0)
    page, pages = paginate(total, page, _HELD_PER_PAGE)
    held = contents.list_jobs(session, (JobState.HELD,), limit=_HELD_PER_PAGE, offset=(page - 1) * _HELD_PER_PAGE)
    inputs = contents.list_input_series(session, [job.id for job in held])
    rows = [
        {
            "card": card,
            "study": card.job.study,
            "figures": figures.list_figures(card.job.id, inputs.get(card.job.id, []), card.made),
            "review": viewer_url(card.job.study.study_uid, review=True),
        }
        for card in build_job_cards(session, context, held, overview.estimate_durations_s(session))
    ]
    return context.page(session, "hold.html", rows=rows, total=total, page=page, pages=pages, message=message)


def _failures_page(session: Session, context: WebContext, page: int, message: str) -> HTMLResponse:
    states = (JobState.DEAD, JobState.REFUSED)
    counts = overview.count_jobs_by_state(session)
    total = sum(counts.get(state, 0) for state in states)
    page, pages = paginate(total, page, _PER_PAGE)
    query = select(Job).where(Job.state.in_(states)).options(joinedload(Job.study))
    newest = query.order_by(Job.finished_at.desc(), Job.id.desc()).limit(_PER_PAGE).offset((page - 1) * _PER_PAGE)
    given_up = (
        select(Delivery.destination, func.count(), func.max(Delivery.reason), func.count(Output.job_id.distinct()))
        .join(Output, Delivery.output_id == Output.id)
        .where(Delivery.state == DeliveryState.GIVEN_UP)
        .group_by(Delivery.destination)
        .order_by(Delivery.destination)
    )
    return context.page(
        session, "failures.html", jobs=session.scalars(newest).all(), total=total, page=page, pages=pages,
        given_up=session.execute(given_up).all(), message=message,
    )  # fmt: skip


def _jobs_page(session: Session, context: WebContext, state: JobState | None, page: int, message: str) -> HTMLResponse:
    counts = overview.count_jobs_by_state(session)
    total = sum(counts.values()) if state is None else counts.get(state, 0)
    page, pages = paginate(total, page, _PER_PAGE)
    typical = overview.estimate_durations_s(session)
    found = overview.load_job_page(session, state, limit=_PER_PAGE, offset=(page - 1) * _PER_PAGE)
    rows: list[tuple[Job, Study, Any]] = [
        (
            job,
            study,
            study_progress.describe_job_progress(job, typical, context.now())
            if job.state is JobState.RUNNING
            else None,
        )
        for job, study in found
    ]
    return context.page(
        session, "jobs.html", rows=rows, counts=counts, states=list(JobState), state=state, total=total, page=page,
        pages=pages, typical=typical, message=message,
    )  # fmt: skip


def _job_page(session: Session, context: WebContext, job: Job, message: str) -> HTMLResponse:
    inputs = contents.list_input_series(session, [job.id]).get(job.id, [])
    card = build_job_cards(session, context, [job], overview.estimate_durations_s(session))[0]
    elsewhere = ("measurements", "notes", "reasons", "alignments")
    facts = {key: value for key, value in job.report.items() if key not in elsewhere}
    return context.page(
        session, "job.html", card=card, study=job.study, inputs=inputs, facts=facts,
        figures=figures.list_figures(job.id, inputs, card.made), notes=job.report.get("notes", []), message=message,
        review=viewer_url(job.study.study_uid, review=job.state is JobState.HELD),
        has_reading=bool(card.made) and job.shadow_of_id is None and readings.is_readable(session, job),
    )  # fmt: skip
