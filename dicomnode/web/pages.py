"""Rendering of pages from templates; all values are escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from dicomnode.web import person
from dicomnode.web.template_filters import FILTERS

__all__ = ["render"]


def render(template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """Render a template of ``dicomnode/web/templates``."""
    return HTMLResponse(_environment().get_template(template).render(**values), status)


@cache
def _environment() -> Environment:
    loader = PackageLoader("dicomnode.web", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(FILTERS)
    environment.globals["find_person"] = person.current
    return environment
