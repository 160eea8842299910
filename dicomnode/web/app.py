"""The web application: its parts put together, and what surrounds all of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.orm import Session, sessionmaker
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from dicomnode.config import Config
from dicomnode.errors import InputRefused, NodeBusy, NodeError
from dicomnode.monitoring.meters import Meters
from dicomnode.monitoring.sweep_health import SweepHealth
from dicomnode.web import access, dashboard, dicomweb, health, metrics, viewer
from dicomnode.web.security import Door, SecureHeaders

__all__ = ["create_app"]

STATIC = Path(__file__).parent / "static"


def create_app(
    config: Config,
    sessions: sessionmaker[Session],
    *,
    now: Callable[[], datetime],
    meters: Meters | None = None,
    sweep_health: SweepHealth | None = None,
) -> FastAPI:
    """Everything under ``/``. ``sessions`` write; readers are made from their engine.

    ``meters``: what the receiver of this process counts; ``sweep_health``: of its sweeps and local workers.
    Raises ConfigError when the token cannot be read.
    """
    token = access.read_token(config, now)
    meters, sweep_health = meters or Meters(), sweep_health or SweepHealth()
    app = FastAPI(title="dicomnode", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(health.router(config, sessions, sweep_health))
    app.include_router(metrics.router(config, sessions, now=now, meters=meters, sweep_health=sweep_health))
    app.include_router(access.router(token))
    app.include_router(dicomweb.router(config, sessions, now=now, meters=meters))
    app.include_router(dicomweb.router(config, sessions, now=now, review=True))
    app.include_router(viewer.router(config))
    app.include_router(dashboard.router(config, sessions, now=now))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    app.add_exception_handler(InputRefused, _not_drawn)
    app.add_exception_handler(NodeBusy, _busy)
    app.add_exception_handler(NodeError, _failed)
    # the last one added is outermost
    app.add_middleware(access.Guard, token=token, host=config.web.host)
    app.add_middleware(SecureHeaders)
    app.add_middleware(Door)
    return app


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=error.headers)


def _misunderstood(_: Request, error: Exception) -> Response:
    """The name of what is wrong; its value may be a patient's."""
    assert isinstance(error, RequestValidationError)
    wrong = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
    return PlainTextResponse(f"not understood: {wrong}\n", 400)


def _not_drawn(_: Request, error: Exception) -> Response:
    """What is stored cannot be given in any form that was asked for."""
    return PlainTextResponse(f"{error}\n", 406)


def _busy(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 503, {"Retry-After": "10"})


def _failed(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 500)
