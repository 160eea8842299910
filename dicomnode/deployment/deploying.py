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
from dicomnode.deployment import models, pipeline_names, site
from dicomnode.errors import ConfigError, NotAllowed

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts
    from model_zoo.installing import Policy

__all__ = ["build_policy", "deploy", "end_shadow", "identify_user", "record_installation", "remove", "rollback"]


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
    if mode is not DeploymentMode.CURRENT:
        _check_not_default(session, config, pipeline, facts, mode)
    try:
        return deployments.deploy(
            session, pipeline=pipeline, name=facts.name, version=facts.version, digest=facts.digest, mode=mode,
            percent=percent if mode is DeploymentMode.SHARE else None, who=who, why=why, now=now,
        )  # fmt: skip
    except InvalidTransition as error:
        raise NotAllowed(str(error)) from None


def end_shadow(session: Session, config: Config, *, pipeline: str, who: str, now: datetime) -> Deployment:
    """End the shadow version of a pipeline. Raises NotAllowed where there is none."""
    pipeline_names.check_pipeline(pipeline, config)
    try:
        return deployments.end_shadow(session, pipeline=pipeline, who=who, now=now)
    except InvalidTransition as error:
        raise NotAllowed(str(error)) from None


def rollback(session: Session, config: Config, *, pipeline: str, who: str, why: str = "", now: datetime) -> BundleFacts:
    """Return to the previous version, or to the default version where none was deployed before the current one.

    Returns the bundle in use now. Raises NotAllowed where no version is deployed, BundleError for a damaged version.
    """
    from model_zoo import registry
    from model_zoo.bundle import BundleError

    pipeline_names.check_pipeline(pipeline, config)
    try:
        default = pipeline_names.pin_default(pipeline, "", config)
        row = deployments.rollback(session, pipeline=pipeline, who=who, why=why, default=default, now=now)
    except InvalidTransition as error:
        raise NotAllowed(str(error)) from None
    name = deployments.format_model(row) if row else pipeline_names.find_default_bundle(pipeline, config)
    facts = models.find_bundle(name, config)
    registry.verify(facts)
    if row and facts.digest != row.digest:
        raise BundleError(f"{name} does not have the weights {row.digest} that were deployed")
    return facts


def remove(session: Session, config: Config, *, model: str, who: str, now: datetime) -> None:
    """Remove an installed bundle. Raises NotAllowed while it is in use."""
    from model_zoo import installing

    facts = models.find_bundle(model, config)
    if user := _find_default_use(session, config, facts):
        raise NotAllowed(f"{model} is the version that {user} uses by default: deploy another first, or name it there")
    if needed := deployments.list_uses(session, facts.name, facts.version):
        raise NotAllowed(f"{facts.name}@{facts.version} is {needed[0]}: deploy another first")
    name = f"{facts.name}@{facts.version}"
    detail = {"digest": facts.digest, "who": who}
    audit.append(session, subject="models", subject_id=name, event="removed", detail=detail, now=now)
    installing.remove_bundle(facts, config.models_dir)


def _check_not_default(
    session: Session, config: Config, pipeline: str, facts: BundleFacts, mode: DeploymentMode
) -> None:
    """Raise NotAllowed for a shadow or share of the version that the pipeline uses without a deployment."""
    if DeploymentMode.CURRENT in deployments.find_in_force(session, pipeline):
        return
    default = models.find_bundle(pipeline_names.find_default_bundle(pipeline, config), config)
    if (default.name, default.version) == (facts.name, facts.version):
        raise NotAllowed(f"{facts.name}@{facts.version} is what {pipeline} uses already: nothing for a {mode}")


def _find_default_use(session: Session, config: Config, facts: BundleFacts) -> str:
    """Return what uses this version without a deployment, for a message, or ""."""
    if models.find_bundle(facts.name, config).version != facts.version:
        return ""
    for route in config.routes:
        if route.model == facts.name or facts.name in _list_site_helpers(route.pipeline, config):
            return f"route {route.name}"
        has_current = DeploymentMode.CURRENT in deployments.find_in_force(session, route.pipeline)
        if not route.model and not has_current and _uses_by_default(route.pipeline, facts.name, config):
            return f"route {route.name}"
    return ""


def _uses_by_default(pipeline: str, bundle: str, config: Config) -> bool:
    try:
        return pipeline_names.find_default_bundle(pipeline, config) == bundle
    except ConfigError:  # of a route whose pipeline does not exist
        return False


def _list_site_helpers(pipeline: str, config: Config) -> tuple[str, ...]:
    """Return the helper bundles of a site's pipeline; those of the node's own pipelines are shipped."""
    try:
        return site.load_pipeline(pipeline, config).helpers if pipeline in config.pipelines.site else ()
    except ConfigError:
        return ()


def _check_bundle_fits(bundle: str, pipeline: str) -> None:
    """Raise NotAllowed where the bundle is the model of another of the node's own pipelines."""
    import pipelines

    if not pipeline_names.allows_bundle(pipeline, bundle):
        others = [name for name, own in pipelines.BUNDLES.items() if own == bundle] or [
            f"{pipeline.partition(':')[0]}:{bundle}"
        ]
        raise NotAllowed(f"{bundle} is the model of {', '.join(others)}, not of {pipeline}")
