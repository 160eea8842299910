"""Reference of the HTTP interface, from the OpenAPI description of the FastAPI application."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from dicomnode.config import Config
from dicomnode.web.app import create_app
from docs.generators.tables import format_table

__all__ = ["GROUPS", "list_operations", "make_page"]

GROUPS = (
    ("/api", "API", "JSON, the same as the commands print with `--json`. Read-only."),
    ("/review/dicom-web", "DICOMweb with held results", "Read-only, for the viewer of the hold queue."),
    ("/viewer/dicom-web", "DICOMweb of the viewer", "Read-only, with windows from the pixels where a header has none."),
    ("/dicom-web", "DICOMweb", "QIDO-RS, WADO-RS and STOW-RS; details in section 3.6 of {doc}`conformance`."),
    ("/healthz", "Health", "Without a token: whether the process runs."),
    ("/readyz", "Readiness", "Without a token: 200 when the node can work; otherwise 503 and what is missing."),
    ("/metrics", "Metrics", "Without a token: numbers for Prometheus. The {doc}`../runbook` explains them."),
    ("/", "Pages", "HTML for people. POST is for the forms of these pages; a request from another site is refused."),
)
"""The prefixes of paths in the order in which they are tried: heading and introduction of each."""

DICOMWEB = {
    "metadata": "metadata as DICOM JSON",
    "thumbnail": "a small picture",
    "rendered": "a picture",
    "{place}": "the bytes of one attribute",
    "{frames}": "the pixels of frames",
    "{instance}": "the instance",
    "{series}": "all instances of the series",
    "{study}": "all instances of the study",
}
"""Answers of DICOMweb resources by the last part of their path; every other resource is a search."""

_UNBOUNDED = 1_000_000_000
"""Bounds from this size on only refuse nonsense; the page leaves them out."""

Operation = tuple[str, str, Mapping[str, Any]]
"""Method, path and the OpenAPI description."""


def make_page() -> str:
    """Return the reference of all paths as Markdown."""
    by_prefix: dict[str, list[Operation]] = {prefix: [] for prefix, _, _ in GROUPS}
    for operation in list_operations():
        by_prefix[next(prefix for prefix in by_prefix if operation[1].startswith(prefix))].append(operation)
    return "\n".join(
        f"## {heading}\n\n{introduction}\n\n{_format_operations(by_prefix[prefix])}"
        for prefix, heading, introduction in GROUPS
    )


def list_operations() -> list[Operation]:
    """Return every operation of the application, by path."""
    sessions = sessionmaker(create_engine("sqlite://"))
    paths = create_app(Config(), sessions, now=lambda: datetime.now(UTC)).openapi()["paths"]
    return sorted((method.upper(), path, facts) for path, found in paths.items() for method, facts in found.items())


def _format_operations(operations: list[Operation]) -> str:
    rows = [
        (f"`{method}`", f"`{path}`", describe(method, path, facts), _describe_query(facts))
        for method, path, facts in operations
    ]
    used = [column for column in range(4) if column < 2 or any(row[column] for row in rows)]
    head = ("method", "path", "answer", "query parameters")
    return format_table([head[column] for column in used], ([row[column] for column in used] for row in rows))


def describe(method: str, path: str, facts: Mapping[str, Any]) -> str:
    """Return what an operation answers: its docstring, or the kind of a DICOMweb resource; empty for pages."""
    if "/dicom-web/" not in path:
        docstring = " ".join(facts.get("description", "").split())
        return docstring.removeprefix("Return ").removesuffix(".").replace("``", "`")
    if method == "POST":
        return "stores instances"
    return DICOMWEB.get(path.rpartition("/")[2], "a search")


def _describe_query(facts: Mapping[str, Any]) -> str:
    query = [each for each in facts.get("parameters", ()) if each["in"] == "query"]
    return ", ".join(f"`{each['name']}`{_describe_bounds(each['schema'])}" for each in query)


def _describe_bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and schema.get("maximum", _UNBOUNDED) < _UNBOUNDED:
        return f" ({schema['minimum']} to {schema['maximum']})"
    return ""
