"""/api: what the command line's ``--json`` prints, of the same functions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.responses import Response

from db.states import JobState
from dicomnode import listings
from dicomnode.errors import NotFound
from dicomnode.monitoring.status import collect_status as measure
from dicomnode.web.desk import LARGEST_NUMBER, Desk

__all__ = ["router"]

_MOST = 10_000
Limit = Annotated[int, Query(ge=1, le=_MOST)]
Offset = Annotated[int, Query(ge=0, le=LARGEST_NUMBER)]


def router(desk: Desk) -> APIRouter:
    """Read only; ``limit`` and ``offset`` page through what is long: no list has more than 10 000 rows."""
    routes = APIRouter(prefix="/api")
    _add_rows(routes, desk)

    @routes.get("/status")
    def status() -> Response:
        with desk.readers() as session:
            return _json(measure(session, desk.config, now=desk.now()))

    @routes.get("/models")
    def models() -> Response:
        return _json(listings.list_models(desk.config))

    @routes.get("/models/{name}")
    def model(name: str) -> Response:
        from model_zoo.bundle import BundleError

        try:
            return _json(listings.describe_model(name, desk.config))
        except BundleError as error:
            raise HTTPException(404, str(error)) from None

    @routes.get("/peers")
    def peers() -> Response:
        return _json(listings.list_peers(desk.config))

    return routes


def _add_rows(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/studies")
    def studies(limit: Limit = _MOST, offset: Offset = 0) -> Response:
        with desk.readers() as session:
            return _json(listings.list_studies(session, limit=limit, offset=offset))

    @routes.get("/studies/{uid}")
    def study(uid: str) -> Response:
        with desk.readers() as session, _or_404():
            return _json(listings.describe_study(session, listings.find_study(session, uid), most_series=_MOST))

    @routes.get("/studies/{uid}/explain")
    def explain(uid: str) -> Response:
        with desk.readers() as session, _or_404():
            return _json(listings.explain_routes(session, listings.find_study(session, uid), desk.config))

    @routes.get("/jobs")
    def jobs(state: JobState | None = None, limit: Limit = _MOST, offset: Offset = 0) -> Response:
        with desk.readers() as session:
            return _json(listings.list_jobs(session, state, limit=limit, offset=offset))

    @routes.get("/jobs/{id:row}")
    def job(id: int) -> Response:
        with desk.readers() as session, _or_404():
            return _json(listings.describe_job(session, listings.find_job(session, id)))


@contextmanager
def _or_404() -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise HTTPException(404, str(error)) from None


def _json(value: Any) -> Response:
    return Response(json.dumps(value, indent=2, default=_as_text) + "\n", media_type="application/json")


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
