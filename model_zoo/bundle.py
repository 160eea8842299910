"""A bundle in memory: its metadata, the loaded model, and the error that all code about bundles raises."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from model_zoo.denoisers import Denoiser

__all__ = ["SIMULATION_ONLY", "BundleError", "BundleFacts", "Model", "weights_digest"]

SIMULATION_ONLY = "These weights were trained on simulation only. They have not been validated on patients."
"""The sentence on the model card of a bundle whose training held no patient's image."""


class BundleError(Exception):
    """A missing or damaged bundle, or one that differs from its metadata. The message names it and the file."""


@dataclass(frozen=True)
class BundleFacts:
    """The metadata of a bundle, read without torch."""

    path: Path
    name: str
    version: str
    digest: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A verified bundle with its network on a device, in evaluation mode, without gradients.

    ``settings``: ``inference.json`` without ``network_def``. ``bf16``: run the denoiser's network in bfloat16.
    ``helpers``: further models that its pipeline uses, by bundle. ``trusted_code``: the site has allowed the
    expressions of its configuration.
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
    trusted_code: bool = False

    @property
    def simulation_only(self) -> bool:
        """True where the training held no patient's image: the model's metrics then say nothing about patients."""
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
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
