"""The sections [[learning]] of node.toml."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from dicomnode.config.routes import Match
from dicomnode.config.section import Section
from dicomnode.config.value_types import Count

__all__ = ["LearningConfig"]


def _check_clock(value: str) -> str:
    try:
        hours, minutes = value.split(":")
        time(int(hours), int(minutes))
    except ValueError:
        raise ValueError(f'{value!r} is no time of day, such as "22:00"') from None
    return value


Clock = Annotated[str, AfterValidator(_check_clock)]


class LearningConfig(Section):
    """A pipeline whose model is trained at night on the cases that people decided on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    pipeline: str
    start: Clock = "22:00"
    hours: float = Field(default=6.0, gt=0, le=24)
    new_cases: Count = 20
    test_cases: Count = 10
    with_: dict[str, Match] = Field(default_factory=dict, alias="with")
    numbers: dict[str, float] = Field(default_factory=dict)
    configuration: Literal["cpu", "gpu", "smoke"] = "cpu"
    set_: dict[str, Any] = Field(default_factory=dict, alias="set")
    device: str = "cpu"
    shadow: bool = False

    def find_night(self, local: datetime) -> tuple[datetime, datetime] | None:
        """Return begin and end of the night that contains this local time, or None between two nights."""
        hour, minute = map(int, self.start.split(":"))
        today = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
        for begin in (today, today - timedelta(days=1)):
            end = begin + timedelta(hours=self.hours)
            if begin <= local < end:
                return begin, end
        return None
