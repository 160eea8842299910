"""/api: the JSON of the command line's ``--json``, from the same functions."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.responses import Response

from db.states import JobState
from dicomnode import listings
from dicomnode.learning import describing
from dicomnode.monitoring.status import collect_status as measure
from dicomnode.web.context import LARGEST_NUMBER, WebContext

__all__ = ["MOST_ROWS", "create_router"]

MOST_ROWS = 10_000
"""Greatest number of rows of a list in an answer."""
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS)]
Offset = Annotated[int, Query(ge=0, le=LARGEST_NUMBER)]


def create_router(context: WebContext) -> APIRouter:
    """Create the read-only routes. ``limit`` and ``offset`` page through long lists, of at most 10 000 rows each."""
    routes = APIRouter(prefix="/api")
    _add_row_routes(routes, context)

    @routes.get("/status")
    def status() -> Response:
        """Return what ``dicomnode status --json`` prints."""
        with context.readers() as session:
            return _json_response(measure(session, context.config, now=context.now()))

    @routes.get("/models")
    def models() -> Response:
        """Return the bundles of this node, as ``dicomnode models list --json`` prints them."""
        return _json_response(listings.list_models(context.config))

    @routes.get("/models/{name}")
    def model(name: str) -> Response:
        """Return one bundle, as ``dicomnode models show NAME --json`` prints it."""
        from model_zoo.bundle import BundleError

        try:
            return _json_response(listings.describe_model(name, context.config))
        except BundleError as error:
            raise HTTPException(404, str(error)) from None

    @routes.get("/learning")
    def learning() -> Response:
        """Return the nights of [[learning]], as ``dicomnode learn list --json`` prints them."""
        with context.readers() as session:
            return _json_response(describing.list_learning(session, context.config, context.now()))

    @routes.get("/learning/{id:row}")
    def learning_run(id: int) -> Response:
        """Return one learning run with its scores, as ``dicomnode learn show ID --json`` prints it."""
        with context.readers() as session:
            return _json_response(describing.describe_run(session, describing.find_run(session, id)))

    @routes.get("/peers")
    def peers() -> Response:
        """Return the configured peers, as ``dicomnode peers list --json`` prints them."""
        return _json_response(listings.list_peers(context.config))

    return routes


def _add_row_routes(routes: APIRouter, context: WebContext) -> None:
    @routes.get("/studies")
    def studies(limit: Limit = MOST_ROWS, offset: Offset = 0) -> Response:
        """Return a page of the studies, as ``dicomnode studies list --json`` prints them."""
        with context.readers() as session:
            return _json_response(listings.list_studies(session, limit=limit, offset=offset))

    @routes.get("/studies/{uid}")
    def study(uid: str) -> Response:
        """Return one study with its series and jobs, as ``dicomnode studies show UID --json`` prints it."""
        with context.readers() as session:
            return _json_response(
                listings.describe_study(session, listings.find_study(session, uid), most_series=MOST_ROWS)
            )

    @routes.get("/studies/{uid}/explain")
    def explain(uid: str) -> Response:
        """Return what each route matches and why, as ``dicomnode studies explain UID --json`` prints it."""
        with context.readers() as session:
            return _json_response(listings.explain_routes(session, listings.find_study(session, uid), context.config))

    @routes.get("/studies/{uid}/ledger")
    def ledger(uid: str) -> Response:
        """Return what became of a study, as ``dicomnode studies ledger UID --json`` prints it."""
        with context.readers() as session:
            return _json_response(listings.list_ledger(session, listings.find_study(session, uid)))

    @routes.get("/jobs")
    def jobs(state: JobState | None = None, limit: Limit = MOST_ROWS, offset: Offset = 0) -> Response:
        """Return a page of the jobs, as ``dicomnode jobs list --json`` prints them."""
        with context.readers() as session:
            return _json_response(listings.list_jobs(session, state, limit=limit, offset=offset))

    @routes.get("/jobs/{id:row}")
    def job(id: int) -> Response:
        """Return one job with its report and results, as ``dicomnode jobs show ID --json`` prints it."""
        with context.readers() as session:
            return _json_response(listings.describe_job(session, listings.find_job(session, id)))


def _json_response(value: Any) -> Response:
    return Response(json.dumps(value, indent=2, default=_encode_value) + "\n", media_type="application/json")


def _encode_value(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
