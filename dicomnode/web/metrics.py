"""/metrics in the text format of Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.responses import Response

from db import engine as engines
from dicomnode.config import Config
from dicomnode.monitoring.audit_counters import AuditCounters
from dicomnode.monitoring.gauges import Gauges
from dicomnode.monitoring.meters import Meters
from dicomnode.monitoring.sweep_health import SweepHealth

__all__ = ["create_router"]

_log = logging.getLogger(__name__)


def create_router(
    config: Config,
    sessions: sessionmaker[Session],
    *,
    now: Callable[[], datetime],
    meters: Meters,
    sweep_health: SweepHealth,
) -> APIRouter:
    """Create the route. It answers without a token: with numbers and names of the configuration, no patient data."""
    routes = APIRouter()
    readers = engines.readers(sessions.kw["bind"])
    Gauges(config, readers, now, sweep_health).register(meters.registry)
    counters = AuditCounters(readers, meters.registry)
    with suppress(SQLAlchemyError):
        counters.update()

    @routes.get("/metrics")
    def metrics() -> Response:
        try:
            counters.update()
        except SQLAlchemyError as error:
            _log.warning("metrics: the database does not answer (%s)", type(error).__name__)
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
