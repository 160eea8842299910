"""The node itself: /peers, with an echo on request; /system, what goes on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse

from db import deliveries, destinations, trail
from db.models import Delivery, Event, Quarantine
from db.states import DeliveryState, QuarantineState
from dicomnode.monitoring import status
from dicomnode.web import decisions, words
from dicomnode.web.desk import LARGEST_NUMBER, Desk, told

__all__ = ["add"]

_EVENTS = 300
_QUARANTINED = 50
Before = Annotated[int | None, Query(ge=0, le=LARGEST_NUMBER)]


def add(routes: APIRouter, desk: Desk) -> None:
    """The pages."""

    @routes.get("/peers")
    def peers(done: str = "") -> HTMLResponse:
        with desk.readers() as session:
            return _peers(session, desk, told(done), {})

    @routes.post("/peers/{name}/echo")
    def echo(name: str) -> HTMLResponse:
        if name not in {peer.name for peer in desk.config.peers}:
            return desk.trouble(404, "No peer of that name is in node.toml.", "/peers")
        answer = decisions.echo(desk, name)
        with desk.readers() as session:
            return _peers(session, desk, "", {name: answer})

    @routes.get("/system")
    def system(before: Before = None) -> HTMLResponse:
        with desk.readers() as session:
            return _system(session, desk, before)


def _peers(session: Session, desk: Desk, told: str, echoed: dict[str, tuple[bool, str]]) -> HTMLResponse:
    counts = deliveries.OUTBOX.count_by_state(session)
    waiting: Any = select(Delivery.destination, func.min(Delivery.created_at)).group_by(Delivery.destination)
    oldest = dict(session.execute(waiting.where(Delivery.state == DeliveryState.WAITING)).all())
    shown: list[dict[str, Any]] = [
        {
            "peer": peer,
            "counts": counts.get(peer.name, {}),
            "oldest": oldest.get(peer.name),
            "breaker": destinations.load_breaker(session, peer.name),
            "routes": [route.name for route in desk.config.routes if peer.name in route.destinations],
            "echo": echoed.get(peer.name),
        }
        for peer in desk.config.peers
    ]
    return desk.page(session, "peers.html", shown=shown, told=told)


def _system(session: Session, desk: Desk, before: int | None) -> HTMLResponse:
    events = trail.list_latest(session, before=before, limit=_EVENTS)
    kept = select(Quarantine).where(Quarantine.state == QuarantineState.KEPT).order_by(Quarantine.id.desc())
    return desk.page(
        session, "system.html", measured=status.collect_status(session, desk.config, now=desk.now()),
        quarantined=session.scalars(kept.limit(_QUARANTINED)).all(),
        told=[(group[0].at, _in_a_line(group)) for group in _together(events)], before=before,
        older=events[-1].seq if len(events) == _EVENTS else None, spool=desk.config.spool,
    )  # fmt: skip


def _together(events: Sequence[Event]) -> list[list[Event]]:
    """Each alone, but arrivals from one sender that followed one another."""
    groups = groupby(events, lambda each: each.detail.get("sender") if each.subject == "instances" else each.seq)
    return [list(group) for _, group in groups]


def _in_a_line(group: list[Event]) -> str:
    if len(group) == 1:
        return words.happened(group[0])
    return f"{words.number(len(group))} instances received from {group[0].detail.get('sender', '')}"
