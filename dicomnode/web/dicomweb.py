"""DICOMweb roots: /dicom-web to read and store, and two read-only ones for this node's viewer.

The viewer's roots add windows from the pixels where the header has none; /review/dicom-web includes held results.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from fastapi import APIRouter
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from dicomnode.config import Config
from dicomnode.monitoring.meters import Meters
from dicomnode.web import methods, qido, stow, ups, ups_events, wado
from dicomnode.web.holdings import Holdings

__all__ = ["REVIEW", "ROOT", "VIEW", "create_router"]

ROOT = "/dicom-web"
VIEW = "/viewer/dicom-web"
REVIEW = "/review/dicom-web"


def create_router(
    config: Config,
    sessions: sessionmaker[Session],
    *,
    now: Callable[[], datetime],
    prefix: str = ROOT,
    meters: Meters | None = None,
) -> APIRouter:
    """Create the routes of one of the roots, by its ``prefix``."""
    readers, is_open = engines.readers(sessions.kw["bind"]), prefix == ROOT
    holdings = Holdings(readers, config.spool_dir, prefix, include_held=prefix == REVIEW, adds_windows=not is_open)
    routes = APIRouter(prefix=prefix)
    qido.add_routes(routes, holdings)
    wado.add_routes(routes, holdings)
    if is_open:
        stow.add_routes(routes, holdings, config, sessions, now=now, meters=meters)
    if is_open and config.worklist.enabled:
        worklist = ups.Worklist(config, sessions, prefix, now)
        ups.add_routes(routes, worklist)
        ups.add_subscriptions(routes, worklist)
        ups_events.add_routes(routes, worklist)
    methods.add_options(routes)
    return routes
