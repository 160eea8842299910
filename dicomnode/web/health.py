"""/healthz: this process answers. /readyz: this process can do its work.

Ready means: the database answers and is at this program's revision; the spool is writable and has space; where the
scheduler runs in this process, every sweep has succeeded lately; where workers are started, at least one runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.responses import JSONResponse

from db import engine as engines
from db import migrations
from dicomnode.config import Config
from dicomnode.config.web import WebConfig
from dicomnode.errors import OutOfSpace
from dicomnode.monitoring.sweep_health import SweepHealth
from dicomnode.storage import spool

__all__ = ["ask", "create_router"]

_ASK_TIMEOUT_S = 5.0
_MOST_BYTES = 10_000


class _Unhealthy(Exception):
    """Raised where a part of the node answers and is not ready."""


def create_router(config: Config, sessions: sessionmaker[Session], sweep_health: SweepHealth) -> APIRouter:
    """Create both routes. They answer without a token and name only the parts with their state."""
    routes = APIRouter()
    readers = engines.readers(sessions.kw["bind"])
    revision = migrations.head()
    parts: dict[str, Callable[[], None]] = {
        "database": lambda: _check_database(readers, revision),
        "spool": lambda: _check_spool(config),
        "disk": lambda: spool.check_space(config.spool_dir, config.spool),
    }
    if sweep_health.heartbeats():
        parts["clock"] = lambda: _check_scheduler(sweep_health)
    if sweep_health.expected_workers:
        parts["workers"] = lambda: _check_workers(sweep_health)

    @routes.get("/healthz")
    async def healthz() -> JSONResponse:  # on the event loop: it needs no thread
        return JSONResponse({"status": "ok"})

    executor = ThreadPoolExecutor(1, "readyz")

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:  # on its own thread: those of the pages may all be busy
        results = await asyncio.get_running_loop().run_in_executor(executor, _run_checks, parts)
        ready = set(results.values()) == {"ok"}
        return JSONResponse({"status": "ok" if ready else "failed"} | results, 200 if ready else 503)

    return routes


def ask(web: WebConfig) -> dict[str, str] | None:
    """Ask /readyz at the port of the web on this machine; return each part's state, or None where no node answers."""
    connection = _connect(web)
    try:
        connection.request("GET", "/readyz")
        answer = json.loads(connection.getresponse().read(_MOST_BYTES))
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if not isinstance(answer, dict) or not {"status", "database", "spool", "disk"} <= answer.keys():
        return None
    return {name: str(state) for name, state in answer.items() if name != "status"}


def _connect(web: WebConfig) -> HTTPConnection:
    host = "127.0.0.1" if web.host in ("0.0.0.0", "::", "") else web.host
    if web.certificate_file is None:
        return HTTPConnection(host, web.port, timeout=_ASK_TIMEOUT_S)
    unchecked = ssl.create_default_context()  # the certificate need not name the loopback address
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection(host, web.port, timeout=_ASK_TIMEOUT_S, context=unchecked)


def _run_checks(parts: Mapping[str, Callable[[], None]]) -> dict[str, str]:
    return {name: _run_check(check) for name, check in parts.items()}


def _run_check(check: Callable[[], None]) -> str:
    try:
        check()
    except (OSError, OutOfSpace, SQLAlchemyError, _Unhealthy):
        return "failed"
    return "ok"


def _check_database(readers: sessionmaker[Session], revision: str | None) -> None:
    with readers() as session:
        session.execute(text("SELECT count(*) FROM chain"))
        if session.scalar(text("SELECT version_num FROM alembic_version")) != revision:
            raise _Unhealthy("the database is of another version")


def _check_scheduler(sweep_health: SweepHealth) -> None:
    if late := sweep_health.list_late():
        raise _Unhealthy(f"{', '.join(late)}: no success for too long")


def _check_workers(sweep_health: SweepHealth) -> None:
    if not sweep_health.count_workers():
        raise _Unhealthy("no local worker runs")


def _check_spool(config: Config) -> None:
    if not os.access(config.spool_dir, os.W_OK | os.X_OK):
        raise PermissionError("the spool cannot be written")
    with spool.open_writer(config.spool_dir) as writer:
        writer.write(b"ready?")
        writer.finish()
