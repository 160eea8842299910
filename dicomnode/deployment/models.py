"""The models of this node: which bundles there are, which one a name means, and on which device it is loaded.

Bundles of the node's own, below its ``models`` folder, come before the shipped ones of the same name. A name without a
version means the newest, unless a deployment said otherwise when the job was routed. torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from dicomnode.config import Config

if TYPE_CHECKING:
    from model_zoo.registry import BundleFacts, Model

__all__ = ["bundle_named", "check_steps", "installed", "load", "model_named"]


def installed(config: Config) -> list[BundleFacts]:
    """Every bundle that can be used: the node's own, then the shipped ones whose version is not among them."""
    from model_zoo import registry

    own = registry.installed(config.models_dir)
    names = {(facts.name, facts.version) for facts in own}
    return own + [facts for facts in registry.installed() if (facts.name, facts.version) not in names]


def bundle_named(name: str, config: Config) -> BundleFacts:
    """The bundle NAME or NAME@VERSION: of this node's own if it has it, else the shipped one. Raises BundleError."""
    from model_zoo import registry

    bundle, _, wanted = name.partition("@")
    own = [facts for facts in registry.installed(config.models_dir) if facts.name == bundle]
    if any(wanted in ("", facts.version) for facts in own):
        return registry.find(bundle, wanted or None, config.models_dir)
    return registry.find(bundle, wanted or None)


def model_named(name: str, config: Config) -> Model:
    """The bundle of that name on the node's device, without helpers. Raises BundleError."""
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
    """The model with its helpers, all on one device. ``pinned``: by helper, the version that is meant.

    ``load_one``: what loads a bundle, for a worker that keeps them (``warm.Warm``). ``digest``: of the weights that
    were deployed. Raises BundleError where the bundle here has others.
    """
    from model_zoo import registry
    from model_zoo.registry import BundleError

    device = _device(config.worker.device)
    facts = bundle_named(name, config)
    trusted = _trusted(facts, config)
    if digest and facts.digest != digest:
        raise BundleError(f"{name} was deployed with the weights {digest}, but here its weights are {facts.digest}")
    load_one = load_one or registry.load_from
    model = load_one(facts, device=device)
    others = {each: load_one(bundle_named(pinned.get(each, each), config), device=device) for each in helpers}
    return replace(model, helpers=others, trusted_code=trusted)


def check_steps(facts: BundleFacts, config: Config) -> None:
    """Raise BundleError unless what the bundle has of MONAI's configuration may be used here, and can be."""
    from model_zoo import monai_config, monai_rules, registry

    settings = registry.definition_of(facts)[1]
    if monai_rules.has_code(settings):
        called = f"{facts.name}@{facts.version}"
        monai_config.built(called, settings, "cpu", trusted=_trusted(facts, config))


def _trusted(facts: BundleFacts, config: Config) -> bool:
    """Whether [models] trusted_code allows what this bundle's configuration evaluates, as it stands there now."""
    from model_zoo import monai_rules

    wanted = config.models.trusted_code.get(facts.name)
    return wanted is not None and wanted == monai_rules.digest(facts.path)


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
