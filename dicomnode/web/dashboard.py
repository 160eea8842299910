"""What the node is doing, as pages for people: the studies and their way through it; see the modules for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from db import overview
from db.overview import Stage, StudyFilter
from dicomnode.config import Config
from dicomnode.web import (
    api,
    decisions,
    events,
    journey,
    model_pages,
    node_pages,
    picture_routes,
    queue_pages,
    study_page,
)
from dicomnode.web.desk import Desk, page_number, read_form, told

__all__ = ["router"]

PER_PAGE = 40
_STAGES = (
    Stage.RECEIVING, Stage.COMPLETE, Stage.WAITING, Stage.RUNNING, Stage.HELD, Stage.FAILED, Stage.REFUSED,
    Stage.DELIVERING, Stage.DELIVERED, Stage.UNROUTED,
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What the list of studies is asked for, as the form says it. ``patient`` never stands in an address."""

    state: str = ""
    description: str = ""
    first: str = ""
    last: str = ""
    page: int = 1
    patient: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Asked:
        """From an address or a form; what makes no sense there is as if it were not said."""
        state = fields.get("state", "")
        words = {name: fields.get(name, "")[:64] for name in ("description", "first", "last", "patient")}
        return cls(state if state in list(Stage) else "", page=page_number(fields.get("page", "1")), **words)

    def at(self, **changes: str | int) -> str:
        """The address of the same list with other values; the first page unless told otherwise."""
        other = replace(self, **({"page": 1} | changes))  # type: ignore[arg-type]  # names and kinds of the fields
        said = {name: getattr(other, name) for name in ("state", "description", "first", "last")}
        query = {name: value for name, value in said.items() if value}
        query |= {"page": str(other.page)} if other.page > 1 else {}
        return f"/?{urlencode(query)}" if query else "/"

    def filter(self, *, by_name: bool) -> StudyFilter:
        """For the database."""
        stage = Stage(self.state) if self.state else None
        first, last = (each.replace("-", "") for each in (self.first, self.last))
        return StudyFilter(stage, self.patient, by_name, self.description, first, last)


def router(config: Config, sessions: sessionmaker[Session], *, now: Callable[[], datetime]) -> APIRouter:
    """All pages of people, what they ask for, and /api."""
    desk = Desk(config, sessions, now)
    routes = APIRouter()
    _add_front(routes, desk)
    study_page.add(routes, desk)
    queue_pages.add(routes, desk)
    node_pages.add(routes, desk)
    model_pages.add(routes, desk)
    picture_routes.add(routes, desk)
    decisions.add(routes, desk)
    routes.include_router(api.router(desk))
    routes.include_router(events.router(events.News(desk.readers, now)))
    return routes


def _add_front(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/")
    def front(request: Request, done: str = "") -> HTMLResponse:
        return _studies(desk, replace(Asked.of(request.query_params), patient=""), told(done))

    @routes.post("/")
    def search(form: Annotated[dict[str, str], Depends(read_form)]) -> Response:
        asked = Asked.of(form)
        if not asked.patient:
            return RedirectResponse(asked.at(page=asked.page), 303)
        return _studies(desk, asked, "")


def _studies(desk: Desk, asked: Asked, told: str) -> HTMLResponse:
    now = desk.now()
    wanted = asked.filter(by_name=not desk.config.web.mask_names)
    with desk.readers() as session:
        total = overview.count_studies(session, wanted)
        pages = max(1, -(-total // PER_PAGE))
        asked = replace(asked, page=min(asked.page, pages))
        found = overview.load_study_page(session, wanted, limit=PER_PAGE, offset=(asked.page - 1) * PER_PAGE)
        typical = overview.estimate_durations_s(session)
        shown = [
            (study, found.tallies[study.id], journey.way(study, found.tallies[study.id], typical, now))
            for study in found.studies
        ]
        counts = overview.count_stages(session)
        return desk.page(
            session, "studies.html", shown=shown, total=total, pages=pages, asked=asked, stages=_STAGES, counts=counts,
            told=told, per_page=PER_PAGE,
        )  # fmt: skip
