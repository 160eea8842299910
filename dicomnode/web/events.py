"""/events: hints that something has changed, as server-sent events; what it is, the page then asks for as ever.

One watcher looks at the database for all listeners, about once a second and in a transaction that ends at once, and
only while somebody listens. Who is slow misses hints, never news: the next hint says everything since the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from db import overview, trail
from db.models import Job
from db.states import JobState
from dicomnode.web import journey

__all__ = ["LISTENERS", "News", "close", "router"]

LISTENERS = 256
"""So many listen at once; others are told to come back, and their pages reload instead."""
_LOOK_S = 1.0
_ALIVE_S = 15.0
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may hold it back

Seen = tuple[int, frozenset[str], dict[int, tuple[int, str, str]]]
"""The last event's number, what has changed since the one before, and per running job percent, step and words."""


class News:
    """What has changed, for all who listen; used on the server's event loop, but for ``close``."""

    def __init__(self, readers: sessionmaker[Session], now: Callable[[], datetime]) -> None:
        self._readers, self._now = readers, now
        self._head: int | None = None
        self._round = 0
        self._changed: dict[str, int] = {}
        self._running: dict[int, tuple[int, str, str]] = {}
        self._typical: dict[str, float] = {}
        self._told = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.listeners = 0

    def close(self) -> None:
        """Let every listener go, from whatever thread; there are no others after it."""
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell)

    @property
    def is_open(self) -> bool:
        """Whether one more may listen."""
        return not self._closed and self.listeners < LISTENERS

    async def listen(self) -> AsyncIterator[bytes]:
        """Until the client goes or the node stops."""
        self._start()
        jobs: dict[int, tuple[int, str, str]] = {}
        while self._head is None and not self._closed:
            await self._told.wait()
        heard = self._round
        yield b"retry: 3000\n" + _message("hello", {"seq": self._head})
        while not self._closed:
            told = self._told
            topics = sorted(topic for topic, at in self._changed.items() if at > heard)
            heard = self._round
            if topics:
                yield _message("changed", {"topics": topics})
            if self._running != jobs:
                jobs = self._running
                yield _message("progress", {str(id): facts for id, facts in jobs.items()})
            try:
                await asyncio.wait_for(told.wait(), _ALIVE_S)
            except TimeoutError:
                yield b": alive\n\n"

    def _start(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._loop = asyncio.get_running_loop()
            self._head = None  # what happened while nobody listened is in the pages that are asked for now
            self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while self.listeners and not self._closed:
            with contextlib.suppress(SQLAlchemyError):  # it is away: what is missed now is told when it is back
                self._note(await run_in_threadpool(self._look))
            await asyncio.sleep(_LOOK_S)

    def _look(self) -> Seen:
        with self._readers() as session:
            head = trail.read_head(session)
            changed = frozenset[str]()
            if self._head is not None and head != self._head:
                changed = trail.find_subjects_since(session, self._head)
            running = session.scalars(select(Job).where(Job.state == JobState.RUNNING)).all()
            if running and (changed or not self._typical):
                self._typical = overview.estimate_durations_s(session)
            at_work = [journey.running(job, self._typical, self._now()) for job in running]
        return head, changed, {each.job_id: (each.percent, each.step, each.words) for each in at_work}

    def _note(self, seen: Seen) -> None:
        head, changed, running = seen
        first, self._head = self._head is None, head
        if first or changed or running != self._running:
            self._round += 1
            self._changed |= dict.fromkeys(changed, self._round)
            self._running = running
            self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, asyncio.Event()
        told.set()


def router(news: News) -> APIRouter:
    """/events."""
    routes = APIRouter()

    @routes.get("/events")
    async def events(request: Request) -> Response:
        request.app.state.news = news
        if not news.is_open:
            return PlainTextResponse("too many listen already\n", 503, {"Retry-After": "30"})
        return _Listening(news)

    return routes


class _Listening(StreamingResponse):
    """One listener, counted before anything is waited for."""

    def __init__(self, news: News) -> None:
        super().__init__(news.listen(), media_type="text/event-stream", headers=_HEADERS)
        self._news = news
        news.listeners += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._news.listeners -= 1


def close(app: ASGIApp) -> None:
    """Before the server stops: streams never end by themselves, and it would wait for them."""
    news: News | None = getattr(getattr(app, "state", None), "news", None)
    if news is not None:
        news.close()


def _message(event: str, data: dict[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
