"""The section [models] of node.toml: what is demanded of bundles before they are installed."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dicomnode.results.preferences import Section

__all__ = ["ModelsConfig"]


class ModelsConfig(Section):
    """``trusted_keys``: files with the Ed25519 public keys of those whose signature counts."""

    trusted_keys: tuple[Path, ...] = ()
    require_signature: bool = False
    max_bundle_gb: float = Field(default=8.0, gt=0)
