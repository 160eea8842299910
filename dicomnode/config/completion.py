"""The section [completion] of node.toml."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from dicomnode.config.section import Section
from dicomnode.config.value_types import Days, Seconds

__all__ = ["CompletionConfig"]


class CompletionConfig(Section):
    """The silence, and the longest wait, after which a study counts as complete.

    ``offer_again_days``: how long a study that no route took is offered to changed routes again; 0: never.
    """

    quiet_s: Seconds = 60.0
    maximum_s: Seconds = 3600.0
    offer_again_days: Days = 7.0

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.quiet_s > self.maximum_s:
            raise ValueError(
                f"quiet_s = {self.quiet_s:g} is above maximum_s = {self.maximum_s:g}: it would never count"
            )
        return self
