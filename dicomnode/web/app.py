"""The web application: its routers, error handlers and middleware."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.orm import Session, sessionmaker
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from dicomnode.config import Config
from dicomnode.errors import InputRefused, NodeBusy, NodeError, NotFound
from dicomnode.monitoring.meters import Meters
from dicomnode.monitoring.sweep_health import SweepHealth
from dicomnode.web import (
    access,
    account_login,
    dashboard,
    dicomweb,
    health,
    metrics,
    node_token,
    provider_login,
    roles,
    viewer,
)
from dicomnode.web.account_access import AccountAccess
from dicomnode.web.public_scheme import PublicSchemeMiddleware
from dicomnode.web.security import ErrorMiddleware, SecurityHeadersMiddleware
from dicomnode.web.ups_events import ChannelAccessMiddleware

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
    """Create the application. ``sessions`` write; read-only sessions are made from their engine.

    ``meters``: counters of this process's receiver; ``sweep_health``: health of its sweeps and local workers. Raises
    ConfigError when the token cannot be read.
    """
    token = node_token.read_token(config, now)
    accounts = AccountAccess(config.web, sessions, now, token) if config.web.accounts else None
    meters, sweep_health = meters or Meters(), sweep_health or SweepHealth()
    app = FastAPI(
        title="dicomnode", docs_url=None, redoc_url=None, openapi_url=None,
        dependencies=[Depends(roles.check)] if accounts else [],
    )  # fmt: skip
    app.include_router(health.create_router(config, sessions, sweep_health))
    app.include_router(metrics.create_router(config, sessions, now=now, meters=meters, sweep_health=sweep_health))
    app.include_router(_create_login(config, sessions, accounts, now) if accounts else access.create_router(token))
    app.include_router(dicomweb.create_router(config, sessions, now=now, meters=meters))
    for prefix in (dicomweb.VIEW, dicomweb.REVIEW):
        app.include_router(dicomweb.create_router(config, sessions, now=now, prefix=prefix))
    app.include_router(viewer.create_router(config))
    app.include_router(dashboard.create_router(config, sessions, now=now, refused_callers=meters.refused_callers))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(roles.RoleNeeded, roles.refuse)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(InputRefused, _input_refused)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(NodeBusy, _node_busy)
    app.add_exception_handler(NodeError, _node_error)
    # the last one added is outermost
    app.add_middleware(access.AccessMiddleware, token=token, accounts=accounts, host=config.web.host)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(ErrorMiddleware)
    app.add_middleware(ChannelAccessMiddleware)
    app.add_middleware(PublicSchemeMiddleware, public_url=config.web.public_url)
    return app


def _create_login(
    config: Config, sessions: sessionmaker[Session], accounts: AccountAccess, now: Callable[[], datetime]
) -> APIRouter:
    provider = provider_login.make_provider(config.web, now)
    routes = account_login.create_router(accounts, provider)
    if provider is not None:
        provider_login.add_routes(routes, provider, accounts, sessions, now)
    return routes


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=error.headers)


def _invalid_request(_: Request, error: Exception) -> Response:
    """Name the invalid parameters, without their values, which may identify a patient."""
    assert isinstance(error, RequestValidationError)
    names = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
    return PlainTextResponse(f"not understood: {names}\n", 400)


def _input_refused(_: Request, error: Exception) -> Response:
    """Answer that a stored object cannot be sent in any representation that the client accepts."""
    return PlainTextResponse(f"{error}\n", 406)


def _not_found(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 404)


def _node_busy(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 503, {"Retry-After": "10"})


def _node_error(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 500)
