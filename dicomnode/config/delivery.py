"""The section [delivery] of node.toml."""

from __future__ import annotations

from dicomnode.config.section import Section
from dicomnode.config.value_types import Count, Hours, Seconds

__all__ = ["DeliveryConfig"]


class DeliveryConfig(Section):
    """Back-off between attempts at a delivery, the circuit breaker of a destination, and the time limit of a proof."""

    backoff_s: Seconds = 5.0
    backoff_max_s: Seconds = 600.0
    give_up_after_h: Hours = 72.0
    breaker_failures: Count = 3
    breaker_open_s: Seconds = 30.0
    prove_within_h: Hours = 24.0
