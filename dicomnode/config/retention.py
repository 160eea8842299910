"""The section [retention] of node.toml."""

from __future__ import annotations

from dicomnode.config.quantities import Days
from dicomnode.config.results import Section

__all__ = ["RetentionConfig"]


class RetentionConfig(Section):
    """How long what is delivered stays here, in days; 0: for ever. Routes may say otherwise for theirs.

    ``unrouted_days``: studies that no route took. ``priors_days``: bounds how long an examination stays only because a
    route may want it as the earlier one; 0: as long as it is the newest.
    """

    sources_days: Days = 0.0
    results_days: Days = 0.0
    unrouted_days: Days = 0.0
    priors_days: Days = 0.0

    @property
    def deletes(self) -> bool:
        """Whether anything is ever deleted by these."""
        return bool(self.sources_days or self.results_days or self.unrouted_days)
