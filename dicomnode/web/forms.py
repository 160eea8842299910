"""Submitted HTML forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dicomnode.web import person

__all__ = ["Form", "read_form", "read_line"]

_MOST_BYTES = 1 << 13
_MOST_CHARACTERS = {"who": 40, "reason": 300, "why": 300}


async def read_form(request: Request) -> dict[str, str]:
    """Read the fields of a submitted form. Raises 413 when the form is too long.

    With accounts, the field "who" is the account's: no form can name another person.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, "the form is too long")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    form = {name: values[0].strip() for name, values in fields.items()}
    return form if (found := person.current()) is None else form | {"who": found.display_name}


def read_line(form: Mapping[str, str], name: str) -> str:
    """Return the field "who", "reason" or "why": one line without control characters, cut to its largest length."""
    line = " ".join(form.get(name, "").split())
    return "".join(each for each in line if each.isprintable())[: _MOST_CHARACTERS[name]]


Form = Annotated[dict[str, str], Depends(read_form)]
"""Fields of the form that a request submits."""
