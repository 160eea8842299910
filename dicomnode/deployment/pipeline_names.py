"""The pipeline names that a route may use: the node's own, a site's from node.toml, ``bundle:NAME`` or
``translate:NAME``.

Names are listed and checked without importing a pipeline, so that the receiver and the web pages can use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pipelines
from db.deployments import Version
from dicomnode.config import Config
from dicomnode.deployment import models, site
from dicomnode.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.contract import Pipeline

__all__ = [
    "allows_bundle",
    "check_model",
    "check_pipeline",
    "find_default_bundle",
    "list_pipelines",
    "pin_default",
    "resolve_pipeline",
]

_PREFIXES = (pipelines.BUNDLE_PREFIX, pipelines.TRANSLATE_PREFIX)


def list_pipelines(config: Config) -> list[str]:
    """Return the names of the node's own pipelines, the site's, and all bundles with processing steps or a plan."""
    from model_zoo import monai_rules, registry
    from model_zoo.bundle import BundleError

    names = {*pipelines.MODULES, *config.pipelines.site}
    for facts in models.list_bundles(config):
        try:
            settings = registry.read_definition(facts)[1]
            if monai_rules.has_inferer(settings):
                names.add(f"{pipelines.BUNDLE_PREFIX}{facts.name}")
            if isinstance(settings.get("plan"), dict):
                names.add(f"{pipelines.TRANSLATE_PREFIX}{facts.name}")
        except BundleError:
            continue  # 'models verify' reports it
    return sorted(names)


def check_pipeline(name: str, config: Config) -> None:
    """Raise ConfigError unless a pipeline of that name exists. The pipeline is not imported."""
    if name in config.pipelines.site:
        site.find_entry_point(name, config)
    elif f"{name}:" in _PREFIXES or name in _PREFIXES:
        raise ConfigError(f"the pipeline needs the name of its bundle: {name.rstrip(':')}:NAME")
    elif name not in pipelines.MODULES and not pipelines.find_bundle_name(name):
        forms = [f"{prefix}NAME" for prefix in _PREFIXES]
        known = ", ".join([*sorted({*pipelines.MODULES, *config.pipelines.site}), *forms])
        raise ConfigError(f"no pipeline is named {name!r}; there are: {known}")


def check_model(pipeline: str, model: str, config: Config) -> None:
    """Raise ConfigError unless the bundle of a route is installed and one for the pipeline; ``model``: "" the default.

    The default of a site's pipeline is left to those who import it.
    """
    from model_zoo.bundle import BundleError

    if pipeline in config.pipelines.site and not model:
        return
    name = model or pipelines.find_bundle_name(pipeline) or pipelines.BUNDLES[pipeline]
    try:
        bundle = models.find_bundle(name, config).name
    except BundleError as error:
        raise ConfigError(f"model of the route: {error}") from None
    if not allows_bundle(pipeline, bundle):
        raise ConfigError(f"model of the route: {bundle} is no model for {pipeline}")


def find_default_bundle(name: str, config: Config) -> str:
    """Return the name of the bundle that a pipeline uses unless another is deployed. Raises ConfigError."""
    check_pipeline(name, config)
    if name in config.pipelines.site:
        return site.load_pipeline(name, config).bundle
    return pipelines.find_bundle_name(name) or pipelines.BUNDLES[name]


def pin_default(pipeline: str, model: str, config: Config) -> Version:
    """Return the version that a job uses without a deployment; ``model``: that of its route, or "".

    A shipped bundle stays without a version, as it comes with the program. Another one is pinned to its version and
    weights, because the order of installations may differ between hosts. A site's pipeline is not imported for that.
    The route's own model is pinned without weights, by which a job would count as one of a deployment.
    """
    from model_zoo import registry
    from model_zoo.bundle import BundleError

    name = model or pipelines.find_bundle_name(pipeline)
    if not name or "@" in name or name in {facts.name for facts in registry.list_bundles()}:
        return Version(model, "")
    try:
        facts = models.find_bundle(name, config)
    except BundleError:  # the job says so where it is run
        return Version(model, "")
    return Version(f"{facts.name}@{facts.version}", "" if model else facts.digest)


def resolve_pipeline(name: str, config: Config, model: str = "") -> Pipeline:
    """Import and return the pipeline of that name.

    ``model``: NAME@VERSION of the job, for a pipeline that is built from its bundle.
    Raises ConfigError, and BundleError for an unknown bundle.
    """
    check_pipeline(name, config)
    if name in config.pipelines.site:
        return site.load_pipeline(name, config)
    if bundle := pipelines.find_bundle_name(name):
        return pipelines.load_bundle(name, models.find_bundle(model or bundle, config))
    return pipelines.load(name)


def allows_bundle(pipeline: str, bundle: str) -> bool:
    """Return whether a bundle may be deployed for a pipeline.

    ``bundle:NAME`` and ``translate:NAME`` allow the versions of NAME, and a site's pipeline any bundle. One of the
    node's own pipelines allows its own bundle and a site's, but not the bundle of another of the node's own pipelines.
    """
    if own := pipelines.find_bundle_name(pipeline):
        return own == bundle
    if pipeline not in pipelines.MODULES:
        return True
    return bundle not in pipelines.BUNDLES.values() or pipelines.BUNDLES[pipeline] == bundle
