"""The begin of a night: the open run, or a new one with its cases and links to their files."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from db import audit, learning
from db import engine as engines
from db.models import LearningRun
from db.states import LearningState
from dicomnode.config import Config
from dicomnode.config.learning import LearningConfig
from dicomnode.deployment import models
from dicomnode.errors import ConfigError, NotAllowed
from dicomnode.learning import exporting
from dicomnode.learning.cases import collect_cases
from dicomnode.learning.describing import find_model_in_use
from dicomnode.learning.folders import CASES, INCOMING, remove_images
from dicomnode.learning.targets import Target, find_target
from dicomnode.storage import spool

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts

__all__ = ["check_cases", "open_run", "prepare_target"]


def prepare_target(session: Session, entry: LearningConfig, config: Config) -> tuple[BundleFacts, str, Target]:
    """Return the bundle to begin from, its recipe, and the target. Raises ConfigError where it cannot be learned."""
    if config.models.require_signature:
        raise ConfigError(f"learning {entry.name}: [models] require_signature refuses bundles that this node makes")
    facts = models.find_bundle(find_model_in_use(session, entry.pipeline, config), config)
    recipe = str(facts.metadata.get("recipe", ""))
    return facts, recipe, find_target(entry, recipe)


def check_cases(cases: list[dict[str, Any]], entry: LearningConfig) -> None:
    """Raise NotAllowed unless every split has enough patients with usable cases."""
    usable = [split for split, _ in {(each["split"], each["subject"]) for each in cases if not each["left_out"]}]
    needed = {"train": 1, "validation": 1, "test": entry.test_cases}
    for split, count in needed.items():
        if usable.count(split) < count:
            raise NotAllowed(
                f"learning {entry.name}: usable cases of {usable.count(split)} patients in the split {split}, "
                f"{count} needed; 'dicomnode learn cases {entry.name}' lists them"
            )


def open_run(
    config: Config, sessions: sessionmaker[Session], entry: LearningConfig, now: datetime
) -> tuple[int, int | None]:
    """Return the number of the run of this night, and its steps so far; None where it is still exporting.

    Raises NotAllowed, ConfigError.
    """
    folder = config.learning_dir / entry.name
    with engines.readers(sessions.kw["bind"])() as session:
        run = learning.find_open(session, entry.name)
        _check_folder(run, folder)
        remove_images(folder, keep=None if run is None else run.id)
        values = None if run is not None else _prepare_run(session, config, entry, folder / INCOMING)
    with sessions.begin() as session:
        run = learning.find_open(session, entry.name) if values is None else _add_run(session, values, folder, now)
        if run is None:
            raise NotAllowed(f"learning {entry.name}: the run was cancelled meanwhile")
        run.nights, run.begun_at = run.nights + 1, now
        detail = {"name": run.name, "night": run.nights, "state": str(run.state), "step": run.step}
        audit.append(session, subject="learning_runs", subject_id=run.id, event="night begun", detail=detail, now=now)
        return run.id, run.step if run.state is LearningState.TRAINING else None


def _check_folder(run: LearningRun | None, folder: Path) -> None:
    """Raise NotAllowed for a run whose folder is not here."""
    if run is not None and not (folder / str(run.id)).is_dir():
        raise NotAllowed(
            f"learning {run.name}: the folder of run {run.id} is not here: it goes on on the machine that has it, or "
            f"'dicomnode learn cancel {run.id}' ends it"
        )


def _prepare_run(session: Session, config: Config, entry: LearningConfig, folder: Path) -> dict[str, Any]:
    """Return the values of a new run, and link the files of its cases below ``folder``; nobody waits meanwhile."""
    spool.check_space(config.learning_dir, config.spool)
    facts, recipe, target = prepare_target(session, entry, config)
    cases = collect_cases(session, entry, target, config)
    described = [each.describe() for each in cases]
    check_cases(described, entry)
    folder.mkdir()
    for case in cases:
        if not case.left_out:
            exporting.link_files(case, folder / CASES / str(case.job_id))
    settings = {
        "configuration": entry.configuration, "set": entry.set_, "device": entry.device, "numbers": entry.numbers,
        "shadow": entry.shadow,
    }  # fmt: skip
    return {
        "name": entry.name, "pipeline": entry.pipeline, "recipe": recipe, "base": f"{facts.name}@{facts.version}",
        "base_digest": facts.digest, "settings": settings, "cases": described,
    }  # fmt: skip


def _add_run(session: Session, values: dict[str, Any], folder: Path, now: datetime) -> LearningRun:
    run = LearningRun(**values, model="", scores=[], step=0, nights=0, created_at=now, begun_at=now)
    session.add(run)
    try:
        session.flush()
    except IntegrityError:
        raise NotAllowed(f"learning {run.name}: another machine has begun a run") from None
    run.model = f"{run.base.partition('+')[0]}+site.{run.id}"
    shutil.rmtree(folder / str(run.id), ignore_errors=True)  # of a run whose row was never written
    (folder / INCOMING).rename(folder / str(run.id))
    return run
