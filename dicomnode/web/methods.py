"""HTTP methods of DICOMweb resources (PS3.18 8.1, RFC 9110 9.3)."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["REFUSAL", "add_get", "add_options"]

REFUSAL = "refused-methods"
"""Name of the routes that answer OPTIONS, and all other methods with 405."""
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


def add_get(routes: APIRouter, path: str, answer: Callable[[Request], Response]) -> None:
    """Add GET and HEAD of a path. HEAD returns the headers of GET and reads no data for a body."""

    def endpoint(request: Request) -> Response:
        found = answer(request)
        if request.method != "HEAD":
            return found
        head = Response(status_code=found.status_code)
        head.raw_headers = found.raw_headers
        return head

    routes.add_api_route(path, endpoint, methods=["GET"])
    routes.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


def add_options(routes: APIRouter) -> None:
    """Add OPTIONS to every path of the router. All other methods get 405 with the allowed ones."""
    methods: dict[str, set[str]] = {}
    for route in routes.routes:
        if isinstance(route, APIRoute):
            methods.setdefault(route.path.removeprefix(routes.prefix), {"OPTIONS"}).update(route.methods or ())
    for path, known in methods.items():
        others = sorted(_METHODS - known | {"OPTIONS"})
        routes.add_api_route(path, _options_endpoint(known), methods=others, include_in_schema=False, name=REFUSAL)


def _options_endpoint(known: set[str]) -> Callable[[Request], Response]:
    allow = {"Allow": ", ".join(sorted(known))}

    def endpoint(request: Request) -> Response:
        if request.method != "OPTIONS":
            raise HTTPException(405, f"this resource allows {allow['Allow']}", allow)
        return Response(None, 204, allow)

    return endpoint
