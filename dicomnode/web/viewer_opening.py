"""/viewer: OHIF's list of studies, or a study with its result beside the source."""

from __future__ import annotations

import re

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import RedirectResponse

from db import studies
from db.states import JobState
from dicomnode.web import ohif, reading_figures
from dicomnode.web.context import WebContext
from dicomnode.web.reading_page import list_readable
from dicomnode.web.viewer import Layout, reading_url

__all__ = ["add_routes"]

_STUDY = "StudyInstanceUIDs"
_UID = re.compile(r"[0-9.]{1,64}")


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the route; an address that names more than a study is passed on as it is."""

    @routes.get("/viewer")
    def open_viewer(request: Request) -> RedirectResponse:
        query = f"?{request.url.query}" if request.url.query else ""
        study_uid = request.query_params.get(_STUDY, "")
        if not study_uid:
            return RedirectResponse(f"{ohif.BASE}{query}", 307)
        if set(request.query_params) == {_STUDY} and _UID.fullmatch(study_uid):
            with context.readers() as session:
                layout = _find_layout(session, context, study_uid)
            if layout is not None:
                return RedirectResponse(reading_url(study_uid, layout), 307)
        return RedirectResponse(f"{ohif.BASE}viewer/node{query}", 307)


def _find_layout(session: Session, context: WebContext, study_uid: str) -> Layout | None:
    """Return the layout of the newest result of a route that is not held; None where none has an image to show."""
    study = studies.find_by_uid(session, study_uid)
    jobs = [] if study is None else list_readable(session, study)
    layouts = (
        reading_figures.choose_layout(session, job, context.config.spool_dir, None)
        for job in jobs
        if job.state is JobState.DONE and not job.is_trial
    )
    return next((each for each in layouts if each is not None), None)
