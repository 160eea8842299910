"""The section [spool] of node.toml."""

from __future__ import annotations

from pydantic import Field

from dicomnode.config.section import Section
from dicomnode.config.value_types import OptionalPath

__all__ = ["SpoolConfig"]


class SpoolConfig(Section):
    """The folder of received files (None: ``spool`` under data_dir), and the fill level of its disk above which
    instances are refused."""

    dir: OptionalPath = None
    min_free_gb: float = Field(default=1.0, ge=0)
    refuse_at_percent: float = Field(default=95.0, gt=0, le=100)
