"""/senders: who may send, with the limits, and the callers that were refused since the node's start."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from dicomnode.config import Config
from dicomnode.config.senders import SenderConfig
from dicomnode.web.context import WebContext

__all__ = ["add_routes"]

_RATES = ("max_object_mb", "max_mb_per_minute", "max_objects_per_minute")


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the route of the page."""

    @routes.get("/senders")
    def senders() -> HTMLResponse:
        config = context.config
        with context.readers() as session:
            return context.page(
                session,
                "senders.html",
                senders=[_describe(sender, config) for sender in config.senders],
                general={name: getattr(config.limits, name) for name in _RATES},
                limits=config.limits,
                most_associations=config.node.max_associations,
                refused=context.refused_callers.list(),
            )


def _describe(sender: SenderConfig, config: Config) -> dict[str, Any]:
    """Return a sender with the limits that hold for it: its own, else the general ones."""
    limits = {name: getattr(sender, name) or getattr(config.limits, name) for name in _RATES}
    addresses = ", ".join(map(str, sender.addresses)) or "any address"
    return limits | {"ae_title": sender.ae_title, "addresses": addresses, "max_associations": sender.max_associations}
