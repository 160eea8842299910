"""Learning as plain values, for ``--json``, ``/api`` and the pages. No patient is named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import deployments, learning
from db.models import LearningRun, Study
from db.states import DeploymentMode, LearningState
from dicomnode.config import Config
from dicomnode.deployment import models, pipeline_names
from dicomnode.errors import NotFound
from dicomnode.learning.comparison import summarize
from dicomnode.learning.targets import TARGETS

__all__ = ["count_splits", "describe_run", "find_model_in_use", "find_run", "list_learning", "list_runs"]

_COLUMNS = (
    "id", "name", "pipeline", "recipe", "base", "model", "step", "nights", "reason", "created_at", "begun_at",
    "ended_at",
)  # fmt: skip


def list_learning(session: Session, config: Config, now: datetime) -> list[dict[str, Any]]:
    """List the [[learning]] of node.toml: the night, decided cases since the last run, and the newest run."""
    found = []
    for entry in config.learning:
        runs = learning.list_runs(session, entry.name)
        night = entry.find_night(config.node.to_local_time(now))
        found.append({
            "name": entry.name, "pipeline": entry.pipeline, "start": entry.start, "hours": entry.hours,
            "is_night": night is not None, "new": learning.count_new(session, entry.name, entry.pipeline),
            "needed": entry.new_cases, "runs": len(runs), "run": runs[0].id if runs else None,
            "state": str(runs[0].state) if runs else "no run yet",
        })  # fmt: skip
    return found


def list_runs(session: Session) -> list[dict[str, Any]]:
    """List every run, the newest first."""
    return [_describe_briefly(session, run) for run in learning.list_runs(session)]


def find_model_in_use(session: Session, pipeline: str, config: Config) -> str:
    """Return NAME@VERSION that the pipeline uses now: deployed as current, or the default version."""
    if row := deployments.find_in_force(session, pipeline).get(DeploymentMode.CURRENT):
        return deployments.format_model(row)
    facts = models.find_bundle(pipeline_names.find_default_bundle(pipeline, config), config)
    return f"{facts.name}@{facts.version}"


def find_run(session: Session, id: int) -> LearningRun:
    """Return a run. Raises NotFound."""
    run = session.get(LearningRun, id)
    if run is None:
        raise NotFound(f"no learning run {id}; 'dicomnode learn list' shows them")
    return run


def describe_run(session: Session, run: LearningRun) -> dict[str, Any]:
    """Describe a run with its cases and scores."""
    looks = [each for each in learning.list_runs(session) if each.id < run.id and _looks_alike(each, run)]
    target = TARGETS[run.recipe]
    ids = {each["study_id"] for each in run.cases}
    uids = {
        row.id: row.study_uid for row in session.execute(select(Study.id, Study.study_uid).where(Study.id.in_(ids)))
    }
    scores, cases = (
        [each | {"study_uid": uids[each["study_id"]]} for each in rows] for rows in (run.scores, run.cases)
    )
    return _describe_briefly(session, run) | {
        "settings": run.settings, "target": target.statement, "figure": target.figure_title,
        "splits": count_splits(run.cases), "earlier_looks": len(looks), "scores": scores, "cases": cases,
    }  # fmt: skip


def count_splits(cases: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the number of usable cases in each split, and of those that are left out."""
    usable = [each["split"] for each in cases if not each["left_out"]]
    return {split: usable.count(split) for split in ("train", "validation", "test")} | {
        "left out": len(cases) - len(usable)
    }


def _looks_alike(earlier: LearningRun, run: LearningRun) -> bool:
    """Return whether an earlier run looked at test cases of the same pipeline and recipe."""
    return bool(earlier.scores) and (earlier.pipeline, earlier.recipe) == (run.pipeline, run.recipe)


def _describe_briefly(session: Session, run: LearningRun) -> dict[str, Any]:
    found = {name: getattr(run, name) for name in _COLUMNS} | {"state": str(run.state), "use": _find_use(session, run)}
    if run.state is not LearningState.EVALUATED:
        return found
    summary = summarize(run.scores)
    counts = {"better": summary.better, "worse": len(summary.worse), "total": summary.total}
    return found | counts | {"sentence": summary.sentence, "patients": summary.patients, "chance": summary.chance}


def _find_use(session: Session, run: LearningRun) -> str:
    """Return how the pipeline uses the new version now: "current", "share", "shadow" or ""."""
    rows = deployments.find_in_force(session, run.pipeline)
    modes = [mode for mode in DeploymentMode if mode in rows and deployments.format_model(rows[mode]) == run.model]
    return str(modes[0]) if modes else ""
