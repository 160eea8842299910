"""Examinations of a case: the present one and the prior one, checked, and the inputs on which they may be compared.

A comparison of images that were made from different inputs shows the difference of the inputs. Both examinations are
therefore reduced to the inputs that both have. Differences of their protocols may look like change and are reported in
a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines import anatomy, quality
from pipelines.contract import Case, Note, Refused, Volume

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["Comparison", "Examination", "find_common_inputs", "read_present", "read_prior"]

ALONE = ({"fact": "coarsest_spacing_mm", "between": [0.4, 3.5]},)
"""The contract of a FLAIR without T1w, where the bundle has none of its own (``input_contract_without_t1w``)."""
LEAST_RATIOS = (
    ("slice thickness", "slice_thickness_mm", "mm", 1.5),
    ("field strength", "field_strength_t", "T", 1.2),
    ("inversion time", "ti_ms", "ms", 1.2),
    ("echo time", "te_ms", "ms", 1.3),
)
"""Name, fact, unit, and the least ratio of the larger to the smaller value that is reported as a difference."""
DIFFERENT_INPUTS = "inputs of the comparison"
DIFFERENT_PROTOCOLS = "protocols of the comparison"


@dataclass(frozen=True)
class Examination:
    """FLAIR and T1w of one examination, the facts of each by name, and the reasons to hold a result made from them."""

    flair: Volume
    t1w: Volume | None
    facts: Mapping[str, Mapping[str, Any]]
    hold_reasons: tuple[str, ...] = ()

    def without_t1w(self) -> Examination:
        """Return the same examination without its T1w."""
        return replace(self, t1w=None)


@dataclass(frozen=True)
class Comparison:
    """Present and prior examination with the same set of inputs, and the notes on what differs."""

    present: Examination
    prior: Examination
    notes: tuple[Note, ...]


def read_present(case: Case, model: Model, options: Any, name: str) -> Examination:
    """Return the present examination. Raises Refused for unsuitable images; ``name``: the pipeline in a refusal."""
    facts = {"flair": dict(case.facts), "t1w": dict(case.facts.get("t1w", {}))}
    examination = _read(case, "", facts, name)
    if examination.t1w is None:
        _check_alone(examination, model, options)
    return examination


def read_prior(case: Case, model: Model, options: Any, name: str) -> Examination | None:
    """Return the prior examination, checked by the contract of the present one, or None. Raises Refused."""
    if case.inputs.get("prior_flair") is None:
        return None
    facts = {each: dict(case.facts.get(f"prior_{each}", {})) for each in ("flair", "t1w")}
    try:
        examination = _read(case, "prior_", facts, name)
        inputs = {"flair": examination.flair} | ({"t1w": examination.t1w} if examination.t1w else {})
        with_facts = Case(inputs, facts["flair"] | {"t1w": facts["t1w"]})
        reasons = quality.check_input(with_facts, model.metadata, "flair", options)
    except Refused as error:
        raise Refused(f"the earlier examination: {error}") from error
    return replace(examination, hold_reasons=reasons)


def find_common_inputs(present: Examination, prior: Examination, model: Model, options: Any) -> Comparison:
    """Return both examinations with the inputs that both have. Raises Refused where those do not suffice."""
    notes = []
    if (present.t1w is None) != (prior.t1w is None):
        without, other = ("present", "earlier") if present.t1w is None else ("earlier", "present")
        text = f"The {without} examination has no T1w: both are compared from FLAIR alone, without the {other} T1w"
        notes.append(Note(DIFFERENT_INPUTS, text))
        present, prior = present.without_t1w(), prior.without_t1w()
    if prior.t1w is None:
        for name, examination in (("present", present), ("earlier", prior)):
            try:
                _check_alone(examination, model, options)
            except Refused as error:
                reason = "; ".join([*(note.text for note in notes), f"the {name} examination: {error}"])
                raise Refused(reason) from error
    if prior.hold_reasons:
        notes.append(Note("earlier examination", "; ".join(prior.hold_reasons), holds_result=True))
    if differences := describe_differences(present, prior):
        text = f"Differences of the protocols may look like change. {'; '.join(differences)}"
        notes.append(Note(DIFFERENT_PROTOCOLS, text))
    return Comparison(present, prior, tuple(notes))


def describe_differences(present: Examination, prior: Examination) -> list[str]:
    """Return the strong differences of the protocols in words, for each input that both have."""
    differences = []
    for input, now, before in (("FLAIR", present.flair, prior.flair), ("T1w", present.t1w, prior.t1w)):
        if now is None or before is None:
            continue
        key = input.casefold()
        facts = [{**e.facts[key], "slice_thickness_mm": _thickness_mm(v)} for e, v in ((present, now), (prior, before))]
        for name, fact, unit, least_ratio in LEAST_RATIOS:
            if fact == "te_ms" and now is not present.flair:
                continue  # a T1w of any short echo time has nearly the same contrast
            values = [_positive(each.get(fact)) for each in facts]
            if values[0] and values[1] and max(values) >= least_ratio * min(values):
                differences.append(f"{input}: {name} {values[0]:.4g} {unit} now, {values[1]:.4g} {unit} before")
        types = [str(each.get("acquisition_type") or "") for each in facts]
        if all(types) and types[0] != types[1]:
            differences.append(f"{input}: {types[0]} now, {types[1]} before")
    return differences


def _positive(value: Any) -> float:
    """Return a stated positive number, else 0."""
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0


def _thickness_mm(volume: Volume) -> float:
    return volume.slice_thickness_mm or max(volume.grid.spacing_mm)


def _read(case: Case, prefix: str, facts: Mapping[str, Mapping[str, Any]], name: str) -> Examination:
    flair, t1w = _volume(case, f"{prefix}flair", name), _volume(case, f"{prefix}t1w", name)
    if flair is None:
        raise Refused(f"{name} needs a FLAIR; a T1w alone does not say what DIR shows")
    anatomy.check_head(flair, facts["flair"])
    if t1w is not None:
        anatomy.check_head(t1w, facts["t1w"])
    return Examination(flair, t1w, facts)


def _check_alone(examination: Examination, model: Model, options: Any) -> None:
    """Raise Refused where a FLAIR may not be used without a T1w."""
    rules = model.metadata.get("input_contract_without_t1w", ALONE)
    alone = {**model.metadata, "input_contract": {"flair": list(rules)}}
    try:
        quality.check_input(Case({"flair": examination.flair}, examination.facts["flair"]), alone, "flair", options)
    except Refused as error:
        raise Refused(f"FLAIR without T1w: {error}") from error


def _volume(case: Case, input: str, name: str) -> Volume | None:
    volume = case.inputs.get(input)
    if volume is not None and not isinstance(volume, Volume):
        raise Refused(f"{name} takes images; {input} is none")
    return volume
