"""What a route may name as its pipeline: one of ours, a site's that node.toml names, or ``bundle:NAME``.

Names alone are known without importing a pipeline, so that the receiver and the pages can speak of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pipelines
from dicomnode.config import Config
from dicomnode.deployment import models, site
from dicomnode.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.contract import Pipeline

__all__ = ["check", "may_use", "named", "names"]


def names(config: Config) -> list[str]:
    """Ours, the site's, and every bundle that says how to come from an image to a result."""
    from model_zoo import monai_rules, registry
    from model_zoo.registry import BundleError

    found = {*pipelines.MODULES, *config.pipelines.site}
    for facts in models.installed(config):
        try:
            if monai_rules.has_code(registry.definition_of(facts)[1]):
                found.add(f"{pipelines.BUNDLE_PREFIX}{facts.name}")
        except BundleError:
            continue  # 'models verify' tells of it
    return sorted(found)


def check(name: str, config: Config) -> None:
    """Raise ConfigError unless there is such a pipeline; nothing is imported."""
    if name in config.pipelines.site:
        site.entry_point(name, config)
    elif name == pipelines.BUNDLE_PREFIX.rstrip(":"):
        raise ConfigError(f"the pipeline is written with its bundle: {pipelines.BUNDLE_PREFIX}NAME")
    elif name not in pipelines.MODULES and not _bundle(name):
        known = ", ".join([*sorted({*pipelines.MODULES, *config.pipelines.site}), f"{pipelines.BUNDLE_PREFIX}NAME"])
        raise ConfigError(f"no pipeline is named {name!r}; there are: {known}")


def named(name: str, config: Config, model: str = "") -> Pipeline:
    """The pipeline itself, imported; ``model``: NAME@VERSION of the job, for a pipeline that is made from its bundle.

    Raises ConfigError, and BundleError where there is no such bundle.
    """
    check(name, config)
    if name in config.pipelines.site:
        return site.load(name, config)
    if bundle := _bundle(name):
        return pipelines.load_bundle(models.bundle_named(model or bundle, config))
    return pipelines.load(name)


def may_use(pipeline: str, bundle: str) -> bool:
    """One of our pipelines goes with its own bundle and with those of other names, not with another pipeline's.

    ``bundle:NAME`` goes with the versions of NAME; a site's pipeline with any.
    """
    if own := _bundle(pipeline):
        return own == bundle
    if pipeline not in pipelines.MODULES:
        return True
    return bundle not in pipelines.BUNDLES.values() or pipelines.BUNDLES[pipeline] == bundle


def _bundle(name: str) -> str:
    return name.removeprefix(pipelines.BUNDLE_PREFIX) if name.startswith(pipelines.BUNDLE_PREFIX) else ""
