"""Input contract and output gate: whether an input may enter a model, and whether its result may leave the node.

Both are data in a bundle's ``metadata.json``, so that another model brings its own:

    "input_contract": {"flair": [{"fact": "ti_ms", "between": [1500, 3000], "otherwise": "refuse"}, ...]},
    "output_limits": {"hold_above": {"chi-square": 2.0}, "refuse_below": {...}}

A rule restricts one fact of one input. A fact that the header does not state breaks no rule unless it is ``needed``.
A broken rule refuses the input, or holds the result for a person. The node's configuration adds to the output limits
and replaces limits of the same measurement; its input rules hold for the images of every route.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.contract import Case, KSpace, Measurement, Refused, Volume
from pipelines.measurement_meanings import find_meaning

__all__ = [
    "FACTS",
    "InputRule",
    "Outcome",
    "OutputLimits",
    "Verdict",
    "check_input",
    "judge_result",
    "read_input_rules",
    "read_output_limits",
]

FACTS = MappingProxyType({
    "modality": ("Modality", "(0008,0060)", ""),
    "manufacturer": ("Manufacturer", "(0008,0070)", ""),
    "body_part": ("Body Part Examined", "(0018,0015)", ""),
    "image_type": ("Image Type", "(0008,0008)", ""),
    "acquisition_type": ("MR Acquisition Type", "(0018,0023)", ""),
    "scanning_sequence": ("Scanning Sequence", "(0018,0020)", ""),
    "tr_ms": ("Repetition Time", "(0018,0080)", "ms"),
    "te_ms": ("Echo Time", "(0018,0081)", "ms"),
    "ti_ms": ("Inversion Time", "(0018,0082)", "ms"),
    "flip_angle_deg": ("Flip Angle", "(0018,1314)", "degrees"),
    "field_strength_t": ("Magnetic Field Strength", "(0018,0087)", "T"),
    "deep_learning_reconstruction": ("reconstruction by deep learning", "(0043,xxCA), (0021,xx75), (2005,xx10)", ""),
    "plane": ("Image Orientation (Patient)", "(0020,0037)", ""),
    "age_years": ("Patient's Age", "(0010,1010)", "years"),
    "weight_kg": ("Patient's Weight", "(0010,1030)", "kg"),
    "units": ("Units", "(0054,1001)", ""),
    "corrections": ("Corrected Image", "(0028,0051)", ""),
    "decay_correction": ("Decay Correction", "(0054,1102)", ""),
    "tracer": ("Radiopharmaceutical", "(0018,0031)", ""),
    "uptake_s": ("time from injection to scan", "(0018,1078)", "s"),
    "dose_fraction": ("dose over standard dose", "option dose_fraction", ""),
    "acceleration": ("acceleration", "sampling mask", ""),
    "coverage_mm": ("smallest extent", "(0020,0032), (0028,0030)", "mm"),
    "coarsest_spacing_mm": ("largest voxel spacing", "(0020,0032), (0028,0030)", "mm"),
    "finest_spacing_mm": ("smallest voxel spacing", "(0020,0032), (0028,0030)", "mm"),
})  # fmt: skip
"""Facts that a rule may restrict: displayed name, DICOM attribute, unit."""
TEXT_FACTS = frozenset({
    "modality", "manufacturer", "body_part", "image_type", "acquisition_type", "scanning_sequence", "plane", "units",
    "corrections", "decay_correction", "tracer", "deep_learning_reconstruction",
})  # fmt: skip


class InputRule(BaseModel):
    """Allowed values of a fact: within ``between``, containing a word of ``one_of``, or equal to no ``none_of``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fact: str
    between: tuple[float, float] | None = None
    one_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    needed: bool = False
    otherwise: Literal["refuse", "hold"] = "refuse"

    @model_validator(mode="after")
    def _check_consistency(self) -> InputRule:
        if self.fact not in FACTS:
            raise ValueError(f"no fact is named {self.fact!r}; there are: {', '.join(FACTS)}")
        if sum(map(bool, (self.between, self.one_of, self.none_of))) != 1:
            raise ValueError(f"the rule on {self.fact} needs exactly one of between, one_of, none_of")
        if self.between and self.fact in TEXT_FACTS:
            raise ValueError(f"{self.fact} is text: its rule needs one_of or none_of instead of between")
        return self

    def allows(self, value: Any) -> bool:
        if self.between:
            return bool(self.between[0] <= float(value) <= self.between[1])
        values = [str(each).casefold() for each in np.atleast_1d(value)]
        if self.none_of:
            return not any(term.casefold() == each for term in self.none_of for each in values)
        return any(term.casefold() in each for term in self.one_of for each in values)

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.between:
            return f"{self.between[0]:g} to {self.between[1]:g}"
        return f"none of {', '.join(self.none_of)}" if self.none_of else f"one of {', '.join(self.one_of)}"


class OutputLimits(BaseModel):
    """Limits of measurements by name; a result beyond them is held for a person, or refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hold_above: dict[str, float] = Field(default_factory=dict)
    hold_below: dict[str, float] = Field(default_factory=dict)
    refuse_above: dict[str, float] = Field(default_factory=dict)
    refuse_below: dict[str, float] = Field(default_factory=dict)

    def with_overrides(self, other: OutputLimits) -> OutputLimits:
        """Return these limits with those of ``other`` added, or in their place for the same measurement."""
        return OutputLimits(**{name: getattr(self, name) | getattr(other, name) for name in type(self).model_fields})


class Outcome(StrEnum):
    """Decision on a result."""

    ACCEPT = "accept"
    HOLD = "hold"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Verdict:
    """The gate's decision and its reasons; ``reasons`` is empty for an accepted result."""

    outcome: Outcome = Outcome.ACCEPT
    reasons: tuple[str, ...] = field(default=())

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)


