"""Codes and content items of a structured report (PS3.16): measurements with their intervals, evaluations, words."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import highdicom as hd
from highdicom.sr import RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomnode.results.wording import cut_words
from pipelines import contract
from pipelines.contract import Interval, Measurement

__all__ = [
    "SCHEME",
    "SCHEME_IDENTIFICATION",
    "code_item",
    "evaluation",
    "finding_site",
    "measurement",
    "not_a_number",
    "private",
    "private_concept",
    "text",
    "to_code",
]

SCHEME = "99DICOMNODE"
COMMENT = codes.DCM.Comment
_LONGEST_MEANING = 64  # PS3.5 6.2, LO
_LONGEST_VALUE = 16  # SH
_BELOW = Code("371885007", "SCT", "-, range of lower measurement uncertainty")  # PS3.16 CID 225
_ABOVE = Code("371886008", "SCT", "+, range of upper measurement uncertainty")
_UNIT_MEANINGS = {unit.value: unit.meaning for unit in (getattr(codes.UCUM, name) for name in codes.UCUM.dir())}
_SIDES = (codes.cid244.Left, codes.cid244.Right, codes.cid244.Bilateral)


def _scheme_identification() -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = "dicomnode"
    item.CodingSchemeResponsibleOrganization = "dicomnode"
    return item


SCHEME_IDENTIFICATION = _scheme_identification()


def private(value: str, meaning: str) -> Code:
    """Return a concept of our own."""
    return Code(value, SCHEME, _cut(meaning))


def private_concept(kind: str, name: str) -> Code:
    """Return our own concept for a pipeline's name; the letter ``kind`` keeps it apart from other codes of ours."""
    short_name = f"{kind}_{re.sub('[^A-Z0-9]+', '_', name.upper()).strip('_')}"
    if len(short_name) > _LONGEST_VALUE or len(short_name) == 2:
        short_name = f"{short_name[:11]}_{hashlib.sha256(name.encode()).hexdigest()[:4].upper()}"
    return private(short_name, name or "unnamed")


def to_code(code: contract.Code) -> Code:
    """Return a pipeline's code, its meaning cut to the length of LO."""
    return Code(code.value, code.scheme, _cut(code.meaning))


def code_item(code: contract.Code) -> Dataset:
    """Return an item of a code sequence."""
    item: Dataset = hd.sr.CodedConcept.from_code(to_code(code))
    return item


def finding_site(site: contract.Code) -> hd.sr.FindingSite:
    """Return a site with its side and the part of it, if any. Raises ValueError for two modifiers of a kind."""
    modifiers = [to_code(each) for each in site.modifiers]
    sides = [each for each in modifiers if each in _SIDES]
    parts = [each for each in modifiers if each not in _SIDES]
    if len(sides) > 1 or len(parts) > 1:
        raise ValueError(f"finding site {site.meaning} has {len(sides)} sides and {len(parts)} further modifiers")
    side, part = next(iter(sides), None), next(iter(parts), None)
    return hd.sr.FindingSite(to_code(site), laterality=side, topographical_modifier=part)


def text(name: Code, words: str, relation: RelationshipTypeValues = RelationshipTypeValues.HAS_PROPERTIES) -> Dataset:
    """Return a TEXT item."""
    item: Dataset = hd.sr.TextContentItem(name=name, value=words, relationship_type=relation)
    return item


def measurement(m: Measurement) -> hd.sr.Measurement | hd.sr.QualitativeEvaluation:
    """Return TID 300, with the limits of each interval, and the distances to those of the widest one (TID 310).

    A value that is no finite number becomes an evaluation that says so: a NUM without a number is legal, but readers
    fall over it.
    """
    if not math.isfinite(m.value):
        return evaluation(_concept(m), not_a_number(m.value), [_comment(m)])
    item = hd.sr.Measurement(
        name=_concept(m),
        value=float(m.value),
        unit=_unit(m.unit),
        derivation=to_code(m.derivation) if m.quantity and m.derivation else None,
        finding_sites=[finding_site(m.site)] if m.site else None,
    )
    _append(item, [text(COMMENT, _comment(m))] if _comment(m) else [])
    widest = max(m.intervals, key=lambda each: each.level, default=None)
    for interval in m.intervals:
        _append(item, _limits(interval, m.unit))
    if widest is not None and widest.low <= m.value <= widest.high:
        _append(item, _uncertainty(widest, m))
    return item


def evaluation(name: Code, value: Code, reasons: Sequence[str] = ()) -> hd.sr.QualitativeEvaluation:
    """Return a coded answer with the words that explain it."""
    item = hd.sr.QualitativeEvaluation(name=name, value=value)
    _append(item, [text(COMMENT, words) for words in reasons if words])
    return item


def not_a_number(value: float) -> Code:
    """Return the reason for a missing number (CID 42)."""
    reasons = codes.cid42
    reason: Code = reasons.PositiveInfinity if value > 0 else reasons.NegativeInfinity
    return Code(*reasons.NotANumber) if math.isnan(value) else reason


def _concept(m: Measurement) -> Code:
    return to_code(m.quantity) if m.quantity else private_concept("M", m.name)


def _comment(m: Measurement) -> str:
    """Return the words that the concept lacks: the description, and the pipeline's name where the concept differs."""
    name = "" if _concept(m).meaning == m.name else m.name
    return ": ".join(words for words in (name, m.description) if words)


def _unit(unit: str) -> Code:
    return Code(unit or "1", "UCUM", _cut(_UNIT_MEANINGS.get(unit or "1", unit)))


def _limits(interval: Interval, unit: str) -> list[Dataset]:
    level = f"{100 * interval.level:g}"
    return [
        _number(private(f"LOW_{level}"[:_LONGEST_VALUE], f"Lower limit of the {level} % interval"), interval.low, unit),
        _number(
            private(f"HIGH_{level}"[:_LONGEST_VALUE], f"Upper limit of the {level} % interval"), interval.high, unit
        ),
    ]


def _uncertainty(interval: Interval, m: Measurement) -> list[Dataset]:
    level = f"{100 * interval.level:g} % interval"
    items = [
        _number(_BELOW, m.value - interval.low, m.unit),
        _number(_ABOVE, interval.high - m.value, m.unit),
    ]
    for item in items:
        item.ContentSequence = hd.sr.ContentSequence([text(COMMENT, level)])
    return items


def _number(name: Code, value: float, unit: str) -> Dataset:
    """Return a property of a measurement: a number, or why there is none."""
    properties = RelationshipTypeValues.HAS_PROPERTIES
    item: Dataset
    if math.isfinite(value):
        item = hd.sr.NumContentItem(name=name, value=float(value), unit=_unit(unit), relationship_type=properties)
    else:
        item = hd.sr.CodeContentItem(name=name, value=not_a_number(value), relationship_type=properties)
    return item


def _append(item: hd.sr.Measurement | hd.sr.QualitativeEvaluation, children: Sequence[Dataset]) -> None:
    if not children:
        return
    if "ContentSequence" not in item[0]:
        item[0].ContentSequence = hd.sr.ContentSequence()
    item[0].ContentSequence.extend(children)


def _cut(words: str) -> str:
    return cut_words(words.replace("\\", "/").strip(), _LONGEST_MEANING) or "unnamed"
