"""/healthz: this process answers. /readyz: it can do its work.

Ready means: the database answers and is at this program's revision; the spool can be written, and there is space; where
a clock runs in this process, every sweep has succeeded lately; where it starts workers, one runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.responses import JSONResponse

from db import engine as engines
from db import migrations
from dicomnode.config import Config
from dicomnode.errors import OutOfSpace
from dicomnode.monitoring.sweep_health import SweepHealth
from dicomnode.storage import spool

__all__ = ["router"]


class _NotWell(Exception):
    """A part answers, and is not as it should be."""


def router(config: Config, sessions: sessionmaker[Session], sweep_health: SweepHealth) -> APIRouter:
    """Both answer without a token, and say nothing but what is well and what is not."""
    routes = APIRouter()
    readers = engines.readers(sessions.kw["bind"])
    revision = migrations.head()
    parts: dict[str, Callable[[], None]] = {
        "database": lambda: _ask_database(readers, revision),
        "spool": lambda: _write_to_spool(config),
        "disk": lambda: spool.check_space(config.spool_dir, config.spool),
    }
    if sweep_health.heartbeats():
        parts["clock"] = lambda: _look_at_clock(sweep_health)
    if sweep_health.expected_workers:
        parts["workers"] = lambda: _look_at_workers(sweep_health)

    @routes.get("/healthz")
    async def healthz() -> JSONResponse:  # on the event loop: it waits for no thread
        return JSONResponse({"status": "ok"})

    looking = ThreadPoolExecutor(1, "readyz")

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:  # on a thread of its own: those of the pages may all be busy
        found = await asyncio.get_running_loop().run_in_executor(looking, _looked, parts)
        ready = set(found.values()) == {"ok"}
        return JSONResponse({"status": "ok" if ready else "failed"} | found, 200 if ready else 503)

    return routes


def _looked(parts: Mapping[str, Callable[[], None]]) -> dict[str, str]:
    return {name: _well(look) for name, look in parts.items()}


def _well(look: Callable[[], None]) -> str:
    try:
        look()
    except (OSError, OutOfSpace, SQLAlchemyError, _NotWell):
        return "failed"
    return "ok"


def _ask_database(readers: sessionmaker[Session], revision: str | None) -> None:
    with readers() as session:
        session.execute(text("SELECT count(*) FROM chain"))
        if session.scalar(text("SELECT version_num FROM alembic_version")) != revision:
            raise _NotWell("the database is of another version")


def _look_at_clock(sweep_health: SweepHealth) -> None:
    if late := sweep_health.list_late():
        raise _NotWell(f"{', '.join(late)}: no success for too long")


def _look_at_workers(sweep_health: SweepHealth) -> None:
    if not sweep_health.count_workers():
        raise _NotWell("no local worker runs")


def _write_to_spool(config: Config) -> None:
    if not os.access(config.spool_dir, os.W_OK | os.X_OK):
        raise PermissionError("the spool cannot be written")
    with spool.open_writer(config.spool_dir) as writer:
        writer.write(b"ready?")
        writer.finish()
