"""The section [models] of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dicomnode.config.section import Section

__all__ = ["ModelsConfig"]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelsConfig(Section):
    """Conditions under which a bundle is installed. ``trusted_keys``: files with the Ed25519 public keys whose
    signatures count; ``trusted_code``: by bundle the SHA-256 of its configs/inference.json, whose expressions and
    classes the site has read and allows."""

    trusted_keys: tuple[Path, ...] = ()
    require_signature: bool = False
    max_bundle_gb: float = Field(default=8.0, gt=0)
    trusted_code: dict[str, Digest] = Field(default_factory=dict)
