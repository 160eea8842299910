"""The choice of the files for each input of a pipeline: as a route of node.toml chooses, else by facts and contract.

Without a route a candidate is possible for an input if it breaks none of the rules by which the model refuses, is of
the input's modality, and is no computed image. Words of its description speak for it, or the inversion time where the
model has a rule on it. What is still ambiguous is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dicomnode.config import Route
from dicomnode.config.conditions import Condition, matches
from dicomnode.datasets.ages import parse_age
from dicomnode.errors import InputRefused, NotFound
from dicomnode.local_runs.candidates import Candidate
from dicomnode.nifti.facts import KEYWORDS
from dicomnode.routing.examination import read_examination
from pipelines.contract import Covariates, Input, KSpace, Projections, Volume
from pipelines.quality import FACTS, InputRule

__all__ = ["Choice", "choose", "find_left_out", "refuse_shared_inputs", "refuse_unclear_facts"]

_T1W = r"(?i)mprage|mp2rage|bravo|spgr|tfe|t1"
_INPUTS = MappingProxyType({
    "flair": ("MR", r"(?i)flair"), "t1w": ("MR", _T1W), "mr": ("MR", _T1W), "head": ("MR", ""), "pet": ("PT", ""),
    "ct": ("CT", ""),
})  # fmt: skip
"""Modality of an input, and words of its description; "": the modality is enough."""
_NEVER_T1W = re.compile(r"(?i)flair|gd|post|contrast")
_SILENT = "neither its description nor an inversion time says so"
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "SequenceName")


@dataclass(frozen=True)
class Choice:
    """Candidates by input name, and the reason in words."""

    inputs: Mapping[str, Candidate]
    why: str


def choose(
    inputs: Sequence[Input],
    candidates: Sequence[Candidate],
    rules: Mapping[str, Sequence[InputRule]],
    routes: Sequence[Route] = (),
    explicit: Mapping[str, Candidate] = MappingProxyType({}),
    without: Sequence[str] = (),
) -> list[Choice]:
    """Return the inputs of each run: one per acquisition of k-space, or per series that a route matches, or per group.

    ``rules``: input contract of the model; ``routes``: those of node.toml that use the pipeline; ``explicit``:
    candidates that the user names; ``without``: optional inputs that stay empty.
    Raises InputRefused for an ambiguous choice, NotFound where nothing fits.
    """
    main = inputs[0]
    _refuse_synthetic(inputs, explicit)
    usable = [each for each in candidates if _suits(each, main) and not each.is_labels]
    optional = [each for each in inputs[1:] if each.kind is not Covariates and each.name not in without]
    if main.kind in (KSpace, Projections):
        return [Choice({main.name: each}, "each acquisition") for each in _mains(main, explicit, usable)]
    if main.name not in explicit:
        routed = [choice for route in routes for choice in _choose_by_route(route, main, usable, candidates)]
        if routed:
            return [Choice({**each.inputs, **explicit}, each.why) for each in _drop(routed, without)]
    return [
        _complete(choice, optional, usable, rules, explicit) for choice in _choose_main(main, usable, rules, explicit)
    ]


def find_left_out(choices: Sequence[Choice], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first measured image of each study or subject of which no run takes anything."""
    used_groups = {each.group for choice in choices for each in choice.inputs.values()}
    measured = [each for each in candidates if not each.is_synthetic and not each.is_labels]
    first = {each.group: each for each in reversed(measured) if each.group not in used_groups}
    return list(reversed(first.values()))


def refuse_shared_inputs(choices: Sequence[Choice], main: Input, explicit: Collection[str]) -> None:
    """Raise InputRefused where a further input that the user names would go to several studies or subjects."""
    mains = {choice.inputs[main.name].group: choice.inputs[main.name].name for choice in choices}
    further = [name for name in explicit if name != main.name]
    if further and len(mains) > 1:
        raise InputRefused(
            f"--with {further[0]} is of one subject, but IN has images of {len(mains)}: {', '.join(mains.values())}; "
            "run each by itself"
        )


