"""/models: the bundles on this node, their model cards, and the deployment of versions to pipelines.

Deployments come by POST from the node's own pages only (``access.AccessMiddleware``), with initials and a reason for
the history.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from fastapi import APIRouter
from markdown_it import MarkdownIt
from markupsafe import Markup
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from db.states import DeploymentMode
from dicomnode import listings
from dicomnode.config import Config
from dicomnode.deployment import deploying, models, pipeline_names
from dicomnode.deployment.in_use import list_versions_in_use
from dicomnode.errors import NodeError
from dicomnode.web.context import WebContext, flash_message
from dicomnode.web.forms import Form, read_line
from model_zoo.bundle import BundleError, BundleFacts

__all__ = ["add_routes"]

_MOST_ROWS = 50


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the routes of the pages and of their forms."""
    _add_decisions(routes, context)

    @routes.get("/models")
    def overview(done: str = "") -> HTMLResponse:
        with context.readers() as session:
            history = listings.list_deployments(session)
            names = pipeline_names.list_pipelines(context.config)
            compared = {name: listings.list_comparisons(session, name, limit=_MOST_ROWS) for name in names}
            return context.page(
                session,
                "models.html",
                bundles=models.list_bundles(context.config),
                used=_routes_by_bundle(context.config),
                in_use=list_versions_in_use(session, context.config),
                history=history[:_MOST_ROWS],
                compared={name: rows for name, rows in compared.items() if rows},
                learns=bool(context.config.learning),
                message=flash_message(done),
            )

    @routes.get("/models/{name}")
    def model(name: str) -> HTMLResponse:
        facts = _find_bundle(context, name)
        if facts is None:
            return context.error_page(404, "This model is not installed on this node.", "/models")
        with context.readers() as session:
            modes = [str(mode) for mode in DeploymentMode]
            return context.page(
                session,
                "model.html",
                facts=facts,
                card=_render_card(facts),
                modes=modes,
                pipelines=[
                    each
                    for each in pipeline_names.list_pipelines(context.config)
                    if pipeline_names.allows_bundle(each, facts.name)
                ],
            )

    @routes.get("/models/{name}/{picture}.png")
    def picture(name: str, picture: str) -> FileResponse:
        if (facts := _find_bundle(context, name)) is not None:
            path = facts.path / "docs" / f"{picture}.png"
            if path.parent == facts.path / "docs" and path.is_file():
                return FileResponse(path, media_type="image/png", headers={"Cache-Control": "max-age=3600"})
        raise HTTPException(404, "no such picture here")


def _add_decisions(routes: APIRouter, context: WebContext) -> None:
    @routes.post("/models/{name}/deploy")
    def deploy(name: str, form: Form) -> Response:
        back_path = f"/models/{quote(name)}"
        if form.get("mode") not in list(DeploymentMode):
            return context.error_page(
                400, "Choose how to deploy the version: as the current one, as a shadow or for a share.", back_path
            )
        mode, percent = DeploymentMode(form["mode"]), _parse_percent(form.get("percent", ""))
        return _commit_or_explain(
            context, back_path, "deployed",
            lambda session: deploying.deploy(
                session, context.config, model=name, pipeline=form.get("pipeline", ""), mode=mode, percent=percent,
                who=_read_field(form, "who"), why=_read_field(form, "why"), now=context.now(),
            ),
        )  # fmt: skip

    @routes.post("/models/rollback/{pipeline}")
    def rollback(pipeline: str, form: Form) -> Response:
        return _commit_or_explain(
            context, "/models", "rollback",
            lambda session: deploying.rollback(
                session, context.config, pipeline=pipeline, who=_read_field(form, "who"),
                why=_read_field(form, "why"), now=context.now(),
            ),
        )  # fmt: skip

    @routes.post("/models/end-shadow/{pipeline}")
    def end_shadow(pipeline: str, form: Form) -> Response:
        return _commit_or_explain(
            context, "/models", "shadow",
            lambda session: deploying.end_shadow(
                session, context.config, pipeline=pipeline, who=_read_field(form, "who"), now=context.now()
            ),
        )  # fmt: skip


def _commit_or_explain(context: WebContext, back_path: str, done: str, decide: Callable[[Session], object]) -> Response:
    """Commit a decision and show the overview, or show a page with the reason of a refusal."""
    try:
        with context.sessions.begin() as session:
            decide(session)
    except (NodeError, BundleError) as error:
        return context.error_page(409, str(error), back_path)
    return RedirectResponse(f"/models?done={done}", 303)


def _read_field(form: dict[str, str], name: str) -> str:
    text = read_line(form, name)
    return (f"{text} at the dashboard" if text else "the dashboard") if name == "who" else text


def _parse_percent(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _find_bundle(context: WebContext, name: str) -> BundleFacts | None:
    return next((each for each in models.list_bundles(context.config) if f"{each.name}@{each.version}" == name), None)


def _routes_by_bundle(config: Config) -> dict[str, list[str]]:
    """Return the names of the routes that name each bundle."""
    found: dict[str, list[str]] = {}
    for route in config.routes:
        if route.model:
            found.setdefault(route.model.partition("@")[0], []).append(route.name)
    return found


def _render_card(facts: BundleFacts) -> Markup | None:
    """Render the model card; HTML in it stays text."""
    path = facts.path / "docs" / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for token in tokens:
        for image in (each for each in token.children or () if each.type == "image"):
            image.attrs["src"] = f"/models/{quote(facts.name)}@{quote(facts.version)}/{quote(str(image.attrs['src']))}"
        if "right" in str(token.attrs.pop("style", "")):  # the pages' Content-Security-Policy allows no inline styles
            token.attrs["class"] = "right"
        if token.type == "table_open":
            token.attrs["tabindex"] = "0"  # wide tables scroll, by keyboard too
    for cell, content, end in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if cell.type == "th_open" and not content.content:  # a heading of nothing: screen readers announce it
            cell.tag = end.tag = "td"
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))
