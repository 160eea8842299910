"""/events: notices of changes as server-sent events; the page then requests its new content.

One task polls the database for all listeners, about once a second, in a transaction that ends at once, and only while
there are listeners. A slow listener may miss notices, but no changes: the next notice covers all since its last one.
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
from dicomnode.web import study_progress

__all__ = ["MOST_LISTENERS", "ChangeFeed", "close_feed", "create_router"]

MOST_LISTENERS = 256
"""Greatest number of listeners; others get 503, and their pages reload instead."""
_POLL_S = 1.0
_KEEPALIVE_S = 15.0
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not buffer the stream

Snapshot = tuple[int, frozenset[str], dict[int, tuple[int, str, str]]]
"""Number of the last event, topics changed since the one before, and percent, step and text by running job."""


class ChangeFeed:
    """Feed of changes for all listeners; used on the server's event loop, except ``close``."""

    def __init__(self, readers: sessionmaker[Session], now: Callable[[], datetime]) -> None:
        self._readers, self._now = readers, now
        self._head: int | None = None
        self._round = 0
        self._changed: dict[str, int] = {}
        self._running: dict[int, tuple[int, str, str]] = {}
        self._typical: dict[str, float] = {}
        self._changed_event = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.listeners = 0

    def close(self) -> None:
        """End all streams, from any thread; no listener is accepted afterwards."""
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._notify)

    @property
    def is_open(self) -> bool:
        """True where one more listener is accepted."""
        return not self._closed and self.listeners < MOST_LISTENERS

    async def listen(self) -> AsyncIterator[bytes]:
        """Yield the messages for one listener until its client leaves or the node stops."""
        self._start()
        jobs: dict[int, tuple[int, str, str]] = {}
        while self._head is None and not self._closed:
            await self._changed_event.wait()
        last_round = self._round
        yield b"retry: 3000\n" + _encode_message("hello", {"seq": self._head})
        while not self._closed:
            changed_event = self._changed_event
            topics = sorted(topic for topic, at in self._changed.items() if at > last_round)
            last_round = self._round
            if topics:
                yield _encode_message("changed", {"topics": topics})
            if self._running != jobs:
                jobs = self._running
                yield _encode_message("progress", {str(id): facts for id, facts in jobs.items()})
            try:
                await asyncio.wait_for(changed_event.wait(), _KEEPALIVE_S)
            except TimeoutError:
                yield b": alive\n\n"

    def _start(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._loop = asyncio.get_running_loop()
            self._head = None  # earlier changes are in the pages that the listeners have just loaded
            self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while self.listeners and not self._closed:
            with contextlib.suppress(SQLAlchemyError):  # the next poll covers the changes until then
                self._apply(await run_in_threadpool(self._read_snapshot))
            await asyncio.sleep(_POLL_S)

    def _read_snapshot(self) -> Snapshot:
        with self._readers() as session:
            head = trail.read_head(session)
            changed = frozenset[str]()
            if self._head is not None and head != self._head:
                changed = trail.find_subjects_since(session, self._head)
            running = session.scalars(select(Job).where(Job.state == JobState.RUNNING)).all()
            if running and (changed or not self._typical):
                self._typical = overview.estimate_durations_s(session)
            at_work = [study_progress.describe_job_progress(job, self._typical, self._now()) for job in running]
        return head, changed, {each.job_id: (each.percent, each.step, each.text) for each in at_work}

    def _apply(self, snapshot: Snapshot) -> None:
        head, changed, running = snapshot
        first, self._head = self._head is None, head
        if first or changed or running != self._running:
            self._round += 1
            self._changed |= dict.fromkeys(changed, self._round)
            self._running = running
            self._notify()

    def _notify(self) -> None:
        changed_event, self._changed_event = self._changed_event, asyncio.Event()
        changed_event.set()


def create_router(feed: ChangeFeed) -> APIRouter:
    """Create the route /events."""
    routes = APIRouter()

    @routes.get("/events")
    async def events(request: Request) -> Response:
        request.app.state.change_feed = feed
        if not feed.is_open:
            return PlainTextResponse("too many listeners; try again later\n", 503, {"Retry-After": "30"})
        return _EventStream(feed)

    return routes


class _EventStream(StreamingResponse):
    """Stream of one listener, which is counted from its creation."""

    def __init__(self, feed: ChangeFeed) -> None:
        super().__init__(feed.listen(), media_type="text/event-stream", headers=_HEADERS)
        self._feed = feed
        feed.listeners += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.listeners -= 1


def close_feed(app: ASGIApp) -> None:
    """End the streams before the server stops: it would wait for them, and they never end by themselves."""
    feed: ChangeFeed | None = getattr(getattr(app, "state", None), "change_feed", None)
    if feed is not None:
        feed.close()


def _encode_message(event: str, data: dict[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