def refuse_unclear_facts(choice: Choice, rules: Mapping[str, Sequence[InputRule]]) -> None:
    """Raise InputRefused where a rule that refuses is on a fact that a table has and does not state.

    ``rules``: those on each input, of the model and of the node.
    """
    reasons = {
        f"{name}: {FACTS[rule.fact][0]} (--fact {name}.{rule.fact}=...) is not stated, because {why}"
        for name, each in choice.inputs.items()
        for rule in rules.get(name, ())
        if rule.otherwise == "refuse" and (why := each.unclear.get(KEYWORDS.get(rule.fact, "")))
    }
    if reasons:
        raise InputRefused("; ".join(sorted(reasons)))


def _refuse_synthetic(inputs: Sequence[Input], explicit: Mapping[str, Candidate]) -> None:
    """Raise InputRefused for an image of the user's choice that is marked as computed."""
    images = {each.name for each in inputs if each.kind is Volume}
    for name, each in explicit.items():
        if name in images and each.is_synthetic:
            raise InputRefused(f"{each.name} for the input {name!r} is marked as synthetic: a measured image is needed")


def _suits(candidate: Candidate, main: Input) -> bool:
    """Return whether a candidate is of the kind of the first input; views of DICOM-CT-PD are a series of CT."""
    if main.kind is Projections:
        return candidate.attributes.get("Modality") == "CT" and candidate.kind != "nifti" and not candidate.is_synthetic
    if main.kind is KSpace:
        return candidate.kind == "k-space" and candidate.attributes.get("Modality") != "CT"
    return candidate.kind != "k-space"


def _mains(main: Input, explicit: Mapping[str, Candidate], usable: Sequence[Candidate]) -> list[Candidate]:
    found = [explicit[main.name]] if main.name in explicit else list(usable)
    if not found and main.kind is Projections:
        raise NotFound(f"the folder holds no Raw Data object of CT and no series of CT for the input {main.name!r}")
    if not found:
        raise NotFound(f"the folder holds no Raw Data object and no MRD file (.h5, .mrd) for the input {main.name!r}")
    return found


def _choose_by_route(
    route: Route, main: Input, usable: Sequence[Candidate], candidates: Sequence[Candidate]
) -> list[Choice]:
    """Return a choice for each series that the route matches, with the first series that each further input matches."""
    found = []
    for each in usable:
        if each.is_synthetic or not matches(route.match, each.attributes):
            continue
        own = [other for other in candidates if other.group == each.group and not other.is_synthetic]
        chosen = {main.name: each} | _first_matches(route.with_, own) | _find_priors(route, each, candidates)
        found.append(Choice(chosen, f"route {route.name}"))
    return found


def _first_matches(
    conditions: Mapping[str, Mapping[str, Condition]], usable: Sequence[Candidate]
) -> dict[str, Candidate]:
    found = {
        name: next((one for one in usable if matches(each, one.attributes)), None) for name, each in conditions.items()
    }
    return {name: each for name, each in found.items() if each is not None}


