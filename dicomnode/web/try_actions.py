"""The forms of /try that change something: a trial on a study, and the addition of a route to node.toml.

What leaves the node or changes its configuration is shown once more and needs a confirmation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import HTMLResponse, RedirectResponse, Response

from db import studies
from db.states import Role
from dicomnode.config.route_blocks import RouteBlock
from dicomnode.errors import NodeBusy, NodeError, NotAllowed
from dicomnode.execution import option_process
from dicomnode.routing import match_counts, route_addition, trials
from dicomnode.web import person
from dicomnode.web.context import WebContext
from dicomnode.web.forms import Form, read_line
from dicomnode.web.holdings import require_uid
from dicomnode.web.try_draft import Draft

__all__ = ["add_routes"]

_KEY = "may_write_routes = true under [web]"


@dataclass(frozen=True)
class _Request:
    """A submitted form: the draft, who asks and why, and whether the consequence was confirmed."""

    uid: str
    form: dict[str, str]
    draft: Draft
    who: str
    reason: str

    @property
    def back_path(self) -> str:
        """The page with the draft as it was submitted."""
        return f"/try/{self.uid}?{urlencode(self.draft.to_fields())}"

    @property
    def is_confirmed(self) -> bool:
        """True where the page that names the consequence was confirmed."""
        return self.form.get("confirm") == "1"


_Action = Callable[[WebContext, _Request, RouteBlock], Response]


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes that the forms are sent to."""

    @routes.post("/try/{uid}/run")
    def run(uid: str, form: Form) -> Response:
        return _answer(context, _read_request(uid, form), _run)

    @routes.post("/try/{uid}/write")
    def write(uid: str, form: Form) -> Response:
        return _answer(context, _read_request(uid, form), _write)


def _read_request(uid: str, form: dict[str, str]) -> _Request:
    who, reason = read_line(form, "who"), read_line(form, "reason")
    return _Request(require_uid(uid), form, Draft.from_fields(form), who, reason)


def _answer(context: WebContext, request: _Request, act: _Action) -> Response:
    """Act, or show a page with the reason of a refusal."""
    if not request.who or not request.reason:
        return context.error_page(400, "This needs your initials and a reason.", request.back_path)
    try:
        block = _check(context, request)
        return act(context, request, block)
    except NotAllowed as error:
        return context.error_page(409, str(error), request.back_path)
    except NodeBusy as error:
        return context.error_page(503, str(error), request.back_path)
    except NodeError as error:
        return context.error_page(400, str(error), request.back_path)


def _check(context: WebContext, request: _Request) -> RouteBlock:
    """Return the block of the draft when its conditions end in time and its pipeline takes its model and options."""
    block = request.draft.make_block()
    route = block.route
    match_counts.examine(route, request.uid, context.config.database_url)
    option_process.check_route(route, context.config)
    return block


def _run(context: WebContext, request: _Request, block: RouteBlock) -> Response:
    """Start a trial; with deliveries only after the page that names their destinations."""
    delivers = request.form.get("deliver") == "1"
    if delivers and not block.route.destinations:
        raise NotAllowed("deliver the results where? Choose a destination, or try without delivery")
    if delivers and not person.has_role(Role.ADMINISTRATOR):
        with context.readers() as session:
            trials.check_delivery(session, block.route, context.config)
    if delivers and not request.is_confirmed:
        return _confirm(context, request, "run", block, "")
    route = block.route if delivers else block.route.model_copy(update={"destinations": ()})
    with context.sessions.begin() as session:
        found = trials.start_trial(
            session, request.uid, route, context.config, who=request.who, reason=request.reason, now=context.now()
        )
    number, count = found.job_ids[0], len(found.job_ids)
    if count > 1:
        return RedirectResponse(f"/studies/{request.uid}?done=trials-{count}", 303)
    return RedirectResponse(f"/jobs/{number}?done={'trial' if found.is_new else 'tried'}-{number}", 303)


def _write(context: WebContext, request: _Request, block: RouteBlock) -> Response:
    """Show the change of node.toml; write it when it was confirmed and the file is still the one that was shown."""
    if not context.config.web.may_write_routes:
        raise NotAllowed(f"the pages may not change {context.config.path.name}: copy the block into it, or set {_KEY}")
    who, reason, now = request.who, request.reason, context.now()
    addition = route_addition.plan(context.config.path, block, who=who, reason=reason, now=now)
    if not request.is_confirmed:
        return _confirm(context, request, "write", block, addition.diff, before=addition.sha256_before)
    addition = replace(addition, sha256_before=request.form.get("before", ""))
    kept_path = route_addition.write(context.sessions, addition, block, who=who, reason=reason, now=now)
    with context.readers() as session:
        return context.page(
            session, "try_written.html", file_name=context.config.path.name, kept_name=kept_path.name,
            route=block.route, back_path=request.back_path,
        )  # fmt: skip


def _confirm(
    context: WebContext, request: _Request, action: str, block: RouteBlock, diff: str, *, before: str = ""
) -> HTMLResponse:
    """Show what a form will do, with a button that submits it again."""
    fields = request.draft.to_fields() | {"who": request.who, "reason": request.reason, "before": before}
    fields |= {"deliver": request.form.get("deliver", ""), "confirm": "1"}
    with context.readers() as session:
        return context.page(
            session, "try_confirm.html", action=action, route=block.route, diff=diff, uid=request.uid,
            study=studies.find_by_uid(session, request.uid), fields=fields, file_name=context.config.path.name,
            back_path=request.back_path,
        )  # fmt: skip
