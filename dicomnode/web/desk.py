"""What every page of people needs: configuration, sessions, clock, and the frame around the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy.orm import Session, sessionmaker
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from db import engine as engines
from db import overview, trail
from dicomnode.config import Config
from dicomnode.web import pages

__all__ = ["LARGEST_NUMBER", "Desk", "back", "checked_uid", "page_number", "read_form", "told"]

LARGEST_NUMBER = 2**63 - 1
"""Of a row: what databases take."""
_LONGEST_FORM = 1 << 14
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_OWN_PAGES = re.compile(r"/|/(?:hold|failures|peers|system|jobs(?:/\d+)?|studies/[0-9.]{1,64})")
_TOLD = {
    "release": "Job {}: its results are released and on their way.",
    "discard": "Job {}: discarded, nothing is delivered.",
    "retry": "Job {}: runs again.",
    "cancel": "Job {}: cancelled.",
    "resend": "{} deliveries are tried again.",
    "deployed": "Deployed: in use from the next study on.",
    "rollback": "Rolled back: in use from the next study on, and for those that wait.",
    "close": "The study is taken as complete.",
}
_DONE = re.compile(r"([a-z]+)-(\d{1,18})")


class _RowNumber(IntegerConvertor):
    """``{id:row}`` in a path: the number of a row, of no more digits than databases take."""

    regex = "[0-9]{1,18}"


register_url_convertor("row", _RowNumber())


@dataclass(frozen=True)
class Desk:
    """``sessions`` write, ``readers`` do not; ``now`` is the clock."""

    config: Config
    sessions: sessionmaker[Session]
    now: Callable[[], datetime]

    @property
    def readers(self) -> sessionmaker[Session]:
        """Sessions that make no writer wait."""
        return engines.readers(self.sessions.kw["bind"])

    def page(self, session: Session, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page with its frame."""
        frame = {
            "now": self.now(),
            "mask": self.config.web.mask_names,
            "nav": overview.count_needing_attention(session),
            "seq": trail.read_head(session),
            "ae_title": self.config.node.ae_title,
            "asks_for_token": self.config.web.token_file is not None,
            "told": "",
        }
        return pages.render(template, status, **(frame | values))

    def trouble(self, status: int, what: str, there: str = "/") -> HTMLResponse:
        """A page that says what is wrong, and where to go on."""
        with self.readers() as session:
            return self.page(session, "trouble.html", status, what=what, there=there)


def told(done: str) -> str:
    """The sentence about what was just decided: the address holds no words of its own."""
    parts = _DONE.fullmatch(done)
    return _TOLD[parts[1]].format(parts[2]) if parts and parts[1] in _TOLD else ""


def checked_uid(uid: str) -> str:
    """Raises 404 for what is no UID."""
    if not _UID.fullmatch(uid) or len(uid) > 64:
        raise HTTPException(404, "no such study here: that is no UID")
    return uid


def page_number(text: str) -> int:
    """From 1; the first one for what is no number."""
    return min(max(int(text), 1), 1_000_000) if text.isdecimal() and len(text) < 8 else 1


def back(form: dict[str, str], otherwise: str) -> str:
    """The page that a form came from: one of ours, never another address."""
    there = form.get("back", "")
    return there if _OWN_PAGES.fullmatch(there) else otherwise


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a submitted form. Raises 413 when it is too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST_FORM:
            raise HTTPException(413, "the form is too long")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0].strip() for name, values in fields.items()}
