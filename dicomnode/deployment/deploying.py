"""Which version of a model a pipeline uses, decided by a person: the rows, and the bundles that they name.

What is deployed is here and whole, in the very weights that the row names; what something needs is not removed.
"""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from db import audit, deployments
from db.models import Deployment
from db.states import DeploymentMode, MoveRefused
from dicomnode.config import Config
from dicomnode.deployment import models, pipeline_names
from dicomnode.errors import NotAllowed

if TYPE_CHECKING:
    from model_zoo.installing import Policy
    from model_zoo.registry import BundleFacts

__all__ = ["deploy", "installed", "policy", "remove", "rollback", "user"]


def user() -> str:
    """Who sits at this command line, as the machine knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return "unknown"


def policy(config: Config) -> Policy:
    """What [models] demands of bundles."""
    from model_zoo.installing import Policy

    own = config.models
    keys = tuple(config.path.parent / file for file in own.trusted_keys)
    return Policy(int(own.max_bundle_gb * 1e9), keys, own.require_signature, own.trusted_code)


def installed(session: Session, facts: BundleFacts, *, signed_by: str, who: str, now: datetime) -> None:
    """Say in the audit trail that a bundle was installed."""
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
    """From the next routed study on, the pipeline uses NAME@VERSION, or as ``mode`` says.

    Raises BundleError for a bundle that is not here or not whole, ConfigError for a pipeline that nobody has.
    """
    from model_zoo import registry

    pipeline_names.check(pipeline, config)
    if mode is DeploymentMode.SHARE and not (percent is not None and 0 < percent < 100):
        raise NotAllowed("a share is between 0 and 100 percent of the studies, and neither of them")
    facts = models.bundle_named(model, config)
    _check_fits(facts.name, pipeline)
    registry.verify(facts)
    try:
        return deployments.deploy(
            session, pipeline=pipeline, name=facts.name, version=facts.version, digest=facts.digest, mode=mode,
            percent=percent if mode is DeploymentMode.SHARE else None, who=who, why=why, now=now,
        )  # fmt: skip
    except MoveRefused as error:
        raise NotAllowed(str(error)) from None


def rollback(session: Session, config: Config, *, pipeline: str, who: str, why: str = "", now: datetime) -> Deployment:
    """Back to the version before, at once. Raises NotAllowed where there is none, BundleError where it is damaged."""
    from model_zoo import registry
    from model_zoo.registry import BundleError

    pipeline_names.check(pipeline, config)
    try:
        row = deployments.rollback(session, pipeline=pipeline, who=who, why=why, now=now)
    except MoveRefused as error:
        raise NotAllowed(str(error)) from None
    facts = models.bundle_named(deployments.called(row), config)
    registry.verify(facts)
    if facts.digest != row.digest:
        raise BundleError(f"{deployments.called(row)} is not in the weights {row.digest} that were deployed")
    return row


def remove(session: Session, config: Config, *, model: str, who: str, now: datetime) -> None:
    """Take an installed bundle away. Raises NotAllowed while something needs it."""
    from model_zoo import installing

    facts = models.bundle_named(model, config)
    if needed := deployments.named_by(session, facts.name, facts.version):
        raise NotAllowed(f"{facts.name}@{facts.version} is {needed[0]}: deploy another first")
    called = f"{facts.name}@{facts.version}"
    detail = {"digest": facts.digest, "who": who}
    audit.append(session, subject="models", subject_id=called, event="removed", detail=detail, now=now)
    installing.remove(facts, config.models_dir)


def _check_fits(bundle: str, pipeline: str) -> None:
    """A site's own names say nothing; one of ours for another pipeline is a slip."""
    import pipelines

    if not pipeline_names.may_use(pipeline, bundle):
        others = [name for name, own in pipelines.BUNDLES.items() if own == bundle] or [
            f"{pipelines.BUNDLE_PREFIX}{bundle}"
        ]
        raise NotAllowed(f"{bundle} is the model of {', '.join(others)}, not of {pipeline}")
