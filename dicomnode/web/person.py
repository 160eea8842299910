"""The person or program on whose request the web works, where the node has accounts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from db import audit
from db.states import Role

__all__ = ["Person", "act_for", "current", "find_account", "has_role"]

_current: ContextVar[Person | None] = ContextVar("web.person", default=None)
"""Of this request; threads that answer it inherit it."""


@dataclass(frozen=True)
class Person:
    """An account by ``name``, as in the audit trail; ``display_name``: the name in forms and records of decisions."""

    name: str
    display_name: str
    role: Role


def current() -> Person | None:
    """Return the person of this request; None on a node without accounts."""
    return _current.get()


def find_account() -> str:
    """Return the name of the account of this request, or ""."""
    person = _current.get()
    return person.name if person else ""


def has_role(role: Role) -> bool:
    """Return whether this request may do what a role may; on a node without accounts every request may."""
    person = _current.get()
    return person is None or person.role.includes(role)


@contextmanager
def act_for(person: Person) -> Iterator[None]:
    """Answer a request for a person: forms and the audit trail name them."""
    token = _current.set(person)
    try:
        with audit.act_for(person.name):
            yield
    finally:
        _current.reset(token)
