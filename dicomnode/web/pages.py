"""Pages from templates; whatever comes from a data set is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from dicomnode.web.words import FILTERS

__all__ = ["render"]


def render(template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """The page that a template of ``dicomnode/web/templates`` makes of values."""
    return HTMLResponse(_environment().get_template(template).render(**values), status)


@cache
def _environment() -> Environment:
    loader = PackageLoader("dicomnode.web", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(FILTERS)
    return made
