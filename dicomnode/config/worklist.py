"""The section [worklist] of node.toml."""

from __future__ import annotations

from pydantic import Field

from dicomnode.config.section import Section
from dicomnode.config.value_types import Count, Days, Hours

__all__ = ["WorklistConfig"]


class WorklistConfig(Section):
    """The worklist (UPS-RS): off unless it is enabled.

    ``performs``: whether this node performs the workitems that name one of its routes or pipelines. ``wait_h``: how
    long a workitem waits for its inputs from its start or last change before it is canceled. ``keep_days``: how long
    an ended workitem stays.
    """

    enabled: bool = False
    performs: bool = True
    wait_h: Hours = 24.0
    keep_days: Days = Field(default=30.0, gt=0)
    most_workitems: Count = 10_000
