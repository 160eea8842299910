"""/models: the bundles on this node, their cards, which version each pipeline uses, and deciding on that.

Decisions come by POST from our own pages only (access.Guard), with the initials and the reason for the history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends
from markdown_it import MarkdownIt
from markupsafe import Markup
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from db.states import DeploymentMode
from dicomnode import listings
from dicomnode.config import Config
from dicomnode.deployment import deploying, models, pipeline_names
from dicomnode.errors import NodeError
from dicomnode.web.desk import Desk, read_form, told
from model_zoo.bundle import BundleError, BundleFacts

__all__ = ["add"]

_SHOWN = 50
_LONGEST = {"who": 40, "why": 300}

Form = Annotated[dict[str, str], Depends(read_form)]


def add(routes: APIRouter, desk: Desk) -> None:
    """The pages, and the addresses that their forms are sent to."""
    _add_decisions(routes, desk)

    @routes.get("/models")
    def overview(done: str = "") -> HTMLResponse:
        with desk.readers() as session:
            history = listings.list_deployments(session)
            names = pipeline_names.list_pipelines(desk.config)
            compared = {name: listings.list_comparisons(session, name, limit=_SHOWN) for name in names}
            return desk.page(
                session, "models.html", bundles=models.list_bundles(desk.config), used=_used(desk.config),
                in_force=[row for row in history if row["ended_at"] is None], history=history[:_SHOWN],
                compared={name: rows for name, rows in compared.items() if rows}, told=told(done),
            )  # fmt: skip

    @routes.get("/models/{name}")
    def model(name: str) -> HTMLResponse:
        facts = _bundle(desk, name)
        if facts is None:
            return desk.trouble(404, "No such model is on this node.", "/models")
        with desk.readers() as session:
            modes = [str(mode) for mode in DeploymentMode]
            return desk.page(
                session,
                "model.html",
                facts=facts,
                card=_card(facts),
                modes=modes,
                pipelines=[
                    p for p in pipeline_names.list_pipelines(desk.config) if pipeline_names.allows_bundle(p, facts.name)
                ],
            )

    @routes.get("/models/{name}/{picture}.png")
    def picture(name: str, picture: str) -> FileResponse:
        if (facts := _bundle(desk, name)) is not None:
            path = facts.path / "docs" / f"{picture}.png"
            if path.parent == facts.path / "docs" and path.is_file():
                return FileResponse(path, media_type="image/png", headers={"Cache-Control": "max-age=3600"})
        raise HTTPException(404, "no such picture here")


def _add_decisions(routes: APIRouter, desk: Desk) -> None:
    @routes.post("/models/{name}/deploy")
    def deploy(name: str, form: Form) -> Response:
        there = f"/models/{quote(name)}"
        if form.get("mode") not in list(DeploymentMode):
            return desk.trouble(400, "A version is deployed as the current one, as a shadow or for a share.", there)
        mode, percent = DeploymentMode(form["mode"]), _percent(form.get("percent", ""))
        return _tried(
            desk, there, "deployed",
            lambda session: deploying.deploy(
                session, desk.config, model=name, pipeline=form.get("pipeline", ""), mode=mode, percent=percent,
                who=_said(form, "who"), why=_said(form, "why"), now=desk.now(),
            ).id,
        )  # fmt: skip

    @routes.post("/models/rollback/{pipeline}")
    def rollback(pipeline: str, form: Form) -> Response:
        return _tried(
            desk, "/models", "rollback",
            lambda session: deploying.rollback(
                session, desk.config, pipeline=pipeline, who=_said(form, "who"), why=_said(form, "why"), now=desk.now()
            ).id,
        )  # fmt: skip


def _tried(desk: Desk, there: str, done: str, decide: Callable[[Session], int]) -> Response:
    """Done in one transaction, then the overview; or a page that says why not."""
    try:
        with desk.sessions.begin() as session:
            id = decide(session)
    except (NodeError, BundleError) as error:
        return desk.trouble(409, str(error), there)
    return RedirectResponse(f"/models?done={done}-{id}", 303)


def _said(form: dict[str, str], name: str) -> str:
    word = " ".join(form.get(name, "").split())[: _LONGEST[name]]
    return (f"{word} at the dashboard" if word else "the dashboard") if name == "who" else word


def _percent(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bundle(desk: Desk, name: str) -> BundleFacts | None:
    return next((each for each in models.list_bundles(desk.config) if f"{each.name}@{each.version}" == name), None)


def _used(config: Config) -> dict[str, list[str]]:
    """By bundle, the routes that name it."""
    found: dict[str, list[str]] = {}
    for route in config.routes:
        if route.model:
            found.setdefault(route.model.partition("@")[0], []).append(route.name)
    return found


def _card(facts: BundleFacts) -> Markup | None:
    """The model card; HTML in it stays text."""
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
        if "right" in str(token.attrs.pop("style", "")):  # the policy of our pages allows no styles in the text
            token.attrs["class"] = "right"
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))
