"""DICOMweb roots: /dicom-web, what others see and store to; /review/dicom-web, the same with held results, to read."""

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

__all__ = ["REVIEW", "ROOT", "router"]

ROOT = "/dicom-web"
REVIEW = "/review/dicom-web"


def router(
    config: Config,
    sessions: sessionmaker[Session],
    *,
    now: Callable[[], datetime],
    review: bool = False,
    meters: Meters | None = None,
) -> APIRouter:
    """One of the two roots."""
    prefix = REVIEW if review else ROOT
    holdings = Holdings(engines.readers(sessions.kw["bind"]), config.spool_dir, prefix, include_held=review)
    routes = APIRouter(prefix=prefix)
    qido.add(routes, holdings)
    wado.add(routes, holdings)
    if not review:
        stow.add(routes, holdings, config, sessions, now=now, meters=meters)
    methods.add_options(routes)
    return routes
