"""The methods of HTTP that a DICOMweb resource understands (PS3.18 8.1, RFC 9110 9.3)."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["add_get", "add_options"]

_KNOWN = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


def add_get(routes: APIRouter, path: str, answer: Callable[[Request], Response]) -> None:
    """GET and HEAD of a path; HEAD has the headers of GET, and nothing is read for a body that is not sent."""

    def endpoint(request: Request) -> Response:
        found = answer(request)
        if request.method != "HEAD":
            return found
        head = Response(status_code=found.status_code)
        head.raw_headers = found.raw_headers
        return head

    routes.add_api_route(path, endpoint, methods=["GET", "HEAD"])


def add_options(routes: APIRouter) -> None:
    """OPTIONS of every path that the router has by now; other methods than those are 405, and told which there are."""
    methods: dict[str, set[str]] = {}
    for route in routes.routes:
        if isinstance(route, APIRoute):
            methods.setdefault(route.path.removeprefix(routes.prefix), {"OPTIONS"}).update(route.methods or ())
    for path, known in methods.items():
        routes.add_api_route(path, _options(known), methods=sorted(_KNOWN - known | {"OPTIONS"}))


def _options(known: set[str]) -> Callable[[Request], Response]:
    allow = {"Allow": ", ".join(sorted(known))}

    def endpoint(request: Request) -> Response:
        if request.method != "OPTIONS":
            raise HTTPException(405, f"this resource knows {allow['Allow']}", allow)
        return Response(None, 204, allow)

    return endpoint
