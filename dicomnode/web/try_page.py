"""/try: which routes take a study and why not, a route of one's own with a count of studies, its options, its block.

Nothing here changes anything; try_actions.py has the forms that do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from db import contents, overview, studies
from db.models import Study
from db.overview import StudyFilter
from dicomnode.config import Config
from dicomnode.deployment import pipeline_names
from dicomnode.errors import NodeError
from dicomnode.execution import option_process
from dicomnode.routing import match_counts, routing, trials
from dicomnode.routing.routing import ConditionResult, RouteExplanation
from dicomnode.web import pages
from dicomnode.web.context import WebContext
from dicomnode.web.holdings import require_uid
from dicomnode.web.masking import is_hidden, mask_names
from dicomnode.web.try_draft import Draft

__all__ = ["Outcome", "add_routes", "find_outcome"]

_MOST_STUDIES, _MOST_SERIES = 30, 60
_LONGEST_VALUE = 64


@dataclass(frozen=True)
class Outcome:
    """The block of a draft with the verdict on the study and the count, or the error in the draft."""

    error: str = ""
    block: str = ""
    explanation: RouteExplanation | None = None
    count: Mapping[str, Any] | None = None
    prior: str = ""


@dataclass(frozen=True)
class _Start:
    """The draft that the page begins with, and the verdicts of the node's routes on the study."""

    draft: Draft
    verdicts: list[RouteExplanation]


