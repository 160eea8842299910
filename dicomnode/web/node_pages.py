"""Pages on the node itself: /peers, with C-ECHO on request, and /system, with its state and events."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse

from db import deliveries, destinations, trail
from db.models import Delivery, Event, Quarantine, Study
from db.states import DeliveryState, QuarantineState
from dicomnode.monitoring import status
from dicomnode.web import decisions, template_filters
from dicomnode.web.context import LARGEST_NUMBER, WebContext, flash_message

__all__ = ["add_routes"]

_EVENTS_PER_PAGE = 300
_MOST_QUARANTINED = 50
Before = Annotated[int | None, Query(ge=0, le=LARGEST_NUMBER)]


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes of the pages."""

    @routes.get("/peers")
    def peers(done: str = "") -> HTMLResponse:
        with context.readers() as session:
            return _peers_page(session, context, flash_message(done), {})

    @routes.post("/peers/{name}/echo")
    def echo(name: str) -> HTMLResponse:
        if name not in {peer.name for peer in context.config.peers}:
            return context.error_page(404, "No peer with this name is configured in node.toml.", "/peers")
        answer = decisions.echo_peer(context, name)
        with context.readers() as session:
            return _peers_page(session, context, "", {name: answer})

    @routes.get("/system")
    def system(before: Before = None, done: str = "") -> HTMLResponse:
        with context.readers() as session:
            return _system_page(session, context, before, flash_message(done))


def _peers_page(
    session: Session, context: WebContext, message: str, echoed: dict[str, tuple[bool, str]]
) -> HTMLResponse:
    counts = deliveries.OUTBOX.count_by_state(session)
    waiting: Any = select(Delivery.destination, func.min(Delivery.created_at)).group_by(Delivery.destination)
    oldest = dict(session.execute(waiting.where(Delivery.state == DeliveryState.WAITING)).all())
    rows: list[dict[str, Any]] = [
        {
            "peer": peer,
            "counts": counts.get(peer.name, {}),
            "oldest": oldest.get(peer.name),
            "breaker": destinations.load_breaker(session, peer.name),
            "routes": [route.name for route in context.config.routes if peer.name in route.destinations],
            "echo": echoed.get(peer.name),
        }
        for peer in context.config.peers
    ]
    return context.page(session, "peers.html", rows=rows, message=message)


def _system_page(session: Session, context: WebContext, before: int | None, message: str) -> HTMLResponse:
    events = trail.list_latest(session, before=before, limit=_EVENTS_PER_PAGE)
    with_study = select(Quarantine, Study).outerjoin(Study, Study.study_uid == Quarantine.study_uid)
    measured = status.collect_status(session, context.config, now=context.now())
    quarantined = with_study.where(Quarantine.state == QuarantineState.KEPT).order_by(Quarantine.id.desc())
    return context.page(
        session, "system.html", measured=measured, studies=status.count_shown_states(measured),
        quarantined=session.execute(quarantined.limit(_MOST_QUARANTINED)).all(), message=message,
        lines=[(group[0].at, _describe_group(group)) for group in _group_arrivals(events)], before=before,
        older=events[-1].seq if len(events) == _EVENTS_PER_PAGE else None, spool=context.config.spool,
    )  # fmt: skip


def _group_arrivals(events: Sequence[Event]) -> list[list[Event]]:
    """Group consecutive arrivals from one sender; every other event is a group of its own."""
    groups = groupby(events, lambda each: each.detail.get("sender") if each.subject == "instances" else each.seq)
    return [list(group) for _, group in groups]


def _describe_group(group: list[Event]) -> str:
    if len(group) == 1:
        return template_filters.describe_event(group[0])
    return f"{template_filters.format_number(len(group))} instances received from {group[0].detail.get('sender', '')}"