def read_input_rules(metadata: Mapping[str, Any]) -> dict[str, list[InputRule]]:
    """Return the input contract of a bundle. Raises Refused for a malformed one."""
    try:
        contract = dict(metadata.get("input_contract", {}))
        return {name: [InputRule.model_validate(rule) for rule in rules] for name, rules in contract.items()}
    except (ValidationError, TypeError, ValueError) as error:
        raise Refused(f"the input contract of {_model_name(metadata)} cannot be read: {_first_error(error)}") from None


def read_output_limits(metadata: Mapping[str, Any]) -> OutputLimits:
    """Return the output limits of a bundle. Raises Refused for malformed ones."""
    try:
        return OutputLimits.model_validate(metadata.get("output_limits", {}))
    except ValidationError as error:
        raise Refused(f"the output limits of {_model_name(metadata)} cannot be read: {_first_error(error)}") from None


def check_input(
    case: Case, metadata: Mapping[str, Any], main: str, options: Any = None, site_rules: Sequence[InputRule] = ()
) -> tuple[str, ...]:
    """Return the reasons to hold the result of this case: the broken rules. Raises Refused for rules that refuse.

    ``main``: name of the input whose facts are at the top level of ``case.facts``. Options of the same name replace
    facts that no header states. ``site_rules``: rules of the node's configuration, on every image.
    """
    own = [(name, rules, _model_name(metadata)) for name, rules in read_input_rules(metadata).items()]
    images = [name for name, each in case.inputs.items() if isinstance(each, Volume)]
    broken = [
        (rule, _describe_violation(rule, name, value, author))
        for name, rules, author in (*own, *((name, site_rules, "this node") for name in images))
        if name in case.inputs
        for facts in [_collect_facts(case, name, main, options)]
        for rule in rules
        for value in [facts.get(rule.fact)]
        if (value is None and rule.needed) or (value is not None and not rule.allows(value))
    ]
    refused = [words for rule, words in broken if rule.otherwise == "refuse"]
    if refused:
        raise Refused("; ".join(refused))
    return tuple(words for _, words in broken)


def judge_result(
    measurements: Iterable[Measurement], limits: OutputLimits, hold_reasons: Sequence[str] = ()
) -> Verdict:
    """Return the verdict on a result. A value that is not a number is held.

    ``hold_reasons``: reasons to hold the result that are known already.
    """
    of_the_result = {m.name: m for m in measurements if not m.group}

    def beyond(limits: Mapping[str, float], above: bool) -> list[str]:
        return [
            _describe_excess(m, limits[name], above)
            for name, m in of_the_result.items()
            if name in limits and not (m.value <= limits[name] if above else m.value >= limits[name])
        ]

    refuse = [*beyond(limits.refuse_above, True), *beyond(limits.refuse_below, False)]
    hold = [*hold_reasons, *beyond(limits.hold_above, True), *beyond(limits.hold_below, False)]
    if refuse:
        return Verdict(Outcome.REFUSE, (*refuse, *hold))
    return Verdict(Outcome.HOLD, tuple(hold)) if hold else Verdict()


def _describe_excess(m: Measurement, limit: float, above: bool) -> str:
    """Return value and limit with their unit, what the measurement means, and what to look at."""
    meaning = find_meaning(m.name)
    unit = (meaning.unit if meaning else "") or ("" if m.unit == "1" else m.unit.replace("{", "").replace("}", ""))
    value, bound = (f"{number:{digits}} {unit}".rstrip() for number, digits in ((m.value, ".4g"), (limit, "g")))
    words = f"{meaning.text}. Look at {meaning.look_at}" if meaning else m.description
    excess = f"{m.name} is {value}, {'above' if above else 'below'} the limit of {bound}"
    return f"{excess}: {words}" if words else excess


def _collect_facts(case: Case, name: str, main: str, options: Any) -> dict[str, Any]:
    known = case.facts if name == main else case.facts.get(name, {})
    facts = {key: value for key, value in known.items() if key in FACTS}
    volume = case[name]
    if isinstance(volume, Volume):
        spacing = volume.grid.spacing_mm
        facts["coverage_mm"] = min(n * mm for n, mm in zip(volume.grid.shape, spacing, strict=True))
        facts |= {"coarsest_spacing_mm": max(spacing), "finest_spacing_mm": min(spacing)}
    elif isinstance(volume, KSpace):
        facts["acceleration"] = volume.mask.size / max(int(volume.mask.sum()), 1)
    chosen = {key: getattr(options, key, None) for key in FACTS}
    return facts | {key: value for key, value in chosen.items() if value is not None}


def _describe_violation(rule: InputRule, name: str, value: Any, author: str) -> str:
    meaning, where, unit = FACTS[rule.fact]
    unit = f" {unit}" if unit else ""
    statement = "is not stated" if value is None else f"is {_format_value(value)}{unit}"
    return f"{name}: {meaning} {where} {statement}; {author} takes {rule.allowed}{unit}"


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "\\".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _model_name(metadata: Mapping[str, Any]) -> str:
    return f"{metadata.get('name', 'the model')} {metadata.get('version', '')}".rstrip()


def _first_error(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