def _find_priors(route: Route, main: Candidate, usable: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return the prior inputs of the route, from the newest earlier study of the same patient that has any."""
    own = read_examination(main.attributes)
    measured = [each for each in usable if not each.is_synthetic and not each.is_labels]
    dated = [(read_examination(each.attributes), each) for each in measured]
    earlier = [(then, each) for then, each in dated if then.is_same_patient(own) and then.precedes(own)]
    for group in dict.fromkeys(each.group for _, each in sorted(earlier, key=lambda pair: pair[0].date, reverse=True)):
        if found := _first_matches(route.prior, [each for _, each in earlier if each.group == group]):
            return found
    return {}


def _drop(choices: Sequence[Choice], without: Sequence[str]) -> list[Choice]:
    return [
        Choice({name: found for name, found in each.inputs.items() if name not in without}, each.why)
        for each in choices
    ]


def _choose_main(
    main: Input,
    usable: Sequence[Candidate],
    rules: Mapping[str, Sequence[InputRule]],
    explicit: Mapping[str, Candidate],
) -> list[Choice]:
    if main.name in explicit:
        return [Choice({main.name: explicit[main.name]}, f"--with {main.name}")]
    if not usable:
        raise NotFound(f"the folder holds no DICOM series of images and no NIfTI file for the input {main.name!r}")
    if len(usable) == 1 and not usable[0].is_synthetic:  # the pipeline itself says best why it refuses one
        return [Choice({main.name: usable[0]}, "the only one")]
    found, faults = [], []
    for group in dict.fromkeys(each.group for each in usable):
        own = [each for each in usable if each.group == group]
        possible = _select(main.name, own, rules.get(main.name, ()), is_main=True)
        if len(possible) > 1:
            raise _ambiguous(main, possible)
        found += [Choice({main.name: each}, "the only one that fits") for each in possible]
        faults += [f"{each.name}: {_find_fault(main.name, each, rules.get(main.name, ())) or _SILENT}" for each in own]
    if not found:
        raise NotFound(
            f"nothing fits the input {main.name!r}: {'; '.join(faults[:5])}; --with {main.name}=PATH says it"
        )
    return found


def _complete(
    choice: Choice,
    optional: Sequence[Input],
    usable: Sequence[Candidate],
    rules: Mapping[str, Sequence[InputRule]],
    explicit: Mapping[str, Candidate],
) -> Choice:
    """Add the further inputs: those named by the user, and what fits in the group of the first one."""
    chosen = dict(choice.inputs)
    group = next(iter(chosen.values())).group
    for each in optional:
        if each.name in explicit:
            chosen[each.name] = explicit[each.name]
            continue
        own = [one for one in usable if one.group == group and one not in chosen.values()]
        possible = [] if each.is_prior else _select(each.name, own, rules.get(each.name, ()), is_main=False)
        if len(possible) > 1:
            raise _ambiguous(each, possible)
        if possible:
            chosen[each.name] = possible[0]
    return Choice(chosen, choice.why)


def _ambiguous(each: Input, possible: Sequence[Candidate]) -> InputRefused:
    names = ", ".join(one.name for one in possible)
    other = "" if each.required else f", or --without {each.name}"
    return InputRefused(
        f"the input {each.name!r} could be each of: {names}; say which by --with {each.name}=PATH{other}"
    )


def _select(
    name: str, candidates: Sequence[Candidate], rules: Sequence[InputRule], *, is_main: bool
) -> list[Candidate]:
    """Return the possible candidates that something speaks for, those with words for it first, and no derived ones.

    Only a main input of which no modality and no words are known takes a candidate that nothing speaks for.
    """
    possible = [each for each in candidates if not _find_fault(name, each, rules)]
    possible = [each for each in possible if not _has_type(each, "DERIVED")] or possible
    modality, words = _INPUTS.get(name, ("", ""))
    if not words:
        known = [each for each in possible if modality and each.attributes.get("Modality") == modality]
        return possible if is_main else known
    return [each for each in possible if _is_described(each, words)] or [
        each for each in possible if _has_inversion_time(each, rules)
    ]


def _is_described(candidate: Candidate, words: str) -> bool:
    text = " ".join(str(candidate.attributes.get(keyword) or "") for keyword in _DESCRIPTIONS)
    return bool(re.search(words, text)) and not (words == _T1W and _NEVER_T1W.search(text))


def _has_inversion_time(candidate: Candidate, rules: Sequence[InputRule]) -> bool:
    """Return whether a rule names the inversion time, which tells a sequence, and the candidate states one."""
    return any(rule.fact == "ti_ms" for rule in rules) and _read_fact(candidate, "ti_ms") is not None


def _find_fault(name: str, candidate: Candidate, rules: Sequence[InputRule]) -> str:
    """Return why the candidate cannot be this input, or ""."""
    modality = _INPUTS.get(name, ("", ""))[0]
    own = candidate.attributes.get("Modality")
    if candidate.is_synthetic or _has_type(candidate, "SYNTHETIC"):
        return "it is a computed image"
    if modality and own and own != modality:
        return f"it is {own}, not {modality}"
    for rule in rules:
        value = _read_fact(candidate, rule.fact)
        if rule.otherwise == "refuse" and value is not None and not rule.allows(value):
            meaning, _, unit = FACTS[rule.fact]
            return f"its {meaning} is {value}; the model takes {rule.allowed} {unit}".rstrip()
    return ""


def _read_fact(candidate: Candidate, fact: str) -> object:
    """Return the fact as the header states it, or None where it does not, or not as the rule needs it."""
    value = candidate.attributes.get(KEYWORDS.get(fact, ""))
    if fact == "age_years":
        return parse_age(str(value or ""))
    if value in (None, "") or (FACTS[fact][2] and not isinstance(value, int | float)):
        return None
    return value


def _has_type(candidate: Candidate, term: str) -> bool:
    image_type = candidate.attributes.get("ImageType")
    return term in (image_type if isinstance(image_type, list | tuple) else [image_type])
