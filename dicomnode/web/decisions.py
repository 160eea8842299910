"""Decisions at the dashboard: release, discard, retry, cancel, close; by POST from the node's own pages only.

``access.AccessMiddleware`` refuses other origins. The audit trail names the dashboard, with the initials and the
reason from the form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from db import deliveries, destinations, jobs
from db.models import Delivery, Job
from db.states import DeliveryState, InvalidTransition
from dicomnode.dimse import peers
from dicomnode.errors import ConfigError, NodeError, NotAllowed, NotFound
from dicomnode.ingest import quarantined
from dicomnode.routing import completion, rerouting
from dicomnode.web.context import WebContext, return_path
from dicomnode.web.forms import Form, read_line
from dicomnode.web.holdings import require_uid
from dicomnode.web.template_filters import FILTERS

__all__ = ["UNSIGNED", "add_routes", "echo_peer"]

_DECISIONS: dict[str, Callable[..., None]] = {
    "release": jobs.release,
    "discard": jobs.discard,
    "retry": jobs.retry,
    "cancel": jobs.cancel,
}
_ON_CONTENT = ("release", "discard")
"""Decisions on what a patient's study holds: they need a name and a reason."""
UNSIGNED = "A decision needs your initials and a reason."
_PAST_TENSE = {"release": "released", "discard": "discarded", "retry": "run again", "cancel": "cancelled"}


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes that the forms are sent to."""
    _add_job_routes(routes, context)
    _add_destination_routes(routes, context)
    _add_quarantine_routes(routes, context)
    _add_study_routes(routes, context)


def _add_job_routes(routes: APIRouter, context: WebContext) -> None:
    @routes.post("/jobs/{id:row}/{decision}")
    def decide(id: int, decision: str, form: Form) -> Response:
        back_path = return_path(form, f"/jobs/{id}")
        if decision not in _DECISIONS:
            return context.error_page(404, "This decision does not exist.", back_path)
        if decision in _ON_CONTENT and not _is_signed(form):
            return context.error_page(400, UNSIGNED, back_path)
        return _commit_or_explain(
            context, back_path, f"{decision}-{id}", lambda session: _decide(session, context, id, decision, form)
        )


def _add_destination_routes(routes: APIRouter, context: WebContext) -> None:
    @routes.post("/destinations/{name}/resend")
    def resend(name: str, form: Form) -> Response:
        back_path = return_path(form, "/peers")
        return _commit_or_explain(context, back_path, "resend", lambda session: _resend(session, context, name, form))

    @routes.post("/destinations/{name}/try")
    def try_now(name: str, form: Form) -> Response:
        back_path = return_path(form, "/peers")
        return _commit_or_explain(context, back_path, "try", lambda session: _try_now(session, context, name, form))


def _add_quarantine_routes(routes: APIRouter, context: WebContext) -> None:
    @routes.post("/quarantine/{id:row}/{decision}")
    def decide_quarantined(id: int, decision: str, form: Form) -> Response:
        if decision not in ("release", "discard"):
            return context.error_page(404, "This decision does not exist.", "/system")
        if not _is_signed(form):
            return context.error_page(400, UNSIGNED, "/system")
        done = "released" if decision == "release" else "discarded"
        reason = _audit_reason(done, form)

        def decide(session: Session) -> None:
            if decision == "release":
                quarantined.release(session, context.config, id, reason=reason, now=context.now())
            else:
                quarantined.discard(session, context.config, id, reason=reason, now=context.now())

        return _commit_or_explain(context, "/system", f"{done}-{id}", decide)


def _add_study_routes(routes: APIRouter, context: WebContext) -> None:
    @routes.post("/studies/{uid}/close")
    def close(uid: str, form: Form) -> Response:
        back_path = f"/studies/{require_uid(uid)}"
        return _commit_or_explain(
            context, back_path, "close-1", lambda session: completion.close_study(session, uid, now=context.now())
        )

    @routes.post("/studies/{uid}/route")
    def route(uid: str, form: Form) -> Response:
        back_path = f"/studies/{require_uid(uid)}"
        return _commit_or_explain(
            context, back_path, "route-1",
            lambda session: rerouting.route_again(
                session, uid, context.config, reason=_audit_reason("routed again", form), now=context.now()
            ),
        )  # fmt: skip


def echo_peer(context: WebContext, name: str) -> tuple[bool, str]:
    """Send a C-ECHO to a peer. Returns success and a message. Raises ConfigError for an unknown peer."""
    peer, node = context.config.find_peer(name), context.config.node
    try:
        took_s = peers.echo(
            peer, calling_aet=node.ae_title, timeout_s=peers.ECHO_TIMEOUT_S, tls=context.config.node.tls
        )
    except NodeError as error:
        return False, str(error)
    return True, f"answered in {took_s * 1000:.0f} ms"


def _commit_or_explain(context: WebContext, back_path: str, done: str, decide: Callable[[Session], Any]) -> Response:
    """Commit a decision and return to the page, or show a page with the reason of a refusal."""
    try:
        with context.sessions.begin() as session:
            count = decide(session)
    except NotFound as error:
        return context.error_page(404, str(error), back_path)
    except NotAllowed as error:
        return context.error_page(409, str(error), back_path)
    except ConfigError as error:
        return context.error_page(404, str(error), back_path)
    done = f"{done}-{count}" if isinstance(count, int) else done
    return RedirectResponse(f"{back_path}?done={done}", 303)


def _decide(session: Session, context: WebContext, id: int, decision: str, form: dict[str, str]) -> None:
    job = session.get(Job, id, with_for_update=True)
    if job is None:
        raise NotFound(f"There is no job {id}.")
    try:
        _DECISIONS[decision](session, job, reason=_audit_reason(_PAST_TENSE[decision], form), now=context.now())
    except InvalidTransition:
        state = FILTERS["state"](job.state)
        raise NotAllowed(f"Job {id} is {state} and cannot be {_PAST_TENSE[decision]}: it was decided before.") from None


def _resend(session: Session, context: WebContext, name: str, form: dict[str, str]) -> int:
    given_up = (Delivery.destination == name, Delivery.state == DeliveryState.GIVEN_UP)
    rows = session.scalars(select(Delivery).where(*given_up).order_by(Delivery.id).with_for_update()).all()
    if not rows:
        raise NotAllowed(f"No delivery to {name} is given up.")
    for row in rows:
        deliveries.retry(session, row, reason=_audit_reason("retried", form), now=context.now())
    return len(rows)


def _try_now(session: Session, context: WebContext, name: str, form: dict[str, str]) -> int:
    context.config.find_peer(name)
    return destinations.try_now(session, name, reason=_audit_reason("tried again", form), now=context.now())


def _is_signed(form: dict[str, str]) -> bool:
    return bool(read_line(form, "who") and read_line(form, "reason"))


def _audit_reason(decision: str, form: dict[str, str]) -> str:
    """Return the reason for the audit trail, on one line."""
    who, why = read_line(form, "who"), read_line(form, "reason")
    return f"{decision} at the dashboard{f' by {who}' if who else ''}{f': {why}' if why else ''}"
