"""Bundles on disk: find, verify by digest, load. Weights are safetensors; nothing is unpickled, nothing downloaded.

A bundle is a folder in MONAI's layout: ``configs/metadata.json``, ``configs/inference.json``,
``models/model.safetensors``, ``docs/README.md`` (the model card) and ``LICENSE``. ``metadata.json`` names the weights'
SHA-256 as ``weights_sha256``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_zoo.denoisers import Denoiser

__all__ = ["BUNDLES", "BundleError", "BundleFacts", "Model", "find", "installed", "load", "verify", "weights_digest"]

BUNDLES = Path(__file__).parent / "bundles"
WEIGHTS = Path("models") / "model.safetensors"


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
    """A verified bundle with its denoiser on a device, in evaluation mode."""

    name: str
    version: str
    digest: str
    metadata: Mapping[str, Any]
    denoiser: Denoiser
    device: str


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
    from safetensors.torch import load_file

    from model_zoo.denoisers import Denoiser
    from model_zoo.networks.local_unet import LocalUNet

    facts = find(name, version, root)
    verify(facts)
    inference = json.loads((facts.path / "configs" / "inference.json").read_text())
    definition = dict(inference["network_def"])
    target = definition.pop("_target_", None)
    if target != "model_zoo.networks.local_unet.LocalUNet":
        raise BundleError(f"{facts.name}@{facts.version}: this node does not know the network {target!r}")
    import torch

    network = LocalUNet(**definition)
    weights = {key: value.float() for key, value in load_file(facts.path / WEIGHTS).items()}
    network.load_state_dict(weights, strict=True)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to torch's stubs
    network.eval().requires_grad_(False)
    denoiser = Denoiser(network, float(inference["sigma_data"]), network.stride, bf16=bf16)
    return Model(facts.name, facts.version, facts.digest, facts.metadata, denoiser, device)
