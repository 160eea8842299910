"""The bundles of this node: listed, found by name, and loaded on the configured device.

A name without a version means the default version, unless a deployment fixed the version when the job was routed: the
shipped version, or for a bundle that does not come with the program the version that was installed first. So installing
a bundle changes no result. torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from dicomnode.config import Config

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model

__all__ = ["check_monai_configuration", "find_bundle", "list_bundles", "load", "load_without_helpers"]


def list_bundles(config: Config) -> list[BundleFacts]:
    """Return all usable bundles: the installed ones, then the shipped ones, which no installed one replaces."""
    from model_zoo import registry

    shipped = registry.list_bundles()
    names = {(facts.name, facts.version) for facts in shipped}
    installed = registry.list_bundles(config.models_dir)
    return [facts for facts in installed if (facts.name, facts.version) not in names] + shipped


def find_bundle(name: str, config: Config) -> BundleFacts:
    """Return the bundle NAME@VERSION, or the default version of NAME. Raises BundleError."""
    from model_zoo import registry
    from model_zoo.bundle import BundleError

    bundle, _, version = name.partition("@")
    matching = [facts for facts in list_bundles(config) if facts.name == bundle and version in ("", facts.version)]
    if not matching:
        known = ", ".join(f"{facts.name}@{facts.version}" for facts in list_bundles(config)) or "none"
        raise BundleError(f"no bundle {name}; installed: {known}{registry.advise_on_missing(bundle)}")
    if version:
        return matching[0]
    shipped = [facts for facts in registry.list_bundles() if facts.name == bundle]
    return shipped[-1] if shipped else min(matching, key=registry.read_installation_time)


def load_without_helpers(name: str, config: Config) -> Model:
    """Load a bundle on the node's device, without helper models. Raises BundleError."""
    return load(name, (), config)


def load(
    name: str,
    helpers: Sequence[str],
    config: Config,
    *,
    digest: str = "",
    pinned: Mapping[str, str] = MappingProxyType({}),
    load_one: Callable[..., Model] | None = None,
) -> Model:
    """Load a model with its helper models, all on one device.

    ``digest``: SHA-256 of the deployed weights. ``pinned``: NAME@VERSION to use, by helper.
    ``load_one``: loader of one bundle (``model_cache.ModelCache`` in a worker).
    Raises BundleError where the installed weights are not those that were deployed.
    """
    from model_zoo import registry
    from model_zoo.bundle import BundleError

    device = _choose_device(config.worker.device)
    facts = find_bundle(name, config)
    trusted = _is_trusted(facts, config)
    if digest and facts.digest != digest:
        raise BundleError(f"{name} was deployed with the weights {digest}, but here its weights are {facts.digest}")
    load_one = load_one or registry.load_from
    model = load_one(facts, device=device)
    loaded = {each: load_one(find_bundle(pinned.get(each, each), config), device=device) for each in helpers}
    return replace(model, helpers=loaded, trusted_code=trusted)


def check_monai_configuration(facts: BundleFacts, config: Config) -> None:
    """Raise BundleError unless the bundle's MONAI configuration is trusted here and can be built."""
    from model_zoo import monai_config, monai_rules, registry

    settings = registry.read_definition(facts)[1]
    if monai_rules.has_inferer(settings):
        name = f"{facts.name}@{facts.version}"
        monai_config.build_steps(name, settings, "cpu", trusted=_is_trusted(facts, config))


def _is_trusted(facts: BundleFacts, config: Config) -> bool:
    """Return whether [models] trusted_code holds the present digest of the code in the bundle's configuration."""
    from model_zoo import monai_rules

    trusted_digest = config.models.trusted_code.get(facts.name)
    return trusted_digest is not None and trusted_digest == monai_rules.configuration_digest(facts.path)


def _choose_device(setting: str) -> str:
    if setting != "auto":
        return setting
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
