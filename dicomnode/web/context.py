"""The context of the dashboard's pages: configuration, sessions, clock, and the frame around each page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session, sessionmaker
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.responses import HTMLResponse

from db import deliveries, destinations, overview, trail
from db import engine as engines
from db.states import DeliveryState
from dicomnode.config import Config
from dicomnode.monitoring.refused_callers import RefusedCallers
from dicomnode.results import label
from dicomnode.web import pages

__all__ = [
    "LARGEST_NUMBER",
    "WebContext",
    "flash_message",
    "parse_page_number",
    "return_path",
]

LARGEST_NUMBER = 2**63 - 1
"""Greatest number of a row that databases accept."""
_RETURN_PATHS = re.compile(
    r"/|/(?:hold|failures|peers|senders|models|system|try|jobs(?:/\d+)?|(?:studies|try)/[0-9.]{1,64})"
)
_FLASH_MESSAGES = {
    "release": "Job {}: its results are released for delivery.",
    "discard": "Job {}: its results are discarded and not delivered.",
    "retry": "Job {}: runs again.",
    "cancel": "Job {}: cancelled.",
    "deployed": "Deployed: in use from the next study on.",
    "rollback": "Rolled back: in use from the next study on, and for waiting jobs.",
    "released": "Quarantine {}: accepted as an instance.",
    "discarded": "Quarantine {}: discarded.",
    "shadow": "The shadow version is ended.",
    "route": "The study is offered to the routes again.",
    "accepted": "Job {}: accepted and recorded here.",
    "rejected": "Job {}: rejected and recorded here.",
    "acceptedsent": "Job {}: accepted; a note goes to the destinations that take Key Objects.",
    "rejectedsent": "Job {}: rejected; a note goes to the destinations that take Key Objects.",
    "acceptedunnoted": "Job {}: accepted and recorded here; no note could be written. Send the decision again.",
    "rejectedunnoted": "Job {}: rejected and recorded here; no note could be written. Send the decision again.",
    "read": "Job {}: this decision was recorded before.",
    "learned": "Deployed: the new version is in use from the next study on.",
    "unlearned": "Undone: the version before is in use from the next study on, and for waiting jobs.",
    "close": "The study is now treated as complete.",
    "workitemcanceled": "The workitem is canceled.",
    "workitemasked": "The performer of the workitem is asked to cancel it.",
    "trial": "Job {}: a trial, which waits for a worker.",
    "trials": "The trial has {} jobs, one for each series.",
    "tried": "Job {}: this trial was started before.",
}
_COUNTED_MESSAGES = {
    "resend": (
        "No delivery was given up: there is none to try again.",
        "1 delivery will be tried again.",
        "{} deliveries will be tried again.",
    ),
    "try": (
        "Nothing is tried now: no delivery waits for this destination.",
        "1 delivery is tried now.",
        "{} deliveries are tried now.",
    ),
}
"""Messages for none, one and several."""
_DONE_QUERY = re.compile(r"([a-z]+)(?:-(\d{1,18}))?")


class _RowNumber(IntegerConvertor):
    """Convertor for ``{id:row}`` in a path: the number of a row, of no more digits than databases accept."""

    regex = "[0-9]{1,18}"


register_url_convertor("row", _RowNumber())


@dataclass(frozen=True)
class WebContext:
    """Configuration, sessions that write, the clock ``now``, and the callers that this process refused."""

    config: Config
    sessions: sessionmaker[Session]
    now: Callable[[], datetime]
    refused_callers: RefusedCallers = field(default_factory=RefusedCallers)

    @property
    def readers(self) -> sessionmaker[Session]:
        """Read-only sessions, which never make a writer wait."""
        return engines.readers(self.sessions.kw["bind"])

    def page(self, session: Session, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Render a page with its frame."""
        frame = {
            "now": self.now(),
            "mask": self.config.web.mask_names,
            "nav": overview.count_needing_attention(session),
            "unreachable": self._list_unreachable(session),
            "seq": trail.read_head(session),
            "ae_title": self.config.node.ae_title,
            "has_worklist": self.config.worklist.enabled,
            "asks_for_token": self.config.web.token_file is not None,
            "message": "",
            "marks": label.TEXT,
        }
        return pages.render(template, status, **(frame | values))

    def _list_unreachable(self, session: Session) -> list[dict[str, Any]]:
        """Return the destinations that did not answer the last attempt, with the reason and what waits for them."""
        found = []
        for name in dict.fromkeys(name for route in self.config.routes for name in route.destinations):
            breaker = destinations.load_breaker(session, name)
            if breaker.failures:
                waiting = deliveries.OUTBOX.count_by_state(session).get(name, {}).get(DeliveryState.WAITING, 0)
                found.append({"name": name, "breaker": breaker, "waiting": waiting})
        return found

    def error_page(self, status: int, title: str, back_path: str = "/") -> HTMLResponse:
        """Render a page that states an error, with a link back."""
        with self.readers() as session:
            return self.page(session, "error.html", status, title=title, back_path=back_path)


def flash_message(done: str) -> str:
    """Return the message on the decision that ``done`` names: the address itself contains no text of the page."""
    parts = _DONE_QUERY.fullmatch(done)
    if parts is None:
        return ""
    if parts[1] in _COUNTED_MESSAGES:
        count = int(parts[2] or 0)
        return _COUNTED_MESSAGES[parts[1]][min(count, 2)].format(count)
    return _FLASH_MESSAGES.get(parts[1], "").format(parts[2] or "")


def parse_page_number(text: str) -> int:
    """Parse the number of a page, from 1; 1 for anything else."""
    return min(max(int(text), 1), 1_000_000) if text.isdecimal() and len(text) < 8 else 1


def return_path(form: dict[str, str], otherwise: str) -> str:
    """Return the page that a form names as its origin, if it is one of the node's own pages."""
    back_path = form.get("back", "")
    return back_path if _RETURN_PATHS.fullmatch(back_path) else otherwise


def paginate(total: int, number: int, per_page: int) -> tuple[int, int]:
    """Return the number of the page to show, at most the last one, and the number of pages, at least 1."""
    pages = max(1, -(-total // per_page))
    return min(number, pages), pages
