"""What people decide on pages: release, discard, retry, cancel, close. By POST from our own pages only (access.Guard).

The audit trail says that it was done at the dashboard, with the initials and the reason that were given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from db import deliveries, jobs
from db.models import Delivery, Job
from db.states import DeliveryState, InvalidTransition
from dicomnode.dimse import peers
from dicomnode.errors import NodeError, NotAllowed, NotFound
from dicomnode.routing import completion
from dicomnode.web.desk import Desk, back, checked_uid, read_form
from dicomnode.web.words import FILTERS

__all__ = ["add", "echo"]

_DECISIONS: dict[str, Callable[..., None]] = {
    "release": jobs.release,
    "discard": jobs.discard,
    "retry": jobs.retry,
    "cancel": jobs.cancel,
}
_PAST = {"release": "released", "discard": "discarded", "retry": "run again", "cancel": "cancelled"}
_LONGEST = {"who": 40, "reason": 300}

Form = Annotated[dict[str, str], Depends(read_form)]


def add(routes: APIRouter, desk: Desk) -> None:
    """The addresses that forms are sent to."""

    @routes.post("/jobs/{id:row}/{decision}")
    def decide(id: int, decision: str, form: Form) -> Response:
        there = back(form, f"/jobs/{id}")
        if decision not in _DECISIONS:
            return desk.trouble(404, "There is no such decision.", there)
        return _tried(desk, there, f"{decision}-{id}", lambda session: _decide(session, desk, id, decision, form))

    @routes.post("/destinations/{name}/resend")
    def resend(name: str, form: Form) -> Response:
        there = back(form, "/peers")
        return _tried(desk, there, "resend", lambda session: _resend(session, desk, name, form))

    @routes.post("/studies/{uid}/close")
    def close(uid: str, form: Form) -> Response:
        there = f"/studies/{checked_uid(uid)}"
        return _tried(desk, there, "close-1", lambda session: completion.close_study(session, uid, now=desk.now()))


def echo(desk: Desk, name: str) -> tuple[bool, str]:
    """C-ECHO now: whether the peer answers, and what there is to say. Raises ConfigError for a name nobody has."""
    peer, node = desk.config.find_peer(name), desk.config.node
    try:
        took_s = peers.echo(peer, calling_aet=node.ae_title, timeout_s=peers.ECHO_TIMEOUT_S, tls=desk.config.node.tls)
    except NodeError as error:
        return False, str(error)
    return True, f"answered in {took_s * 1000:.0f} ms"


def _tried(desk: Desk, there: str, done: str, decide: Callable[[Session], Any]) -> Response:
    """Done in one transaction, then back to the page; or a page that says why not."""
    try:
        with desk.sessions.begin() as session:
            count = decide(session)
    except NotFound as error:
        return desk.trouble(404, str(error), there)
    except NotAllowed as error:
        return desk.trouble(409, str(error), there)
    done = f"{done}-{count}" if isinstance(count, int) else done
    return RedirectResponse(f"{there}?done={done}", 303)


def _decide(session: Session, desk: Desk, id: int, decision: str, form: dict[str, str]) -> None:
    job = session.get(Job, id, with_for_update=True)
    if job is None:
        raise NotFound(f"There is no job {id}.")
    try:
        _DECISIONS[decision](session, job, reason=_said(_PAST[decision], form), now=desk.now())
    except InvalidTransition:
        state = FILTERS["state"](job.state)
        raise NotAllowed(f"Job {id} is {state} and cannot be {_PAST[decision]}: somebody was first.") from None


def _resend(session: Session, desk: Desk, name: str, form: dict[str, str]) -> int:
    mine = (Delivery.destination == name, Delivery.state == DeliveryState.GIVEN_UP)
    rows = session.scalars(select(Delivery).where(*mine).order_by(Delivery.id).with_for_update()).all()
    if not rows:
        raise NotAllowed(f"Nothing that was given up waits for {name}.")
    for row in rows:
        deliveries.retry(session, row, reason=_said("retried", form), now=desk.now())
    return len(rows)


def _said(what: str, form: dict[str, str]) -> str:
    """For the audit trail, on one line."""
    who, why = (" ".join(form.get(name, "").split())[:most] for name, most in _LONGEST.items())
    return f"{what} at the dashboard{f' by {who}' if who else ''}{f': {why}' if why else ''}"
