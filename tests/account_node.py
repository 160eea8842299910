"""A node with accounts: one of each role, all with one password, and a token for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from db import accounts
from db.models import Event
from db.states import Role
from dicomnode.accounts import managing, passwords
from tests.web_node import Web

__all__ = [
    "NAMES",
    "NODE_TOKEN",
    "PASSWORD",
    "add_account",
    "bearer_of",
    "cookie_of",
    "find_events",
    "log_in",
    "run_node",
]

PASSWORD = "correct horse battery"
NODE_TOKEN = "0123456789abcdef-of-the-node"
NAMES = {Role.VIEWER: "vera", Role.OPERATOR: "otto", Role.ADMINISTRATOR: "anna"}


@contextmanager
def run_node(folder: Path, settings: dict[str, Any] | None = None, **sections: Any) -> Iterator[Web]:
    """Run a node whose accounts are ``NAMES``, with a token of the node beside them."""
    (folder / "web.token").write_text(NODE_TOKEN)
    base = {"accounts": True, "token_file": "web.token"}
    with Web(folder, base | (settings or {}), sections=sections) as web:
        for role, name in NAMES.items():
            add_account(web, name, role)
        yield web


def add_account(web: Web, name: str, role: Role) -> None:
    with web.sessions.begin() as session:
        accounts.add(
            session, name=name, display_name=name, role=role, password_hash=hash_once(), by="root", now=web.now
        )


@cache
def hash_once() -> str:
    """Return the hash of ``PASSWORD``: it takes a while."""
    return passwords.hash_password(PASSWORD)


def log_in(web: Web, name: str, password: str = PASSWORD) -> httpx.Response:
    """Send the form, without the cookies of earlier answers."""
    web.client.cookies.clear()
    answer = web.client.post("/login", data={"name": name, "password": password, "next": "/"})
    web.client.cookies.clear()
    return answer


def cookie_of(web: Web, name: str) -> dict[str, str]:
    """Log in and return the header of the session's cookie."""
    answer = log_in(web, name)
    assert answer.status_code == 303, answer.text
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def bearer_of(web: Web, name: str) -> dict[str, str]:
    """Make a token of an account and return the header with it."""
    with web.sessions.begin() as session:
        return {"Authorization": f"Bearer {managing.make_token(session, name, by='root', now=web.now)}"}


def find_events(web: Web, subject: str, event: str) -> list[Event]:
    return [each for each in web.rows(Event) if (each.subject, each.event) == (subject, event)]
