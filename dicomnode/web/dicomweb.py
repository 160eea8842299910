"""DICOMweb roots: /dicom-web to read and store; /review/dicom-web, read-only, includes held results."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from fastapi import APIRouter
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from dicomnode.config import Config
from dicomnode.monitoring.meters import Meters
from dicomnode.web import methods, qido, stow, wado
from dicomnode.web.holdings import Holdings

__all__ = ["REVIEW", "ROOT", "create_router"]

ROOT = "/dicom-web"
REVIEW = "/review/dicom-web"


def create_router(
    config: Config,
    sessions: sessionmaker[Session],
    *,
    now: Callable[[], datetime],
    review: bool = False,
    meters: Meters | None = None,
) -> APIRouter:
    """Create the routes of one of the two roots."""
    prefix = REVIEW if review else ROOT
    holdings = Holdings(engines.readers(sessions.kw["bind"]), config.spool_dir, prefix, include_held=review)
    routes = APIRouter(prefix=prefix)
    qido.add_routes(routes, holdings)
    wado.add_routes(routes, holdings)
    if not review:
        stow.add_routes(routes, holdings, config, sessions, now=now, meters=meters)
    methods.add_options(routes)
    return routes
