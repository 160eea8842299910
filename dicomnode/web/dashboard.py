"""The dashboard: the list of studies with their progress; its other pages have modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlencode

from fastapi import APIRouter
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from db import overview
from db.overview import Stage, StudyFilter
from dicomnode.config import Config
from dicomnode.monitoring import status
from dicomnode.monitoring.refused_callers import RefusedCallers
from dicomnode.web import (
    api,
    decisions,
    events,
    learning_pages,
    model_pages,
    node_pages,
    picture_routes,
    queue_pages,
    reading_decision,
    reading_page,
    sender_pages,
    study_page,
    study_progress,
    try_actions,
    try_page,
    try_upload,
    viewer_opening,
    worklist_page,
)
from dicomnode.web.context import WebContext, flash_message, paginate, parse_page_number
from dicomnode.web.forms import Form

__all__ = ["create_router"]

PER_PAGE = 40
_STAGES = (
    Stage.RECEIVING, Stage.COMPLETE, Stage.WAITING, Stage.RUNNING, Stage.HELD, Stage.FAILED, Stage.REFUSED,
    Stage.DELIVERING, Stage.DELIVERED, Stage.UNROUTED,
)  # fmt: skip


@dataclass(frozen=True)
class StudyListQuery:
    """A search in the list of studies, as the form sends it. ``patient`` never becomes part of an address."""

    state: str = ""
    description: str = ""
    first: str = ""
    last: str = ""
    page: int = 1
    patient: str = ""

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> StudyListQuery:
        """Read the search from an address or a form; invalid values are ignored."""
        state = fields.get("state", "")
        texts = {name: fields.get(name, "")[:64] for name in ("description", "first", "last", "patient")}
        return cls(state if state in list(Stage) else "", page=parse_page_number(fields.get("page", "1")), **texts)

    def address(self, **changes: str | int) -> str:
        """Return the address of the list with changed values, at the first page unless ``page`` is among them."""
        other = replace(self, **({"page": 1} | changes))  # type: ignore[arg-type]  # names and kinds of the fields
        fields = {name: getattr(other, name) for name in ("state", "description", "first", "last")}
        query = {name: value for name, value in fields.items() if value}
        query |= {"page": str(other.page)} if other.page > 1 else {}
        return f"/?{urlencode(query)}" if query else "/"

    def to_filter(self, *, by_name: bool) -> StudyFilter:
        """Convert the search to a filter of the database."""
        stage = Stage(self.state) if self.state else None
        first, last = (each.replace("-", "") for each in (self.first, self.last))
        return StudyFilter(stage, self.patient, by_name, self.description, first, last)


def create_router(
    config: Config, sessions: sessionmaker[Session], *, now: Callable[[], datetime], refused_callers: RefusedCallers
) -> APIRouter:
    """Create the routes of all pages, their pictures and decisions, /events and /api."""
    context = WebContext(config, sessions, now, refused_callers)
    routes = APIRouter()
    _add_study_list(routes, context)
    study_page.add_routes(routes, context)
    reading_page.add_routes(routes, context)
    reading_decision.add_routes(routes, context)
    viewer_opening.add_routes(routes, context)
    queue_pages.add_routes(routes, context)
    worklist_page.add_routes(routes, context)
    node_pages.add_routes(routes, context)
    sender_pages.add_routes(routes, context)
    model_pages.add_routes(routes, context)
    learning_pages.add_routes(routes, context)
    picture_routes.add_routes(routes, context)
    decisions.add_routes(routes, context)
    try_upload.add_routes(routes, context)
    try_page.add_routes(routes, context)
    try_actions.add_routes(routes, context)
    routes.include_router(api.create_router(context))
    routes.include_router(events.create_router(events.ChangeFeed(context.readers, now)))
    return routes


def _add_study_list(routes: APIRouter, context: WebContext) -> None:
    @routes.get("/")
    def front(request: Request, done: str = "") -> HTMLResponse:
        return _study_list(
            context, replace(StudyListQuery.from_fields(request.query_params), patient=""), flash_message(done)
        )

    @routes.post("/")
    def search(form: Form) -> Response:
        query = StudyListQuery.from_fields(form)
        if not query.patient:
            return RedirectResponse(query.address(page=query.page), 303)
        return _study_list(context, query, "")


def _study_list(context: WebContext, query: StudyListQuery, message: str) -> HTMLResponse:
    now = context.now()
    study_filter = query.to_filter(by_name=not context.config.web.mask_names)
    with context.readers() as session:
        total = overview.count_studies(session, study_filter)
        number, pages = paginate(total, query.page, PER_PAGE)
        query = replace(query, page=number)
        found = overview.load_study_page(session, study_filter, limit=PER_PAGE, offset=(query.page - 1) * PER_PAGE)
        typical = overview.estimate_durations_s(session)
        rows = [
            (
                study,
                found.tallies[study.id],
                study_progress.describe_study_progress(study, found.tallies[study.id], typical, now),
            )
            for study in found.studies
        ]
        counts = overview.count_stages(session)
        return context.page(
            session, "studies.html", rows=rows, total=total, pages=pages, query=query, stages=_STAGES, counts=counts,
            message=message, per_page=PER_PAGE,
            workers=status.count_workers(session, now=now),
        )  # fmt: skip