class OptionForms:
    """Descriptions of pipelines with their options, each asked for once: it takes seconds."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._known: dict[str, Mapping[str, Any]] = {}

    def describe(self, pipeline: str, *, only_known: bool = False) -> Mapping[str, Any] | None:
        """Return the description; None where it is not known yet and ``only_known`` is true. Raises NodeError."""
        if pipeline not in self._known and not only_known:
            pipeline_names.check_pipeline(pipeline, self._config)
            self._known[pipeline] = option_process.describe_pipeline(pipeline, self._config)
        return self._known.get(pipeline)


def add_routes(routes: APIRouter, context: WebContext) -> None:
    """Add the pages and their parts."""
    forms = OptionForms(context.config)

    @routes.get("/try")
    def choose() -> HTMLResponse:
        with context.readers() as session:
            newest = overview.load_study_page(session, StudyFilter(), limit=_MOST_STUDIES, offset=0)
            return context.page(session, "try_choose.html", studies=newest.studies, tallies=newest.tallies)

    @routes.get("/try/{uid}")
    def show(uid: str, request: Request) -> HTMLResponse:
        fields = dict(request.query_params)
        with context.readers() as session:
            study = studies.find_by_uid(session, require_uid(uid))
            start = _begin(session, context.config, study, fields) if study is not None else None
        if start is None:
            return context.error_page(404, "No study with this UID is on this node.", "/try")
        parts = _describe_options(forms, start.draft, wait="options" in fields)  # both may wait: no session meanwhile
        is_whole = bool(start.draft.pipeline and start.draft.match)
        found = find_outcome(context.config, start.draft, uid) if is_whole else Outcome()
        with context.readers() as session:
            return _study_page(session, context, uid, start, outcome=found, **parts)

    @routes.get("/try/{uid}/outcome")
    def outcome(uid: str, request: Request) -> Response:
        draft = Draft.from_fields(request.query_params)
        found = find_outcome(context.config, draft, require_uid(uid))
        with context.readers() as session:
            names = _name_series(session, studies.find_by_uid(session, uid))
        return pages.render("try_outcome.html", outcome=found, series_names=names)

    @routes.get("/try/{uid}/options")
    def options(uid: str, request: Request) -> Response:
        draft = Draft.from_fields(request.query_params)
        return pages.render("try_options.html", draft=draft, **_describe_options(forms, draft, wait=True))


def find_outcome(config: Config, draft: Draft, study_uid: str) -> Outcome:
    """Return what a draft leads to on that study and on all that are held."""
    try:
        block = draft.make_block()
        pipeline_names.check_pipeline(block.route.pipeline, config)
        found = match_counts.examine(block.route, study_uid, config.database_url)
    except NodeError as error:
        return Outcome(error=str(error))
    explanation = found["explanation"] and _read_explanation(found["explanation"])
    if explanation and config.web.mask_names:
        explanation = mask_names(explanation)
    return Outcome("", block.text, explanation, found["count"], found["prior"])


def _read_explanation(found: Mapping[str, Any]) -> RouteExplanation:
    answers = tuple(ConditionResult(**each) for each in found["answers"])
    return RouteExplanation(found["route"], found["pipeline"], tuple(found["matched"]), answers, found["why"])


def _begin(session: Session, config: Config, study: Study, fields: dict[str, str]) -> _Start:
    series = contents.list_received_series(session, study.id, limit=_MOST_SERIES)
    verdicts = routing.explain_study(session, study, config.routes)
    draft = _choose_draft(config, [each.row.attributes for each in series], verdicts, fields)
    return _Start(draft, [mask_names(each) for each in verdicts] if config.web.mask_names else verdicts)


def _study_page(session: Session, context: WebContext, uid: str, start: _Start, **parts: Any) -> HTMLResponse:
    config, study = context.config, session.scalars(select(Study).where(Study.study_uid == uid)).one()
    series = contents.list_received_series(session, study.id, limit=_MOST_SERIES)
    return context.page(
        session,
        "try.html",
        study=study,
        tally=overview.load_tallies(session, [study.id])[study.id],
        series=series,
        attributes=[_list_attributes(each.row.attributes) for each in series],
        series_names=_name_series(session, study),
        verdicts=sorted(start.verdicts, key=lambda each: not each.matched),
        draft=start.draft,
        pipelines=pipeline_names.list_pipelines(config),
        peers=[peer.name for peer in config.peers],
        unable=trials.reason_unable(session, study),
        may_write=config.web.may_write_routes,
        is_writable=os.access(config.path, os.W_OK) and os.access(config.path.parent, os.W_OK),
        file_name=config.path.name,
        **parts,
    )


def _choose_draft(
    config: Config,
    series: list[dict[str, Any]],
    verdicts: list[RouteExplanation],
    fields: dict[str, str],
) -> Draft:
    """Return the draft of the address, else a copy of a route, else one for a series of the study."""
    if "match" in fields:
        return Draft.from_fields(fields)
    matched = next((each.route for each in verdicts if each.matched), "") if "series" not in fields else ""
    chosen = next((each for each in config.routes if each.name == fields.get("route", matched)), None)
    if chosen is not None:
        return Draft.from_route(chosen, _find_free_name(config, chosen.name))
    number = fields.get("series", "0")
    at = int(number) if number.isdecimal() and len(number) < 4 else 0
    return Draft.from_series(series[at], _find_free_name(config, "new-route")) if at < len(series) else Draft()


def _find_free_name(config: Config, name: str) -> str:
    """Return the name, with a number behind it where a route has it."""
    names = {route.name for route in config.routes}
    numbered = (f"{name}-{number}" for number in range(2, len(names) + 3))
    return name if name not in names else next(each for each in numbered if each not in names)


def _describe_options(forms: OptionForms, draft: Draft, *, wait: bool) -> dict[str, Any]:
    """Return the options of the draft's pipeline for the form; None for those that are not known yet."""
    if not draft.pipeline:
        return {"options": None, "options_error": ""}
    try:
        found = forms.describe(draft.pipeline, only_known=not wait)
    except NodeError as error:
        return {"options": None, "options_error": str(error)}
    return {"options": found and {"title": found["title"], "inputs": found["inputs"], "rows": found["options"]},
            "options_error": ""}  # fmt: skip


def _name_series(session: Session, study: Study | None) -> dict[str, str]:
    """Return number and description of each series of a study by its UID."""
    if study is None:
        return {}
    found = contents.list_received_series(session, study.id, limit=_MOST_SERIES)
    return {each.row.series_uid: _name_one(each.row.attributes) for each in found}


def _name_one(attributes: Mapping[str, Any]) -> str:
    words = (str(attributes.get(keyword) or "") for keyword in ("SeriesNumber", "SeriesDescription"))
    return " ".join(filter(None, words)) or "series without description"


def _list_attributes(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return keywords and values on which a condition may be written, without those that name people."""
    texts = {
        keyword: " \\ ".join(map(str, value)) if isinstance(value, list) else str(value)
        for keyword, value in sorted(attributes.items())
        if value not in ("", None) and not is_hidden(keyword)
    }
    return [(keyword, text) for keyword, text in texts.items() if len(text) <= _LONGEST_VALUE]
