"""The section [retention] of node.toml."""

from __future__ import annotations

from dicomnode.config.section import Section
from dicomnode.config.value_types import Days

__all__ = ["RetentionConfig"]


class RetentionConfig(Section):
    """Days after which delivered sources and results are deleted; 0: never. A route may set its own.

    ``unrouted_days``: for studies that no route took. ``priors_days``: the longest that an examination stays only
    because a route may compare with it as the prior; 0: as long as it is the newest. ``delete_committed``: True where
    studies go even if the node committed them to a sender, which may have deleted its own copy.
    """

    sources_days: Days = 0.0
    results_days: Days = 0.0
    unrouted_days: Days = 0.0
    priors_days: Days = 0.0
    delete_committed: bool = False

    @property
    def deletes(self) -> bool:
        """True where any of these days deletes anything."""
        return bool(self.sources_days or self.results_days or self.unrouted_days)
