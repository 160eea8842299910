"""Pictures of the pages: thumbnails of a study and a series, and figures of a job at one slice."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import Response

from db import contents, studies
from dicomnode.storage import spool
from dicomnode.web import pictures
from dicomnode.web.context import LARGEST_NUMBER, WebContext
from dicomnode.web.figures import JobPictures
from dicomnode.web.holdings import require_uid
from dicomnode.web.pictures import WindowChange

__all__ = ["LARGEST_SHIFT", "STRETCHES", "Level", "Width", "add_routes"]

_PLACEHOLDER_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 12 12"><rect width="12" height="12" fill="#8882"/>'
    '<path d="M4 6h4" stroke="#888" stroke-width=".6"/></svg>'
)
"""Placeholder for objects without pixels, such as reports and raw data."""
_SHORT_CACHE = {"Cache-Control": "private, max-age=60"}
_FIGURE_CACHE = {"Cache-Control": "private, max-age=3600"}
"""Of pictures of a job, whose inputs and results never change."""
_SIZES = (64, 1024)
_THUMBNAIL_WIDTH = 120
_PDF_PAGE = "report page (PDF)"
"""Kind of result for which the same page as an image is shown."""
LARGEST_SHIFT = 100
"""Greatest shift of a window, in percent of its width."""
STRETCHES = (10, 400)
"""Least and greatest width of a window, in percent of each image's own."""
Level = Annotated[int, Query(ge=-LARGEST_SHIFT, le=LARGEST_SHIFT)]
Width = Annotated[int, Query(ge=STRETCHES[0], le=STRETCHES[1])]
_MOST_CANDIDATES = 8
"""Greatest number of files that are tried; the first that can be drawn is shown."""


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes of the pictures."""

    def job_pictures(job_id: int) -> JobPictures:
        return JobPictures(context.readers, context.config.spool_dir, job_id)

    @routes.get("/studies/{uid}/thumbnail")
    def study_thumbnail(uid: str) -> Response:
        return _thumbnail_response(context, uid)

    @routes.get("/studies/{uid}/series/{series_uid}/thumbnail")
    def series_thumbnail(uid: str, series_uid: str) -> Response:
        return _thumbnail_response(context, uid, require_uid(series_uid))

    @routes.get("/jobs/{id:row}/pictures/{series_uid}")
    def job_figure(
        id: int,
        series_uid: str,
        at: Annotated[int | None, Query(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)] = None,
        size: Annotated[int, Query(ge=_SIZES[0], le=_SIZES[1])] = 384,
        level: Level = 0,
        width: Width = 100,
    ) -> Response:
        change = WindowChange(level / 100, width / 100)
        content = job_pictures(id).draw(require_uid(series_uid), at, size, change)
        if content is None:
            raise HTTPException(404, "there is nothing to draw")
        return Response(content, media_type="image/jpeg", headers=_FIGURE_CACHE)

    @routes.get("/jobs/{id:row}/depth")
    def depth(id: int) -> dict[str, int]:
        pictures = job_pictures(id)
        return {"slices": len(pictures.reference_planes()), "first": pictures.find_first_slice()}


def _thumbnail_response(context: WebContext, uid: str, series_uid: str = "") -> Response:
    with context.readers() as session:
        files = _find_candidates(session, uid, series_uid)
        result = contents.find_result_series(session, series_uid) if series_uid else None
        page = contents.find_page_files(session, result.job_id) if result and result.kind == _PDF_PAGE else []
    content = None
    if result is not None and result.kind == "segmentation":
        own = JobPictures(context.readers, context.config.spool_dir, result.job_id)
        content = own.draw_mask_thumbnail(series_uid, _THUMBNAIL_WIDTH)
    paths = (spool.path(context.config.spool_dir, sha256) for sha256 in [*page, *files][:_MOST_CANDIDATES])
    content = content or next(filter(None, map(pictures.draw_thumbnail, paths)), None)
    if content is None:
        return Response(_PLACEHOLDER_SVG, media_type="image/svg+xml", headers=_SHORT_CACHE)
    return Response(content, media_type="image/jpeg", headers=_SHORT_CACHE)


def _find_candidates(session: Session, uid: str, series_uid: str) -> list[str]:
    """Return the digests of the files nearest to the middle of a study or series, best first. Raises 404."""
    study = studies.find_by_uid(session, require_uid(uid))
    if study is None:
        raise HTTPException(404, "no such study here")
    return list(contents.find_middle_files(session, study.id, series_uid))
