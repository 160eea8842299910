"""The section [limits] of node.toml."""

from __future__ import annotations

from pydantic import Field

from dicomnode.config.section import Section
from dicomnode.config.value_types import Count, Seconds

__all__ = ["LimitsConfig", "RateConfig"]


class RateConfig(Section):
    """Rate limits of one sender; None: no limit."""

    max_object_mb: float | None = Field(default=None, gt=0)
    max_mb_per_minute: float | None = Field(default=None, gt=0)
    max_objects_per_minute: float | None = Field(default=None, gt=0)


class LimitsConfig(RateConfig):
    """Limits for every sender. ``associations_per_address``: the share of [node] max_associations that one machine can
    have; ``request_timeout_s``: the time that a caller has for the handshake of TLS, and then for its association
    request."""

    associations_per_address: Count = 16
    request_timeout_s: Seconds = 15.0
