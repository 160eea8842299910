"""One night of learning: export the cases, train, evaluate, install, start the shadow. Nothing is deployed for studies.

Training and evaluation are the commands ``dicomnode train`` and ``evaluate``, as processes of their own that end with
the night. The next night goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session, sessionmaker

from db import audit, deployments, learning
from db import engine as engines
from db.models import LearningRun
from db.states import DeploymentMode, InvalidTransition, LearningState
from dicomnode.config import Config
from dicomnode.config.learning import LearningConfig
from dicomnode.deployment import deploying, models
from dicomnode.errors import InputRefused, NodeError, NotAllowed
from dicomnode.learning import beginning, exporting
from dicomnode.learning.beginning import check_cases
from dicomnode.learning.commands import Commands, OutOfTime
from dicomnode.learning.comparison import compare_rows
from dicomnode.learning.folders import CASES, RUN, lock_folder, remove_images
from dicomnode.learning.night import Night
from dicomnode.learning.targets import TARGETS, Target
from model_zoo.bundle import BundleError
from pipelines.contract import Refused

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["run_night"]

_log = logging.getLogger(__name__)
_TABLE = "table.csv"
_MOST_IDLE_NIGHTS = 3
"""Nights in a row without a new checkpoint after which a run fails."""


def run_night(
    config: Config,
    sessions: sessionmaker[Session],
    entry: LearningConfig,
    *,
    now: Callable[[], datetime],
    left_s: Callable[[], float],
) -> LearningRun:
    """Go on with the open run, or begin one; return it as the night leaves it.

    ``left_s``: seconds that are left of the night. Raises NotAllowed where there are too few cases or another process
    learns, ConfigError where the pipeline cannot be learned.
    """
    folder = config.learning_dir / entry.name
    with lock_folder(folder) as lock:
        run_id, step = beginning.open_run(config, sessions, entry, now())
        night = Night(config, sessions, entry, now, Commands(config.path, left_s, lock.fileno()), run_id, step)
        try:
            _work(night)
        except OutOfTime as end:
            _end_night(night, str(end))
        except (NodeError, BundleError) as error:
            _fail(night, " ".join(str(error).split()))
        except InvalidTransition:  # a person cancelled the run at this moment
            _log.warning("learning %s: run %d was cancelled", entry.name, run_id)
        run = night.read()
        if run.state not in learning.OPEN:
            remove_images(folder)
        return run


def _work(night: Night) -> None:
    run = night.read()
    target = TARGETS[run.recipe]
    if run.state is LearningState.EXPORTING:
        _export(night, run, target)
    _train(night)
    _evaluate(night, target)


def _export(night: Night, run: LearningRun, target: Target) -> None:
    """Make the label maps of all cases, and the table."""
    rows: list[dict[str, str]] = []
    cases = [dict(each) for each in run.cases]
    loaded: list[Model] = []

    def load_anatomy() -> Model:
        if not loaded:
            with engines.readers(night.sessions.kw["bind"])() as session:
                name = deployments.find_current_by_bundle(session).get("anatomy", "anatomy")
            loaded.append(models.load_without_helpers(name, night.config))
        return loaded[0]

    for case in (each for each in cases if not each["left_out"]):
        night.commands.check_time()
        _check_open(night.read())
        try:
            cells = exporting.make_row(
                night.folder / CASES / str(case["job_id"]), target, run.settings["numbers"], load_anatomy
            )
        except (InputRefused, Refused) as error:
            case["left_out"] = " ".join(str(error).split())
            continue
        rows.append({"subject": case["subject"], "split": case["split"], **cells})
        case["line"] = len(rows) + 1
    check_cases(cases, night.entry)
    exporting.write_table(night.folder / _TABLE, rows)
    with night.sessions.begin() as session:
        night.move_in(session, LearningState.TRAINING, f"{len(rows)} cases in the table", cases=cases)


def _train(night: Night) -> None:
    run, out = night.read(), night.folder / RUN
    base = models.find_bundle(run.base, night.config)
    if base.digest != run.base_digest:
        raise NotAllowed(f"{run.base} no longer has the weights that this run began from")
    settings = [f"{name}={json.dumps(value)}" for name, value in run.settings["set"].items()]
    words = ["train", run.recipe, "--manifest", str(night.folder / _TABLE), "--from", str(base.path), "--out", str(out)]
    words += ["--configuration", run.settings["configuration"], "--device", run.settings["device"]]
    words += ["--version", run.model.partition("@")[2], "--resume", *(w for each in settings for w in ("--set", each))]
    night.commands.run(words, log=night.folder / "train.log", watch=lambda: _record_step(night, out))
    _record_step(night, out)


def _record_step(night: Night, out: Path) -> None:
    """Record the steps of the last checkpoint. Raises OutOfTime where a person has cancelled the run."""
    run, step = night.read(), _read_step(out)
    _check_open(run)
    if step != run.step:
        night.record(step=step)


def _check_open(run: LearningRun) -> None:
    if run.state not in learning.OPEN:
        raise OutOfTime("the run was cancelled")


def _read_step(out: Path) -> int:
    """Return the steps of the last checkpoint."""
    try:
        lines = (out / "log.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def _evaluate(night: Night, target: Target) -> None:
    """Compare both versions on the test cases, install the new one, and keep the numbers."""
    run, found = night.read(), night.folder / "scores.json"
    bundle = night.folder / RUN / "bundle"
    words = ["evaluate", str(bundle), "--manifest", str(night.folder / _TABLE), "--against", run.base, "--json"]
    words += ["--configuration", run.settings["configuration"], "--device", run.settings["device"]]
    out = night.folder / RUN
    night.commands.run(words, log=night.folder / "evaluate.log", output=found, watch=lambda: _record_step(night, out))
    scores = compare_rows(json.loads(found.read_text()), run.cases, run.model, run.base, target.figure)
    _check_open(night.read())
    digest = _install(night, run, bundle)
    with night.sessions.begin() as session:
        if run.settings["shadow"]:
            _start_shadow(session, night, run)
        night.move_in(session, LearningState.EVALUATED, "trained and evaluated", scores=scores, model_digest=digest)


def _install(night: Night, run: LearningRun, bundle: Path) -> str:
    """Install the new version, unless an earlier night did; return the digest of its weights."""
    from model_zoo import installing, registry

    made = registry.read_facts(bundle)
    for facts in models.list_bundles(night.config):
        if f"{facts.name}@{facts.version}" == run.model:
            if facts.digest == made.digest:
                return facts.digest
            raise NotAllowed(f"{run.model} is installed with other weights")
    policy = deploying.build_policy(night.config.models)
    with installing.stage_bundle(bundle, night.config.models_dir, policy) as staged:
        facts = staged.commit()
    with night.sessions.begin() as session:
        who = f"learning {run.name}"
        deploying.record_installation(session, facts, signed_by="", who=who, now=night.now())
    return facts.digest


def _start_shadow(session: Session, night: Night, run: LearningRun) -> None:
    """Deploy the new version as the shadow, unless another one runs."""
    if DeploymentMode.SHADOW in deployments.find_in_force(session, run.pipeline):
        _log.warning("learning %s: another shadow of %s runs; it stays", run.name, run.pipeline)
        return
    deploying.deploy(
        session, night.config, model=run.model, pipeline=run.pipeline, mode=DeploymentMode.SHADOW,
        who=f"learning {run.name}", why=f"learning run {run.id}", now=night.now(),
    )  # fmt: skip


def _end_night(night: Night, reason: str) -> None:
    """Record the end of a night. Several nights in a row without a new checkpoint or an evaluation end the run."""
    run = night.read()
    is_idle = run.state is LearningState.TRAINING and run.step == night.first_step
    idle_nights = run.idle_nights + 1 if is_idle else 0
    with night.sessions.begin() as session:
        session.get_one(LearningRun, run.id).idle_nights = idle_nights
        detail = {"name": run.name, "night": run.nights, "step": run.step, "reason": reason}
        audit.append(
            session, subject="learning_runs", subject_id=run.id, event="night over", detail=detail, now=night.now()
        )
    if idle_nights >= _MOST_IDLE_NIGHTS:
        fault = f"{idle_nights} nights gave no new checkpoint: allow more hours, or lower checkpoint_every"
        _fail(night, f"{fault} ({reason})")


def _fail(night: Night, reason: str) -> None:
    with night.sessions.begin() as session:
        night.move_in(session, LearningState.FAILED, reason)
