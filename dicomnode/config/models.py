"""The sections [models] and [pipelines] of node.toml: what is demanded of bundles, and which pipelines a site adds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dicomnode.config.results import Section

__all__ = ["ModelsConfig", "PipelinesConfig"]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelsConfig(Section):
    """``trusted_keys``: files with the Ed25519 public keys of those whose signature counts. ``trusted_code``: by bundle
    the SHA-256 of its configs/inference.json, whose expressions and classes the site has read and allows."""

    trusted_keys: tuple[Path, ...] = ()
    require_signature: bool = False
    max_bundle_gb: float = Field(default=8.0, gt=0)
    trusted_code: dict[str, Digest] = Field(default_factory=dict)


class PipelinesConfig(Section):
    """``site``: names of entry points of the group dicomnode.pipelines; no other is looked at."""

    site: tuple[str, ...] = ()
