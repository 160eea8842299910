"""Jobs: /hold, what waits for a person's decision; /failures, what went wrong; /jobs, all of them; /jobs/ID."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload
from starlette.responses import HTMLResponse

from db import contents, overview
from db.models import Delivery, Job, Output, Study
from db.states import DeliveryState, JobState
from dicomnode.web import figures, journey
from dicomnode.web.desk import Desk, page_number, told
from dicomnode.web.study_page import cards
from dicomnode.web.viewer import link

__all__ = ["add"]

_PER_PAGE = 50
_HELD_PER_PAGE = 8


def add(routes: APIRouter, desk: Desk) -> None:
    """The pages."""

    @routes.get("/hold")
    def hold(page: str = "1", done: str = "") -> HTMLResponse:
        with desk.readers() as session:
            return _hold(session, desk, page_number(page), told(done))

    @routes.get("/failures")
    def failures(page: str = "1", done: str = "") -> HTMLResponse:
        with desk.readers() as session:
            return _failures(session, desk, page_number(page), told(done))

    @routes.get("/jobs")
    def jobs(state: str = "", page: str = "1", done: str = "") -> HTMLResponse:
        wanted = JobState(state) if state in list(JobState) else None
        with desk.readers() as session:
            return _jobs(session, desk, wanted, page_number(page), told(done))

    @routes.get("/jobs/{id:row}")
    def job(id: int, done: str = "") -> HTMLResponse:
        with desk.readers() as session:
            found = session.get(Job, id, options=[joinedload(Job.study)])
            if found is not None:
                return _job(session, desk, found, told(done))
        return desk.trouble(404, f"There is no job {id}.", "/jobs")


def _hold(session: Session, desk: Desk, page: int, told: str) -> HTMLResponse:
    total = overview.count_jobs_by_state(session).get(JobState.HELD, 0)
    pages = max(1, -(-total // _HELD_PER_PAGE))
    page = min(page, pages)
    held = contents.list_jobs(session, (JobState.HELD,), limit=_HELD_PER_PAGE, offset=(page - 1) * _HELD_PER_PAGE)
    taken = contents.list_input_series(session, [job.id for job in held])
    shown = [
        {
            "card": card,
            "study": card.job.study,
            "figures": figures.of_job(card.job.id, taken.get(card.job.id, []), card.made),
            "review": link(card.job.study.study_uid, review=True),
        }
        for card in cards(session, desk, held, overview.estimate_durations_s(session))
    ]
    return desk.page(session, "hold.html", shown=shown, total=total, page=page, pages=pages, told=told)


def _failures(session: Session, desk: Desk, page: int, told: str) -> HTMLResponse:
    states = (JobState.DEAD, JobState.REFUSED)
    counts = overview.count_jobs_by_state(session)
    total = sum(counts.get(state, 0) for state in states)
    pages = max(1, -(-total // _PER_PAGE))
    page = min(page, pages)
    query = select(Job).where(Job.state.in_(states)).options(joinedload(Job.study))
    newest = query.order_by(Job.finished_at.desc(), Job.id.desc()).limit(_PER_PAGE).offset((page - 1) * _PER_PAGE)
    given_up = (
        select(Delivery.destination, func.count(), func.max(Delivery.reason), func.count(Output.job_id.distinct()))
        .join(Output, Delivery.output_id == Output.id)
        .where(Delivery.state == DeliveryState.GIVEN_UP)
        .group_by(Delivery.destination)
        .order_by(Delivery.destination)
    )
    return desk.page(
        session, "failures.html", jobs=session.scalars(newest).all(), total=total, page=page, pages=pages,
        given_up=session.execute(given_up).all(), told=told,
    )  # fmt: skip


def _jobs(session: Session, desk: Desk, state: JobState | None, page: int, told: str) -> HTMLResponse:
    counts = overview.count_jobs_by_state(session)
    total = sum(counts.values()) if state is None else counts.get(state, 0)
    pages = max(1, -(-total // _PER_PAGE))
    page = min(page, pages)
    typical = overview.estimate_durations_s(session)
    found = overview.load_job_page(session, state, limit=_PER_PAGE, offset=(page - 1) * _PER_PAGE)
    shown: list[tuple[Job, Study, Any]] = [
        (job, study, journey.running(job, typical, desk.now()) if job.state is JobState.RUNNING else None)
        for job, study in found
    ]
    return desk.page(
        session, "jobs.html", shown=shown, counts=counts, states=list(JobState), state=state, total=total, page=page,
        pages=pages, typical=typical, told=told,
    )  # fmt: skip


def _job(session: Session, desk: Desk, job: Job, told: str) -> HTMLResponse:
    taken = contents.list_input_series(session, [job.id]).get(job.id, [])
    card = cards(session, desk, [job], overview.estimate_durations_s(session))[0]
    facts = {key: value for key, value in job.report.items() if key not in ("measurements", "notes", "reasons")}
    return desk.page(
        session, "job.html", card=card, study=job.study, taken=taken, facts=facts,
        figures=figures.of_job(job.id, taken, card.made), notes=job.report.get("notes", []), told=told,
        review=link(job.study.study_uid, review=job.state is JobState.HELD),
    )  # fmt: skip
