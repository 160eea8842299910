"""The role that each route of the web needs, in one table. A route without an entry is refused.

The table counts on a node with accounts only; without them, who has access may do everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response

from db.states import Role
from dicomnode.web import dicomweb, methods, pages, person
from dicomnode.web.access import OPEN_PATHS, PROVIDER_PATHS
from dicomnode.web.person import Person

__all__ = ["READING", "WRITING", "RoleNeeded", "check", "find_role", "refuse"]

_VIEWER, _OPERATOR, _ADMINISTRATOR = Role.VIEWER, Role.OPERATOR, Role.ADMINISTRATOR
_CHANNEL = f"{dicomweb.ROOT}/subscribers/{{ae_title}}"
_ROOTS = (dicomweb.ROOT, dicomweb.VIEW, dicomweb.REVIEW)

READING: Mapping[str, Role] = MappingProxyType(
    dict.fromkeys(
        (
            # pages
            "/", "/events", "/failures", "/hold", "/jobs", "/jobs/{id:row}", "/jobs/{id:row}/depth",
            "/jobs/{id:row}/pictures/{series_uid}", "/learning", "/learning/{id:row}", "/models", "/models/{name}",
            "/models/{name}/{picture}.png", "/peers", "/readings.csv", "/senders", "/studies/{uid}",
            "/studies/{uid}/reading", "/studies/{uid}/report.{kind}", "/studies/{uid}/series/{series_uid}/thumbnail",
            "/studies/{uid}/thumbnail", "/system", "/try", "/try/{uid}", "/try/{uid}/options", "/try/{uid}/outcome",
            "/viewer", "/viewer/{path:path}", "/worklist",
            # what the commands print with --json
            "/api/jobs", "/api/jobs/{id:row}", "/api/learning", "/api/learning/{id:row}", "/api/models",
            "/api/models/{name}", "/api/peers", "/api/status", "/api/studies", "/api/studies/{uid}",
            "/api/studies/{uid}/explain", "/api/studies/{uid}/ledger",
        ),
        _VIEWER,
    )
    | {_CHANNEL: _OPERATOR}  # what it sends is gone for the subscriber
)  # fmt: skip
"""GET and HEAD, by path. What else lies below a root of DICOMweb needs the role viewer."""

WRITING: Mapping[str, Role] = MappingProxyType(
    {
        "/": _VIEWER,  # a search for a patient, which no address contains
        "/logout": _VIEWER,
        "/destinations/{name}/resend": _OPERATOR,
        "/destinations/{name}/try": _OPERATOR,
        "/jobs/{id:row}/reading": _OPERATOR,
        "/jobs/{id:row}/{decision}": _OPERATOR,  # release, discard, retry, cancel
        "/peers/{name}/echo": _OPERATOR,
        "/quarantine/{id:row}/{decision}": _OPERATOR,
        "/studies/{uid}/close": _OPERATOR,
        "/studies/{uid}/route": _OPERATOR,
        "/try/nifti": _OPERATOR,
        "/try/{uid}/run": _OPERATOR,
        "/worklist/{id:row}/cancel": _OPERATOR,
        f"{dicomweb.ROOT}/studies": _OPERATOR,
        f"{dicomweb.ROOT}/studies/{{study}}": _OPERATOR,
        f"{dicomweb.ROOT}/workitems": _OPERATOR,
        f"{dicomweb.ROOT}/workitems/{{workitem}}": _OPERATOR,
        f"{dicomweb.ROOT}/workitems/{{workitem}}/cancelrequest": _OPERATOR,
        f"{dicomweb.ROOT}/workitems/{{workitem}}/cancelrequest/{{requester}}": _OPERATOR,
        f"{dicomweb.ROOT}/workitems/{{workitem}}/state": _OPERATOR,
        f"{dicomweb.ROOT}/workitems/{{workitem}}/subscribers/{{ae_title}}": _OPERATOR,
        f"{dicomweb.ROOT}/workitems/{{workitem}}/subscribers/{{ae_title}}/suspend": _OPERATOR,
        f"{dicomweb.ROOT}/workitems/{{workitem}}/state/{{requester}}": _OPERATOR,
        "/learning/{id:row}/deploy": _ADMINISTRATOR,
        "/learning/{id:row}/undo": _ADMINISTRATOR,
        "/models/end-shadow/{pipeline}": _ADMINISTRATOR,
        "/models/rollback/{pipeline}": _ADMINISTRATOR,
        "/models/{name}/deploy": _ADMINISTRATOR,
        "/try/{uid}/write": _ADMINISTRATOR,
    }
)
"""All other methods, by path."""


class RoleNeeded(Exception):
    """The person's role does not suffice; ``needed``: one that does, None where no role does."""

    def __init__(self, found: Person, needed: Role | None) -> None:
        super().__init__(f"this needs the role {needed or 'of nobody'}; {found.display_name} has the role {found.role}")
        self.found, self.needed = found, needed


async def check(request: HTTPConnection) -> None:
    """Check the role of the person who sends a request. Raises RoleNeeded.

    A WebSocket comes after a GET with its headers, which has passed (``ups_events.ChannelAccessMiddleware``).
    """
    if request.scope["type"] == "websocket":
        return
    route = request.scope["route"]
    if route.path in OPEN_PATHS | PROVIDER_PATHS:
        return
    found, needed = person.current(), find_role(route, request.scope["method"])
    if found is None:
        raise RuntimeError("a request without a person passed the middleware")
    if needed is None or not found.role.includes(needed):
        raise RoleNeeded(found, needed)


def find_role(route: APIRoute, method: str) -> Role | None:
    """Return the role that a request needs, or None where the table has no entry."""
    if route.name == methods.REFUSAL:
        return _VIEWER
    if method not in ("GET", "HEAD"):
        return WRITING.get(route.path)
    is_dicomweb = route.path.startswith(tuple(f"{root}/" for root in _ROOTS))
    return READING.get(route.path, _VIEWER if is_dicomweb else None)


def refuse(request: Request, error: Exception) -> Response:
    """Answer 403 with the role that is needed, as a page for a browser."""
    assert isinstance(error, RoleNeeded)
    if "text/html" in request.headers.get("accept", ""):
        return pages.render("refused.html", 403, needed=error.needed or "of nobody", person=error.found)
    return PlainTextResponse(f"{error}\n", 403)
