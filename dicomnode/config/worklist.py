"""The section [worklist] of node.toml."""

from __future__ import annotations

from pydantic import Field

from dicomnode.config.section import Section
from dicomnode.config.value_types import Count, Days, Hours

__all__ = ["WorklistConfig"]


class WorklistConfig(Section):
    """The worklist (UPS-RS): off unless it is enabled.

    ``performs``: whether this node performs the workitems that name one of its routes or pipelines. ``wait_h``: how
    long a workitem waits for its inputs from its start or last change before it is canceled. ``unclaimed_days``: how
    long one that nobody claims stays SCHEDULED, counted in the same way. ``keep_days``: how long an ended workitem
    stays. ``keep_results_days``: how long retention keeps results that a workitem ordered without a destination, where
    its route does not say; 0: for ever.
    """

    enabled: bool = False
    performs: bool = True
    wait_h: Hours = 24.0
    keep_days: Days = Field(default=30.0, gt=0)
    unclaimed_days: Days = Field(default=90.0, gt=0)
    keep_results_days: Days = 0.0
    most_workitems: Count = 10_000
