"""Deployment, rollback and removal of model versions, as a person decides them.

A deployed bundle is installed and verified, with exactly the weights that its row names. A bundle that is in use is
not removed.
"""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from db import audit, deployments
from db.models import Deployment
from db.states import DeploymentMode, InvalidTransition
from dicomnode.config import Config
from dicomnode.config.models import ModelsConfig
from dicomnode.deployment import models, pipeline_names
from dicomnode.errors import NotAllowed

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts
    from model_zoo.installing import Policy

__all__ = ["build_policy", "deploy", "identify_user", "record_installation", "remove", "rollback"]


def identify_user() -> str:
    """Return the login name of the user at this command line, or "unknown"."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return "unknown"


def build_policy(models: ModelsConfig) -> Policy:
    """Return the requirements of [models] on bundles that are installed."""
    from model_zoo.installing import Policy

    max_bytes = int(models.max_bundle_gb * 1e9)
    return Policy(max_bytes, models.trusted_keys, models.require_signature, models.trusted_code)


def record_installation(session: Session, facts: BundleFacts, *, signed_by: str, who: str, now: datetime) -> None:
    """Write the installation of a bundle to the audit trail."""
    detail = {"digest": facts.digest, "signed_by": signed_by, "who": who}
    audit.append(
        session, subject="models", subject_id=f"{facts.name}@{facts.version}", event="installed", detail=detail, now=now
    )


def deploy(
    session: Session,
    config: Config,
    *,
    model: str,
    pipeline: str,
    mode: DeploymentMode = DeploymentMode.CURRENT,
    percent: float | None = None,
    who: str,
    why: str = "",
    now: datetime,
) -> Deployment:
    """Deploy NAME@VERSION for a pipeline, from the next routed study on.

    ``mode``: for all studies, for a share of ``percent`` of them, or as the shadow of the current version.
    Raises BundleError for a bundle that is missing or damaged, ConfigError for an unknown pipeline.
    """
    from model_zoo import registry

    pipeline_names.check_pipeline(pipeline, config)
    if mode is DeploymentMode.SHARE and not (percent is not None and 0 < percent < 100):
        raise NotAllowed("a share is more than 0 and less than 100 percent of the studies")
    facts = models.find_bundle(model, config)
    _check_bundle_fits(facts.name, pipeline)
    registry.verify(facts)
    try:
        return deployments.deploy(
            session, pipeline=pipeline, name=facts.name, version=facts.version, digest=facts.digest, mode=mode,
            percent=percent if mode is DeploymentMode.SHARE else None, who=who, why=why, now=now,
        )  # fmt: skip
    except InvalidTransition as error:
        raise NotAllowed(str(error)) from None


def rollback(session: Session, config: Config, *, pipeline: str, who: str, why: str = "", now: datetime) -> Deployment:
    """Deploy the previous version again. Raises NotAllowed where there is none, BundleError where it is damaged."""
    from model_zoo import registry
    from model_zoo.bundle import BundleError

    pipeline_names.check_pipeline(pipeline, config)
    try:
        row = deployments.rollback(session, pipeline=pipeline, who=who, why=why, now=now)
    except InvalidTransition as error:
        raise NotAllowed(str(error)) from None
    facts = models.find_bundle(deployments.format_model(row), config)
    registry.verify(facts)
    if facts.digest != row.digest:
        raise BundleError(f"{deployments.format_model(row)} does not have the weights {row.digest} that were deployed")
    return row


def remove(session: Session, config: Config, *, model: str, who: str, now: datetime) -> None:
    """Remove an installed bundle. Raises NotAllowed while it is in use."""
    from model_zoo import installing

    facts = models.find_bundle(model, config)
    if needed := deployments.list_uses(session, facts.name, facts.version):
        raise NotAllowed(f"{facts.name}@{facts.version} is {needed[0]}: deploy another first")
    name = f"{facts.name}@{facts.version}"
    detail = {"digest": facts.digest, "who": who}
    audit.append(session, subject="models", subject_id=name, event="removed", detail=detail, now=now)
    installing.remove_bundle(facts, config.models_dir)


def _check_bundle_fits(bundle: str, pipeline: str) -> None:
    """Raise NotAllowed where the bundle is the model of another of the node's own pipelines."""
    import pipelines

    if not pipeline_names.allows_bundle(pipeline, bundle):
        others = [name for name, own in pipelines.BUNDLES.items() if own == bundle] or [
            f"{pipelines.BUNDLE_PREFIX}{bundle}"
        ]
        raise NotAllowed(f"{bundle} is the model of {', '.join(others)}, not of {pipeline}")
