"""/studies/UID: what came in, what was made of it and why, where it went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, Response

from db import contents, overview, studies, trail
from db.contents import DeliverySummary, ResultSeries
from db.models import Job, Study
from db.states import JobState
from dicomnode.routing import routing
from dicomnode.web import journey, report_page
from dicomnode.web.desk import Desk, checked_uid, told
from dicomnode.web.journey import Running
from dicomnode.web.viewer import link

__all__ = ["JobCard", "add", "cards"]

_SHOWN_NUMBERS = 6
_SHOWN_SERIES = 200
_SHOWN_JOBS = 50


@dataclass(frozen=True)
class JobCard:
    """A job with everything that is shown of it."""

    job: Job
    running: Running | None
    made: tuple[ResultSeries, ...]
    parcels: tuple[DeliverySummary, ...]
    usual_s: float | None

    @property
    def reasons(self) -> list[str]:
        """Why the gate held or refused its results."""
        found: list[str] = [str(each) for each in self.job.report.get("reasons", [])]
        return found or ([self.job.reason] if self.job.reason else [])

    @property
    def measurements(self) -> list[dict[str, Any]]:
        """Those of the whole result first; of regions as many as fit."""
        found: list[dict[str, Any]] = list(self.job.report.get("measurements", []))
        return sorted(found, key=lambda each: bool(each.get("group")))

    @property
    def few_measurements(self) -> list[dict[str, Any]]:
        """What stands on a card."""
        return self.measurements[:_SHOWN_NUMBERS]


def add(routes: APIRouter, desk: Desk) -> None:
    """The page and its report."""

    @routes.get("/studies/{uid}")
    def show(uid: str, done: str = "") -> HTMLResponse:
        with desk.readers() as session:
            study = studies.find_by_uid(session, checked_uid(uid))
            if study is not None:
                return _page(session, desk, study, told(done))
        return desk.trouble(404, "No study of that UID is here.")

    @routes.get("/studies/{uid}/report.{kind}")
    def report(uid: str, kind: str) -> Response:
        with desk.readers() as session:
            study = studies.find_by_uid(session, checked_uid(uid))
            if study is None or kind not in report_page.KINDS:
                return desk.trouble(404, "No such report is here.")
            if (page := report_page.kept(desk.config, study, kind)) is not None:
                return page
            ended = report_page.version(session, study)
        return report_page.answer(desk.config, uid, kind, ended) or desk.trouble(
            404, "There is no result yet to make a page of.", f"/studies/{uid}"
        )


def cards(session: Session, desk: Desk, jobs: list[Job], typical: dict[str, float]) -> list[JobCard]:
    """For jobs with their reports loaded."""
    ids = [job.id for job in jobs]
    made, parcels = contents.list_results(session, ids), contents.summarize_deliveries(session, ids)
    return [
        JobCard(
            job,
            journey.running(job, typical, desk.now()) if job.state is JobState.RUNNING else None,
            tuple(made.get(job.id, ())),
            tuple(parcels.get(job.id, ())),
            typical.get(job.pipeline),
        )
        for job in jobs
    ]


def _page(session: Session, desk: Desk, study: Study, told: str) -> HTMLResponse:
    tally = overview.load_tallies(session, [study.id])[study.id]
    typical = overview.estimate_durations_s(session)
    mine = select(Job).where(Job.study_id == study.id).order_by(Job.id.desc()).limit(_SHOWN_JOBS + 1)
    jobs = list(session.scalars(mine))
    shown = cards(session, desk, jobs[:_SHOWN_JOBS], typical)
    series = contents.list_received_series(session, study.id, limit=_SHOWN_SERIES + 1)
    verdicts = routing.explain_study(session, study, desk.config.routes)
    routed = {card.job.route for card in shown}
    return desk.page(
        session,
        "study.html",
        study=study,
        tally=tally,
        way=journey.way(study, tally, typical, desk.now()),
        series=series[:_SHOWN_SERIES],
        has_more_series=len(series) > _SHOWN_SERIES,
        has_more_jobs=len(jobs) > _SHOWN_JOBS,
        cards=shown,
        verdicts=sorted(verdicts, key=lambda each: (each.route not in routed, not each.matched)),
        events=trail.list_study_events(session, study.id),
        viewer=link(study.study_uid),
        review=link(study.study_uid, review=True),
        has_held=any(card.job.state is JobState.HELD for card in shown),
        has_report=report_page.exists(session, study),
        told=told,
    )
