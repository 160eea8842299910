"""/worklist: the workitems, their progress, and a request to cancel those that are open."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, RedirectResponse, Response

from db import workitems
from db.models import Workitem
from db.states import WorkitemState
from dicomnode.errors import NotFound, WorkitemRefused
from dicomnode.web.context import WebContext, flash_message, paginate, parse_page_number
from dicomnode.web.forms import Form, read_line
from dicomnode.worklist import entries

__all__ = ["add_routes"]

_PER_PAGE = 50
_PATH = "/worklist"


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the page and the route that its forms are sent to."""

    @routes.get("/worklist")
    def worklist(state: str = "", page: str = "1", done: str = "") -> HTMLResponse:
        selected = WorkitemState(state) if state in list(WorkitemState) else None
        with context.readers() as session:
            return _worklist_page(session, context, selected, parse_page_number(page), flash_message(done))

    @routes.post("/worklist/{id:row}/cancel")
    def cancel(id: int, form: Form) -> Response:
        try:
            with context.sessions.begin() as session:
                state = _cancel(session, context, id, form)
        except NotFound as error:
            return context.error_page(404, str(error), _PATH)
        except WorkitemRefused as error:
            return context.error_page(409, str(error), _PATH)
        done = "workitemcanceled" if state is WorkitemState.CANCELED else "workitemasked"
        return RedirectResponse(f"{_PATH}?done={done}", 303)


def _worklist_page(
    session: Session, context: WebContext, state: WorkitemState | None, page: int, message: str
) -> HTMLResponse:
    counts = workitems.count_by_state(session)
    total = sum(counts.values()) if state is None else counts.get(state, 0)
    page, pages = paginate(total, page, _PER_PAGE)
    return context.page(
        session, "worklist.html", rows=entries.list_entries(session, state, limit=_PER_PAGE,
        offset=(page - 1) * _PER_PAGE), counts=counts, states=list(WorkitemState), state=state, page=page, pages=pages,
        message=message, is_enabled=context.config.worklist.enabled,
    )  # fmt: skip


def _cancel(session: Session, context: WebContext, id: int, form: dict[str, str]) -> WorkitemState:
    row = session.get(Workitem, id)
    if row is None:
        raise NotFound("This workitem does not exist.")
    who = read_line(form, "who") or "the dashboard"
    return entries.cancel(session, row.uid, reason=read_line(form, "reason"), who=who, now=context.now()).state
