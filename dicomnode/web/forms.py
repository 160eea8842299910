"""Submitted HTML forms."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["Form", "read_form"]

_MOST_BYTES = 1 << 13


async def read_form(request: Request) -> dict[str, str]:
    """Read the fields of a submitted form. Raises 413 when the form is too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, "the form is too long")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0].strip() for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(read_form)]
"""Fields of the form that a request submits."""
