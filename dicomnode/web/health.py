"""/healthz: this process answers. /readyz: it can do its work."""

from __future__ import annotations

import os
from collections.abc import Callable

from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.responses import JSONResponse

from db import engine as engines
from dicomnode import spool
from dicomnode.config import Config
from dicomnode.errors import OutOfSpace

__all__ = ["router"]


def router(config: Config, sessions: sessionmaker[Session]) -> APIRouter:
    """Both answer without a token, and say nothing but what is well and what is not."""
    routes = APIRouter()
    readers = engines.readers(sessions.kw["bind"])
    parts: dict[str, Callable[[], None]] = {
        "database": lambda: _ask_database(readers),
        "spool": lambda: _write_to_spool(config),
        "disk": lambda: spool.check_space(config.spool_dir, config.spool),
    }

    @routes.get("/healthz")
    def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz")
    def readyz() -> JSONResponse:
        found = {name: _well(look) for name, look in parts.items()}
        ready = set(found.values()) == {"ok"}
        return JSONResponse({"status": "ok" if ready else "failed"} | found, 200 if ready else 503)

    return routes


def _well(look: Callable[[], None]) -> str:
    try:
        look()
    except (OSError, OutOfSpace, SQLAlchemyError):
        return "failed"
    return "ok"


def _ask_database(readers: sessionmaker[Session]) -> None:
    with readers() as session:
        session.execute(text("SELECT count(*) FROM chain"))


def _write_to_spool(config: Config) -> None:
    if not os.access(config.spool_dir, os.W_OK | os.X_OK):
        raise PermissionError("the spool cannot be written")
    with spool.open_writer(config.spool_dir) as writer:
        writer.write(b"ready?")
        writer.finish()
