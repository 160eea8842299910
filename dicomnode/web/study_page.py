"""/studies/UID: the series received, the jobs with their results and deliveries, and the routing decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, Response

from db import contents, overview, quarantine, readings, studies, trail, workitems
from db.contents import DeliverySummary, ResultSeries
from db.models import Job, Study
from db.states import JobState, StudyState
from dicomnode.routing import routing
from dicomnode.web import report_page, study_progress
from dicomnode.web.context import WebContext, flash_message
from dicomnode.web.holdings import require_uid
from dicomnode.web.masking import mask_names
from dicomnode.web.study_progress import JobProgress
from dicomnode.web.viewer import viewer_url

__all__ = ["MOST_SERIES", "JobCard", "add_routes", "build_job_cards"]

MOST_SERIES = 200
"""Greatest number of series on the page of a study; the viewer shows all."""

_MOST_NUMBERS = 6
_MOST_JOBS = 50


@dataclass(frozen=True)
class JobCard:
    """A job with its results, deliveries and progress, for display."""

    job: Job
    running: JobProgress | None
    made: tuple[ResultSeries, ...]
    deliveries: tuple[DeliverySummary, ...]
    typical_s: float | None

    @property
    def reasons(self) -> list[str]:
        """Reasons why the results were held or refused."""
        found: list[str] = [str(each) for each in self.job.report.get("reasons", [])]
        return found or ([self.job.reason] if self.job.reason else [])

    @property
    def measurements(self) -> list[dict[str, Any]]:
        """Measurements, those without a region first."""
        found: list[dict[str, Any]] = list(self.job.report.get("measurements", []))
        return sorted(found, key=lambda each: bool(each.get("group")))

    @property
    def first_measurements(self) -> list[dict[str, Any]]:
        """Measurements that fit on a card."""
        return self.measurements[:_MOST_NUMBERS]


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes of the page and of its report."""

    @routes.get("/studies/{uid}")
    def show(uid: str, done: str = "") -> HTMLResponse:
        with context.readers() as session:
            study = studies.find_by_uid(session, require_uid(uid))
            if study is not None:
                return _study_page(session, context, study, flash_message(done))
        return context.error_page(404, "No study with this UID is on this node.")

    @routes.get("/studies/{uid}/report.{kind}")
    def report(uid: str, kind: str) -> Response:
        with context.readers() as session:
            study = studies.find_by_uid(session, require_uid(uid))
            if study is None or kind not in report_page.MEDIA_TYPES:
                return context.error_page(404, "This report does not exist.")
            if (page := report_page.find_stored_page(context.config, study, kind)) is not None:
                return page
            version = report_page.results_version(session, study)
        return report_page.make_page(context.config, uid, kind, version) or context.error_page(
            404, "The study has no results for a report page yet.", f"/studies/{uid}"
        )


def build_job_cards(session: Session, context: WebContext, jobs: list[Job], typical: dict[str, float]) -> list[JobCard]:
    """Build the cards of jobs whose reports are loaded."""
    ids = [job.id for job in jobs]
    made, parcels = contents.list_results(session, ids), contents.summarize_deliveries(session, ids)
    return [
        JobCard(
            job,
            study_progress.describe_job_progress(job, typical, context.now())
            if job.state is JobState.RUNNING
            else None,
            tuple(made.get(job.id, ())),
            tuple(parcels.get(job.id, ())),
            typical.get(job.pipeline),
        )
        for job in jobs
    ]


def _study_page(session: Session, context: WebContext, study: Study, message: str) -> HTMLResponse:
    tally = overview.load_tallies(session, [study.id])[study.id]
    typical = overview.estimate_durations_s(session)
    newest = select(Job).where(Job.study_id == study.id).order_by(Job.id.desc()).limit(_MOST_JOBS + 1)
    jobs = list(session.scalars(newest))
    job_cards = build_job_cards(session, context, jobs[:_MOST_JOBS], typical)
    series = contents.list_received_series(session, study.id, limit=MOST_SERIES + 1)
    verdicts = routing.explain_study(session, study, context.config.routes)
    if context.config.web.mask_names:
        verdicts = [mask_names(each) for each in verdicts]
    routed = {card.job.route for card in job_cards}
    unused = [each.route for each in verdicts if each.matched and each.route not in routed]
    return context.page(
        session,
        "study.html",
        study=study,
        tally=tally,
        progress=study_progress.describe_study_progress(study, tally, typical, context.now()),
        workitems=workitems.list_open_of_study(session, study.study_uid),
        series=series[:MOST_SERIES],
        quarantined=quarantine.count_undecided(session, study.study_uid),
        has_more_series=len(series) > MOST_SERIES,
        has_more_jobs=len(jobs) > _MOST_JOBS,
        cards=job_cards,
        unused_routes=unused if study.state is StudyState.ROUTED else [],
        verdicts=sorted(verdicts, key=lambda each: (each.route not in routed, not each.matched)),
        events=trail.list_study_events(session, study.id),
        viewer=viewer_url(study.study_uid),
        review=viewer_url(study.study_uid, review=True),
        has_held=any(card.job.state is JobState.HELD for card in job_cards),
        has_report=report_page.has_results(session, study),
        has_reading=any(
            card.made and not card.job.is_trial and readings.is_readable(session, card.job) for card in job_cards
        ),
        message=message,
    )
