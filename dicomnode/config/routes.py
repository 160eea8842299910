"""The sections [[routes]] of node.toml."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from db.states import TRIAL_PREFIX, WORKITEM_PREFIX
from dicomnode.config import conditions
from dicomnode.config.conditions import Condition
from dicomnode.config.section import Section
from dicomnode.config.value_types import Days, Seconds

__all__ = ["TRIAL_PREFIX", "WORKITEM_PREFIX", "Match", "Route", "name_of_workitem", "name_with_settings"]


def _check_keyword(value: str) -> str:
    from pydicom.datadict import tag_for_keyword

    if tag_for_keyword(value) is None:
        raise ValueError(f"{value!r} is no DICOM keyword")
    return value


Keyword = Annotated[str, AfterValidator(_check_keyword)]
Match = dict[Keyword, Annotated[Condition, BeforeValidator(conditions.parse)]]
"""Conditions on one series, by DICOM keyword."""


class Route(Section):
    """A rule that sends series to a pipeline, and the pipeline's results to destinations."""

    name: str
    pipeline: str
    match: Match
    with_: dict[str, Match] = Field(default_factory=dict, alias="with")
    with_from: str = ""
    with_wait_s: Seconds = 300.0
    prior: dict[str, Match] = Field(default_factory=dict)
    prior_from: str = ""
    prior_wait_s: Seconds = 300.0
    destinations: tuple[str, ...] = ()
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    model: str = ""
    refusal_note: bool | None = None
    keep_sources_days: Days | None = None
    keep_results_days: Days | None = None
    options: dict[str, Any] = Field(default_factory=dict)


def name_of_workitem(uid: str, route: str) -> str:
    """Return the name under which the jobs of a workitem run. ``route``: that of node.toml which it orders, or ""."""
    return f"{WORKITEM_PREFIX}{uid}{f':{route}' if route else ''}"


def name_with_settings(name: str) -> str:
    """Return the name of the route in node.toml whose settings hold for jobs of a name: of a workitem the ordered one.

    "" where a workitem orders a pipeline, which has no settings of its own.
    """
    return name.removeprefix(WORKITEM_PREFIX).partition(":")[2] if name.startswith(WORKITEM_PREFIX) else name
