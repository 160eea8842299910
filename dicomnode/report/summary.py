"""One sentence on a result for a reader, made from its measurements, and remarks on implausible changes.

A pipeline without a sentence of its own gets its first numbers as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from dicomnode.report.numerals import format_quantity, format_value
from pipelines.contract import Measurement

__all__ = ["find_remarks", "summarize"]

_NUMBERS_OF_OTHERS = 3
LEAST_CHANGE = 0.25
"""Share by which a lesion load changes before the change is remarked; repeated scans differ by less."""
LEAST_CHANGE_ML = 0.5

Numbers = Mapping[str, Measurement]


def summarize(pipeline: str, measurements: Sequence[Measurement], prior_date: str = "") -> str:
    """Return one sentence on the result. ``prior_date``: date of the earlier examination, empty without one."""
    found = {m.name: m for m in measurements if not m.group and math.isfinite(m.value)}
    write = _WRITERS.get(pipeline)
    return (write(found, measurements, prior_date) if write else "") or _summarize_other(found)


def find_remarks(measurements: Sequence[Measurement]) -> list[str]:
    """Return a remark on each change that is implausible without treatment or contradicts the counted lesions."""
    found = {m.name: m.value for m in measurements if not m.group and math.isfinite(m.value)}
    before, now = found.get("earlier lesion load"), found.get("lesion load compared")
    if before is None or now is None or abs(now - before) < LEAST_CHANGE_ML or before <= 0:
        return []
    share = now / before - 1
    growing = found.get("new lesions", 0) + found.get("enlarged lesions", 0)
    loads = f"from {format_value(before)} to {format_value(now)} ml"
    if share < -LEAST_CHANGE:
        contradiction = " although lesions are counted as new or enlarged" if growing else ""
        return [f"The load fell by {-100 * share:.0f} % ({loads}){contradiction}: {_CHECK} and treatment between both."]
    if share > LEAST_CHANGE and not growing:
        return [f"The load rose by {100 * share:.0f} % ({loads}) without a new or enlarged lesion: {_CHECK}."]
    return []


_CHECK = "implausible by itself, check protocol, quality and registration of both examinations"


def _summarize_lesions(found: Numbers, _: Sequence[Measurement], prior_date: str) -> str:
    if "lesions" not in found or "lesion load" not in found:
        return ""
    count = found["lesions"].value
    total = (
        f"{_count(count, 'lesion')} with a total load of {_quantity(found, 'lesion load')}" if count else "no lesion"
    )
    if "new lesions" not in found:
        text = f"{total[0].upper()}{total[1:]}" if count else "No lesion found"
        return f"{text}; not compared with the examination of {prior_date}." if prior_date else f"{text}."
    new, enlarged = (format_value(found[name].value) for name in ("new lesions", "enlarged lesions"))
    since = prior_date or "the earlier examination"
    return f"{new} new and {enlarged} enlarged lesions since {since}; {_describe_load(found)}."


def _describe_load(found: Numbers) -> str:
    load, compared, before = (
        found.get(name) for name in ("lesion load", "lesion load compared", "earlier lesion load")
    )
    text = f"total load {_quantity(found, 'lesion load')}"
    if load is None or compared is None or before is None:
        return text
    if math.isclose(load.value, compared.value, rel_tol=0.02):
        return f"{text}, was {format_value(before.value)}"
    return f"{text}; from the inputs of both {format_value(compared.value)}, was {format_value(before.value)}"


def _summarize_anatomy(found: Numbers, _: Sequence[Measurement], __: str) -> str:
    brain, cavity = found.get("brain volume"), found.get("intracranial volume")
    if brain is None or cavity is None or cavity.value <= 0:
        return ""
    share, cavity_ml = 100 * brain.value / cavity.value, format_value(cavity.value)
    text = f"Brain volume {format_value(brain.value)} ml, {share:.0f} % of the intracranial {cavity_ml} ml"
    unsure = found.get("structures of low confidence")
    return f"{text}; {_count(unsure.value, 'structure')} of low confidence." if unsure else f"{text}."


def _summarize_synthetic_pet(found: Numbers, _: Sequence[Measurement], __: str) -> str:
    parts = []
    if load := found.get("Centiloid"):
        parts.append(f"amyloid load {format_value(load.value)} Centiloid{_interval(load)}")
    if p := found.get("probability of amyloid"):
        abstained = found.get("amyloid status abstained")
        status = ", no status stated" if abstained and abstained.value else ""
        parts.append(f"probability of amyloid {format_value(p.value)}{status}")
    composites = [m for name, m in found.items() if name.endswith(" composite SUVR")]
    parts += [
        f"{m.name} {format_value(m.value)}{_interval(m)}"
        for m in composites
        if "Centiloid" not in found or "tau" in m.name
    ]
    return f"Synthetic PET, not measured: {'; '.join(parts)}." if parts else ""


def _summarize_standard_dose(found: Numbers, measurements: Sequence[Measurement], _: str) -> str:
    dose, noise = found.get("dose fraction"), found.get("noise of the input")
    if dose is None or noise is None:
        return ""
    text = f"Restored from {100 * dose.value:.3g} % of the dose; a voxel's noise was {format_value(noise.value)} %"
    biases = [m for m in measurements if m.group and m.name.endswith("mean bias") and math.isfinite(m.value)]
    if not biases:
        return f"{text}."
    largest = max(biases, key=lambda m: abs(m.value))
    return f"{text}; largest change of a region's mean {largest.value:+.1f} % ({largest.group})."


def _summarize_reconstruction(found: Numbers, _: Sequence[Measurement], __: str) -> str:
    acceleration, residual = found.get("acceleration"), found.get("chi-square")
    if acceleration is None or residual is None:
        return ""
    worst = found.get("chi-square, worst slice")
    measured = f"acceleration {format_value(acceleration.value)}: {100 / acceleration.value:.3g} % of k-space measured"
    at_worst = f", {format_value(worst.value)} in the worst slice" if worst else ""
    fit = (
        f"misfit to the measured data {format_value(residual.value)} times their noise{at_worst} (about 1 is expected)"
    )
    return f"MR image reconstructed at {measured}; {fit}."


def _summarize_ct(found: Numbers, _: Sequence[Measurement], __: str) -> str:
    views, missing, residual = (found.get(name) for name in ("views", "missing angle", "chi-square"))
    if views is None or missing is None or residual is None:
        return ""
    gap = f", {format_value(missing.value)} degrees of the needed arc were not measured" if missing.value > 0 else ""
    return (
        f"CT image reconstructed from {format_value(views.value)} views{gap}; misfit to the measured rays "
        f"{format_value(residual.value)} times their noise (about 1 is expected)."
    )


def _summarize_other(found: Numbers) -> str:
    first = list(found.values())[:_NUMBERS_OF_OTHERS]
    text = "; ".join(f"{m.name} {format_quantity(m.value, m.unit)}" for m in first)
    return f"{text[0].upper()}{text[1:]}." if text else "No number describes the whole result."


_WRITERS: Mapping[str, Callable[[Numbers, Sequence[Measurement], str], str]] = MappingProxyType({
    "synthetic_dir": _summarize_lesions, "ms_lesions": _summarize_lesions, "anatomy": _summarize_anatomy,
    "pet_synthesis": _summarize_synthetic_pet, "standard_dose_pet": _summarize_standard_dose,
    "mri_reconstruction": _summarize_reconstruction, "ct_reconstruction": _summarize_ct,
})  # fmt: skip


def _count(value: float, noun: str) -> str:
    return f"{format_value(value)} {noun}{'' if value == 1 else 's'}"


def _quantity(found: Numbers, name: str) -> str:
    return format_quantity(found[name].value, found[name].unit)


def _interval(m: Measurement) -> str:
    widest = max(m.intervals, key=lambda each: each.level, default=None)
    if widest is None:
        return ""
    return f" ({100 * widest.level:g} %: {format_value(widest.low)} to {format_value(widest.high)})"
