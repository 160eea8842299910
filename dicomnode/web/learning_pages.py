"""The pages on learning: the nights, the runs, and one run's comparison with Deploy and Undo."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, RedirectResponse, Response

from db import deployments
from db.models import LearningRun
from db.states import DeploymentMode, LearningState
from dicomnode.deployment import deploying
from dicomnode.errors import NodeError, NotAllowed, NotFound
from dicomnode.learning import describing
from dicomnode.learning.comparison import summarize
from dicomnode.web.context import WebContext, flash_message
from dicomnode.web.forms import Form, read_line
from model_zoo.bundle import BundleError

__all__ = ["add_routes"]

_Decide = Callable[[Session, LearningRun, WebContext, str, str], None]


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the pages and the routes of their forms."""
    _add_decisions(routes, context)

    @routes.get("/learning")
    def overview() -> HTMLResponse:
        with context.readers() as session:
            entries = describing.list_learning(session, context.config, context.now())
            runs = describing.list_runs(session)
            return context.page(session, "learning.html", entries=entries, runs=runs)

    @routes.get("/learning/{id:row}")
    def run(id: int, done: str = "") -> HTMLResponse:
        with context.readers() as session:
            try:
                row = describing.find_run(session, id)
            except NotFound:
                return context.error_page(404, f"Learning run {id} does not exist.", "/learning")
            return context.page(
                session,
                "learning_run.html",
                run=describing.describe_run(session, row),
                summary=summarize(row.scores),
                refusal=_find_refusal(session, row, context),
                message=flash_message(done),
            )


def _add_decisions(routes: APIRouter, context: WebContext) -> None:
    @routes.post("/learning/{id:row}/deploy")
    def deploy(id: int, form: Form) -> Response:
        return _decide(context, id, form, "learned", _deploy)

    @routes.post("/learning/{id:row}/undo")
    def undo(id: int, form: Form) -> Response:
        return _decide(context, id, form, "unlearned", _undo)


def _decide(context: WebContext, id: int, form: dict[str, str], done: str, decide: _Decide) -> Response:
    """Commit a decision that a person confirms with a reason, or show a page with the reason of a refusal."""
    back_path = f"/learning/{id}"
    who, why = read_line(form, "who"), read_line(form, "why")
    if not who or not why or form.get("confirm") != "yes":
        fault = "A decision needs your initials, a reason, and the tick that confirms it."
        return context.error_page(400, fault, back_path)
    try:
        with context.sessions.begin() as session:
            run = describing.find_run(session, id)
            decide(session, run, context, f"{who} at the dashboard", why)
    except NotFound:
        return context.error_page(404, f"Learning run {id} does not exist.", "/learning")
    except (NodeError, BundleError) as error:
        return context.error_page(409, str(error), back_path)
    return RedirectResponse(f"{back_path}?done={done}", 303)


def _deploy(session: Session, run: LearningRun, context: WebContext, who: str, why: str) -> None:
    if refusal := _find_refusal(session, run, context):
        raise NotAllowed(refusal)
    row = deploying.deploy(
        session, context.config, model=run.model, pipeline=run.pipeline, who=who,
        why=f"learning run {run.id}: {why}", now=context.now(),
    )  # fmt: skip
    if row.digest != run.model_digest:
        raise NotAllowed(f"{run.model} does not have the weights that were evaluated")


def _undo(session: Session, run: LearningRun, context: WebContext, who: str, why: str) -> None:
    rows = deployments.find_in_force(session, run.pipeline)
    current = rows.get(DeploymentMode.CURRENT)
    if current is None or deployments.format_model(current) != run.model:
        raise NotAllowed(f"{run.model} is not the current version of {run.pipeline}: nothing to undo here")
    if DeploymentMode.SHARE in rows:
        raise NotAllowed(f"A share of {run.pipeline} runs: end it on the page Models first")
    deploying.rollback(session, context.config, pipeline=run.pipeline, who=who, why=why, now=context.now())


def _find_refusal(session: Session, run: LearningRun, context: WebContext) -> str:
    """Return why the new version is not deployed from here, or ""."""
    if run.state is not LearningState.EVALUATED:
        return f"Learning run {run.id} is {run.state}: nothing to deploy"
    current = deployments.find_in_force(session, run.pipeline).get(DeploymentMode.CURRENT)
    in_use = describing.find_model_in_use(session, run.pipeline, context.config)
    if in_use == run.model:
        return f"{run.model} is the current version"
    if in_use != run.base or (current is not None and current.digest != run.base_digest):
        return f"{run.pipeline} uses {in_use} now; this comparison is with {run.base}"
    return ""
