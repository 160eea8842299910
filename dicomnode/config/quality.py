"""The section [quality] of node.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dicomnode.config.section import Section
from pipelines.quality import InputRule

__all__ = ["QualityConfig"]


class QualityConfig(Section):
    """Limits of measurements beyond which a result is held or refused; they replace those of the model's bundle.

    ``low_confidence``: the standard deviation, relative to the signal, above which a voxel is uncertain;
    ``clinical_numbers``: whether models trained on simulation only may give any; ``refusal_note``: whether the
    destinations of a route get a note on each refused job, unless the route says otherwise; ``input_rules``: rules on
    the facts of every image, as those of a bundle's input contract.
    """

    low_confidence: float = Field(default=0.15, gt=0)
    hold_above: dict[str, float] = Field(default_factory=dict)
    hold_below: dict[str, float] = Field(default_factory=dict)
    refuse_above: dict[str, float] = Field(default_factory=dict)
    refuse_below: dict[str, float] = Field(default_factory=dict)
    clinical_numbers: Literal["withhold", "give"] = "withhold"
    refusal_note: bool = False
    input_rules: tuple[InputRule, ...] = ()
