"""The versions that the pipelines use: those deployed, and the default versions of pipelines without a deployment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from db import deployments
from db.models import Deployment
from db.states import DeploymentMode
from dicomnode.config import Config
from dicomnode.deployment import models, pipeline_names
from dicomnode.errors import NodeError, NotAllowed
from model_zoo.bundle import BundleError

__all__ = ["VersionInUse", "check_in_use", "list_versions_in_use"]

_REMEDY = "an administrator deploys it before its results leave; run it without delivery"
_DELIVERING = (DeploymentMode.CURRENT, DeploymentMode.SHARE)


@dataclass(frozen=True)
class VersionInUse:
    """A version that a pipeline uses: NAME@VERSION, its digest, and who deployed it; ``who``: "" for a default."""

    pipeline: str
    mode: DeploymentMode
    model: str
    digest: str
    percent: float | None = None
    who: str = ""
    why: str = ""
    started_at: datetime | None = None


def list_versions_in_use(session: Session | None, config: Config) -> list[VersionInUse]:
    """Return the versions of all pipelines that routes name or that have a deployment, the current one first.

    A pipeline that does not exist, or has no bundle, is left out. ``session``: None where there is no database yet.
    """
    found: list[VersionInUse | None] = []
    for pipeline in _list_pipelines(session, config):
        rows = deployments.find_in_force(session, pipeline) if session else {}
        if DeploymentMode.CURRENT not in rows:
            found.append(_describe_default(pipeline, config))
        found += [_describe_deployed(rows[mode]) for mode in DeploymentMode if mode in rows]
    return [each for each in found if each is not None]


def check_in_use(session: Session, config: Config, pipeline: str, model: str) -> None:
    """Raise NotAllowed unless results of the model may leave: a pipeline or a route uses it, and not as a shadow.

    ``model``: NAME or NAME@VERSION, "" for the version in force. Other weights under its name are another version.
    """
    own = [each for each in list_versions_in_use(session, config) if each.pipeline == pipeline]
    if not model and any(each.mode is DeploymentMode.CURRENT for each in own):
        return
    used: set[tuple[str, str] | None] = {(each.model, each.digest) for each in own if each.mode in _DELIVERING}
    used |= {_identify(route.model, config) for route in config.routes if route.model and route.pipeline == pipeline}
    if not model:
        raise NotAllowed(f"no route and no deployment uses {pipeline}: {_REMEDY}")
    if _identify(model, config) not in used - {None}:
        raise NotAllowed(f"{model} is not in use for {pipeline}: {_REMEDY}")


def _identify(name: str, config: Config) -> tuple[str, str] | None:
    """Return NAME@VERSION and the digest of a bundle, or None where it is not installed."""
    try:
        facts = models.find_bundle(name, config)
    except BundleError:
        return None
    return f"{facts.name}@{facts.version}", facts.digest


def _list_pipelines(session: Session | None, config: Config) -> Iterable[str]:
    history = deployments.list_history(session) if session else ()
    deployed = (row.pipeline for row in history if row.ended_at is None)
    return sorted({*deployed, *(route.pipeline for route in config.routes if not route.model)})


def _describe_default(pipeline: str, config: Config) -> VersionInUse | None:
    try:
        facts = models.find_bundle(pipeline_names.find_default_bundle(pipeline, config), config)
    except (NodeError, BundleError):  # 'dicomnode check' names it with its route
        return None
    return VersionInUse(pipeline, DeploymentMode.CURRENT, f"{facts.name}@{facts.version}", facts.digest)


def _describe_deployed(row: Deployment) -> VersionInUse:
    return VersionInUse(
        row.pipeline, row.mode, deployments.format_model(row), row.digest, row.percent, row.who, row.why, row.started_at
    )
