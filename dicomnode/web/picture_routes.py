"""Pictures that pages show: of a study, of one of its series, of a job at one slice."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import Response

from db import contents, studies
from dicomnode.storage import spool
from dicomnode.web import figures, pictures
from dicomnode.web.desk import LARGEST_NUMBER, Desk, checked_uid

__all__ = ["add"]

_EMPTY = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 12 12"><rect width="12" height="12" fill="#8882"/>'
    '<path d="M4 6h4" stroke="#888" stroke-width=".6"/></svg>'
)
"""Where there is nothing to draw: a report, raw data."""
_KEEP_A_WHILE = {"Cache-Control": "private, max-age=60"}
_SIZES = (64, 1024)
_TRIED = 8
"""Files of which the first that can be drawn is shown."""


def add(routes: APIRouter, desk: Desk) -> None:
    """The pictures."""

    @routes.get("/studies/{uid}/thumbnail")
    def of_study(uid: str) -> Response:
        return _thumbnail(desk, uid)

    @routes.get("/studies/{uid}/series/{series_uid}/thumbnail")
    def of_series(uid: str, series_uid: str) -> Response:
        return _thumbnail(desk, uid, checked_uid(series_uid))

    @routes.get("/jobs/{id:row}/pictures/{series_uid}")
    def of_job(
        id: int,
        series_uid: str,
        at: Annotated[int | None, Query(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)] = None,
        size: Annotated[int, Query(ge=_SIZES[0], le=_SIZES[1])] = 384,
    ) -> Response:
        content = figures.drawn(desk.readers, desk.config.spool_dir, id, checked_uid(series_uid), at, size)
        if content is None:
            raise HTTPException(404, "there is nothing to draw")
        return Response(content, media_type="image/jpeg", headers=_KEEP_A_WHILE)

    @routes.get("/jobs/{id:row}/depth")
    def depth(id: int) -> dict[str, int]:
        return {"slices": figures.depth(desk.readers, desk.config.spool_dir, id)}


def _thumbnail(desk: Desk, uid: str, series_uid: str = "") -> Response:
    with desk.readers() as session:
        files = _middle(session, uid, series_uid)
    paths = (spool.path(desk.config.spool_dir, sha256) for sha256 in files[:_TRIED])
    content = next(filter(None, map(pictures.thumbnail, paths)), None)
    if content is None:
        return Response(_EMPTY, media_type="image/svg+xml", headers=_KEEP_A_WHILE)
    return Response(content, media_type="image/jpeg", headers=_KEEP_A_WHILE)


def _middle(session: Session, uid: str, series_uid: str) -> list[str]:
    """The files that show most of it, the best first. Raises 404."""
    study = studies.find_by_uid(session, checked_uid(uid))
    if study is None:
        raise HTTPException(404, "no such study here")
    return list(contents.find_middle_files(session, study.id, series_uid))
