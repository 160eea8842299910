"""Bundles on disk: find, verify by digest, load. Weights are safetensors; nothing is unpickled, nothing downloaded.

A bundle is a folder in MONAI's layout: ``configs/metadata.json``, ``configs/inference.json``,
``models/model.safetensors``, ``docs/README.md`` (the model card) and ``LICENSE``. ``metadata.json`` names the weights'
SHA-256 as ``weights_sha256``; ``inference.json`` holds the network's definition as ``network_def`` and, beside it, the
fixed scales and settings that the pipeline needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from model_zoo.denoisers import Denoiser

__all__ = [
    "BUNDLES",
    "NETWORKS",
    "WEIGHTS",
    "BundleError",
    "BundleFacts",
    "Model",
    "find",
    "installed",
    "load",
    "load_from",
    "memory_format",
    "read_facts",
    "verify",
    "weights_digest",
]

BUNDLES = Path(__file__).parent / "bundles"
WEIGHTS = Path("models") / "model.safetensors"

NETWORKS = frozenset(
    {
        "model_zoo.networks.local_unet.LocalUNet",
        "model_zoo.networks.pet_unet.PetUNet",
        "model_zoo.networks.volume_unet.VolumeUNet",
    }
)
"""What ``network_def`` may name as ``_target_``: a bundle's configuration cannot call anything else."""


class BundleError(Exception):
    """A bundle is missing, damaged or not what its metadata says. The message says which and where."""


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle says of itself: read without torch."""

    path: Path
    name: str
    version: str
    digest: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A verified bundle with its network on a device, in evaluation mode, without gradients.

    ``settings``: ``inference.json`` without ``network_def``. ``bf16``: run the denoiser's network in bfloat16.
    ``helpers``: further models that its pipeline uses, by bundle.
    """

    name: str
    version: str
    digest: str
    metadata: Mapping[str, Any]
    network: nn.Module
    settings: Mapping[str, Any]
    device: str
    bf16: bool = False
    helpers: Mapping[str, Model] = field(default_factory=dict)

    @property
    def simulation_only(self) -> bool:
        """Whether no patient's image was in the training: its numbers then say nothing about patients."""
        return str(self.metadata.get("trained_on", "")).startswith("simulation only")

    @property
    def denoiser(self) -> Denoiser:
        """The network as D(x, sigma). Raises BundleError where the bundle holds no denoiser."""
        from model_zoo.denoisers import Denoiser

        if "sigma_data" not in self.settings:
            raise BundleError(f"{self.name}@{self.version} is not a denoiser: inference.json has no sigma_data")
        stride = int(self.network.stride)  # type: ignore[arg-type]  # a module's attributes are untyped
        return Denoiser(self.network, float(self.settings["sigma_data"]), stride, bf16=self.bf16)


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_facts(path: Path) -> BundleFacts:
    """Metadata of the bundle at ``path``; raises BundleError where a file or a key is missing."""
    try:
        metadata = json.loads((path / "configs" / "metadata.json").read_text())
        return BundleFacts(path, metadata["name"], metadata["version"], metadata["weights_sha256"], metadata)
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise BundleError(f"{path.name}: configs/metadata.json cannot be read ({error})") from error


def installed(root: Path = BUNDLES) -> list[BundleFacts]:
    """Every bundle below ``root``, by name and version."""
    found = [read_facts(p.parent.parent) for p in root.glob("*/configs/metadata.json")]
    return sorted(found, key=lambda facts: (facts.name, facts.version))


def find(name: str, version: str | None = None, root: Path = BUNDLES) -> BundleFacts:
    """The bundle of that name (and version). Raises BundleError naming what there is instead."""
    found = [f for f in installed(root) if f.name == name and version in (None, f.version)]
    if not found:
        known = ", ".join(f"{f.name}@{f.version}" for f in installed(root)) or "none"
        raise BundleError(f"no bundle {name}{'@' + version if version else ''}; installed: {known}")
    return found[-1]


def verify(facts: BundleFacts) -> None:
    """Raise BundleError unless the weights file has the digest that the metadata names."""
    weights = facts.path / WEIGHTS
    if not weights.is_file():
        raise BundleError(f"{facts.name}@{facts.version}: {WEIGHTS} is missing")
    actual = weights_digest(weights)
    if actual != facts.digest:
        raise BundleError(
            f"{facts.name}@{facts.version}: the weights' SHA-256 is {actual}, but metadata.json says {facts.digest}"
        )


def load(
    name: str, version: str | None = None, *, device: str = "cpu", bf16: bool = False, root: Path = BUNDLES
) -> Model:
    """Verify and load a bundle. Raises BundleError when it is missing, damaged or of an unknown network."""
    return load_from(find(name, version, root), device=device, bf16=bf16)


def load_from(facts: BundleFacts, *, device: str = "cpu", bf16: bool = False) -> Model:
    """The same for a bundle that ``find`` or ``read_facts`` found."""
    verify(facts)
    called = f"{facts.name}@{facts.version}"
    try:
        settings = json.loads((facts.path / "configs" / "inference.json").read_text())
        definition = dict(settings.pop("network_def"))
    except (OSError, KeyError, ValueError) as error:
        raise BundleError(f"{called}: configs/inference.json cannot be read ({error})") from error
    network = _network(called, definition, facts.path / WEIGHTS)
    network.to(device, memory_format=memory_format(network))  # type: ignore[call-overload]  # unknown to torch's stubs
    network.eval().requires_grad_(False)
    return Model(facts.name, facts.version, facts.digest, facts.metadata, network, settings, device, bf16)


def _network(called: str, definition: dict[str, Any], weights: Path) -> nn.Module:
    """The network of ``definition`` with its weights in float32."""
    from safetensors.torch import load_file

    target = definition.pop("_target_", None)
    if target not in NETWORKS:
        raise BundleError(f"{called}: this node does not know the network {target!r}")
    module, _, kind = str(target).rpartition(".")
    try:
        network: nn.Module = getattr(import_module(module), kind)(**definition)
        found = load_file(weights)
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in found.items()}, strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{called}: the weights and inference.json do not fit together ({reason})") from error
    return network


def memory_format(network: nn.Module) -> torch.memory_format:
    """Channels last for convolutions of the network's dimension: what bfloat16 convolutions are fast in."""
    import torch

    dimensions = {p.dim() for p in network.parameters()}
    if 5 in dimensions:
        return torch.channels_last_3d
    return torch.channels_last if 4 in dimensions else torch.preserve_format
