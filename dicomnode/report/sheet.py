"""The one page that tells what came of a job: pictures of input, result, uncertainty and difference, numbers with their
intervals, the gate's verdict and why, and what made it. Whoever reads it needs nothing else at hand.

What stands on the page is decided here, where it stands in report_layout. The patient is named only on demand: in an
archive the object's header does, and a file is passed on more easily than it was thought to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode.report.planes import Plane, planes_of, sampled
from dicomnode.results.provenance import Provenance, sentences
from pipelines.contract import (
    Case,
    Finding,
    Grid,
    Image,
    Interval,
    KSpace,
    Measurement,
    Note,
    ParametricMap,
    Segmentation,
    Volume,
)
from pipelines.quality import Outcome, Verdict

if TYPE_CHECKING:
    from dicomnode.results.page import Page

__all__ = ["Number", "Panel", "Row", "Sheet", "compose", "drawn"]

ROWS = 2
"""Of pictures; more would be stamps."""
_LOW_CONFIDENCE = "low confidence"
_WINDOW = (0.5, 99.5)
_MARGIN_MM = 8.0
_TINTS = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (170, 110, 40),
)  # fmt: skip
_VERDICTS = {
    Outcome.ACCEPT: "Accepted by the output gate.",
    Outcome.HOLD: "HELD by the output gate: not delivered before a person decides.",
    Outcome.REFUSE: "REFUSED.",
}
_FINE_PRINT = (
    "For research use only; not a medical device. The images are computed, not measured by the scanner: do not "
    "diagnose or treat by them. Pictures are scaled for the page; measure on the image objects."
)


@dataclass(frozen=True)
class Panel:
    """One picture: ``pixels`` (row, column) shown from ``low`` to ``high`` in ``unit`` by the colours of that name.

    ``labels`` (row, column): numbers of segments painted over it in ``tints``, red, green and blue by number;
    ``names``: what these segments are called.
    """

    title: str
    pixels: NDArray[np.float32]
    plane: Plane
    colours: str
    low: float
    high: float
    unit: str
    labels: NDArray[np.uint8] | None = None
    tints: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Pictures of one plane."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Number:
    """A line of the table, in words; ``group`` as the pipeline names it; ``more``: the interval, or a second number."""

    group: str
    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Sheet:
    """All that is on the page."""

    title: str
    subtitle: str
    outcome: Outcome
    verdict: str
    rows: tuple[Row, ...]
    numbers: tuple[Number, ...]
    notes: tuple[tuple[str, str], ...]
    provenance: tuple[str, ...]
    fine_print: str = _FINE_PRINT


def drawn(
    findings: Sequence[Finding],
    case: Case,
    sources: Sequence[Dataset],
    made_by: Provenance,
    now: datetime,
    verdict: Verdict,
    doubts: Sequence[str] = (),
) -> Page:
    """The page of a job, as pixels and as PDF. The same job draws the same page."""
    from dicomnode.report import layout

    return layout.page(compose(findings, case, sources, made_by, now, verdict, doubts), now)


def compose(
    findings: Sequence[Finding],
    case: Case,
    sources: Sequence[Dataset],
    made_by: Provenance,
    now: datetime,
    verdict: Verdict,
    doubts: Sequence[str] = (),
    *,
    identify: bool = False,
) -> Sheet:
    """``identify``: with the patient's name, identifier and birth date."""
    reasons = list(dict.fromkeys([*verdict.reasons, *doubts]))
    return Sheet(
        title=made_by.title or made_by.pipeline,
        subtitle=_subtitle(sources, now, identify=identify),
        outcome=verdict.outcome,
        verdict=" ".join([_VERDICTS[verdict.outcome], *(f"{_sentence(reason)}" for reason in reasons)]),
        rows=tuple(_rows(findings, case)),
        numbers=tuple(_numbers(findings)),
        notes=tuple((note.name, note.text) for note in findings if isinstance(note, Note)),
        provenance=tuple(sentences(made_by)[1:]),
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."


def _subtitle(sources: Sequence[Dataset], now: datetime, *, identify: bool) -> str:
    first = sources[0] if sources else Dataset()
    date = str(first.get("StudyDate") or "")
    of = f"{date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 else "unknown date"
    parts = [f"Study of {of}", str(first.get("Modality") or ""), str(first.get("BodyPartExamined") or "").lower()]
    parts += [str(first.get("StudyDescription") or "") if identify else ""]
    parts += [f"computed {now:%Y-%m-%d %H:%M} (UTC{now:%z})"]
    if identify:
        name = str(first.get("PatientName") or "").replace("^", " ").strip()
        parts.insert(0, f"{name}, ID {first.get('PatientID', '')}, born {first.get('PatientBirthDate', '')}")
    return "  ·  ".join(part for part in parts if part)


def _numbers(findings: Sequence[Finding]) -> list[Number]:
    """In the pipeline's order, the whole result first. Two numbers of a region without intervals share a line."""
    found = [finding for finding in findings if isinstance(finding, Measurement)]
    groups: dict[str, list[Number]] = {}
    for m in sorted(found, key=lambda m: bool(m.group)):
        groups.setdefault(m.group, []).append(_number(m))
    lines: list[Number] = []
    for group, numbers in groups.items():
        first, *others = numbers
        if group and len(others) == 1 and not (first.more or others[0].more):
            numbers = [replace(first, more=f"{others[0].name} {others[0].value}")]
        lines += numbers
    return lines


def _number(m: Measurement) -> Number:
    widest = max(m.intervals, key=lambda each: each.level, default=None)
    value = f"{_figures(m.value)} {_unit(m.unit)}".rstrip()
    name = m.name.replace(f" of {m.group}", "").replace(f"{m.group} ", "") if m.group else m.name
    return Number(m.group, name, value, _interval(widest) if widest else "")


def _figures(value: float) -> str:
    if not math.isfinite(value):
        return "not a number"
    whole = float(value).is_integer() and abs(value) < 1e6
    return f"{value:.0f}" if whole else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _unit(unit: str) -> str:
    """UCUM for a reader: annotations stand for themselves."""
    return "" if unit == "1" else unit.replace("{", " ").replace("}", " ").strip()


def _interval(interval: Interval) -> str:
    return f"{_figures(interval.low)} to {_figures(interval.high)} ({100 * interval.level:g} %)"


def _rows(findings: Sequence[Finding], case: Case) -> list[Row]:
    """Two planes of the one image, or one of each of the first two."""
    images = [finding for finding in findings if isinstance(finding, Image)]
    masks = [finding for finding in findings if isinstance(finding, Segmentation)]
    taken = _input_of(case, "")
    if not images:
        shown = masks[:1] if isinstance(taken, Volume) else []
        return [row for mask in shown for row in _of_mask(mask, taken, _words(case))]  # type: ignore[arg-type]
    rows = []
    for image in images[:ROWS]:
        mask = _of(image, masks)
        planes = planes_of(image.volume.grid, _weight(image.volume, mask), ROWS if len(images) == 1 else 1)
        taken = _input_of(case, image.name)
        rows += [_of_image(image, plane, findings, mask, taken, _words(case)) for plane in planes]
    return rows[:ROWS]


def _input_of(case: Case, name: str) -> Volume | KSpace | None:
    """The first input; of several images of one acquisition the one that the result is named after."""
    found = [each for each in case.inputs.values() if isinstance(each, Volume | KSpace)]
    named = [each for each in found if isinstance(each, KSpace) and each.label and name.endswith(each.label)]
    return next(iter(named or found), None)


def _words(case: Case) -> str:
    return next((name for name, each in case.inputs.items() if isinstance(each, Volume | KSpace)), "").upper()


def _of(image: Image, candidates: Sequence[Any]) -> Any:
    """The map or segmentation that belongs to an image: named so, or else the first on its grid."""
    named = [each for each in candidates if each.image_name == image.name or each.name.endswith(f"of {image.name}")]
    there = [each for each in candidates if not each.image_name and _grid(each).matches(image.volume.grid)]
    return next(iter(named or there), None)


def _grid(finding: ParametricMap | Segmentation) -> Grid:
    return finding.grid if isinstance(finding, Segmentation) else finding.volume.grid


def _weight(volume: Volume, mask: Segmentation | None) -> NDArray[np.float32]:
    """Where there is something to see: what was segmented, unless it is only doubt, else what is no background."""
    if mask is not None and mask.labels.any() and not mask.name.startswith(_LOW_CONFIDENCE):
        return (mask.labels > 0).astype(np.float32)
    bright = np.abs(volume.data)
    level = 0.15 * float(np.quantile(bright, 0.995))
    return (bright > level).astype(np.float32)


def _of_image(
    image: Image,
    plane: Plane,
    findings: Sequence[Finding],
    mask: Segmentation | None,
    taken: Volume | KSpace | None,
    words: str,
) -> Row:
    grid, unit = image.volume.grid, image.volume.unit
    plane = plane.cropped(sampled(_weight(image.volume, None), grid, plane) > 0, _MARGIN_MM)
    ours = sampled(image.volume.data, grid, plane)
    before = _before(taken, image, plane)
    low, high = _limits(ours, before if image.modality else None)
    colours = "gray_r" if image.modality == "PT" or unit == "{SUVr}" or "PET" in image.name else "gray"
    panels = []
    if before is not None:
        own = (low, high) if image.modality else _limits(before)
        shades = colours if image.modality else "gray"
        title = "Input: zero-filled" if isinstance(taken, KSpace) else f"Input: {words}"
        told = unit if image.modality or not isinstance(taken, Volume) else taken.unit
        panels.append(Panel(title, before, plane, shades, *own, _shown_unit(told)))
    panels.append(Panel("Result (synthetic)", ours, plane, colours, low, high, _shown_unit(unit)))
    spread = _of(image, [each for each in findings if isinstance(each, ParametricMap)])
    if spread is not None:
        sd = sampled(spread.volume.data, spread.volume.grid, plane)
        top = max(float(np.quantile(sd, 0.995)), 1e-9)
        panels.append(Panel("Uncertainty: 1 sd", sd, plane, "magma", 0.0, top, _shown_unit(spread.volume.unit)))
    panels += _fourth(image, plane, panels, mask, before)
    return Row(f"{image.description}: {_where(plane)}", _readable(panels))


def _fourth(
    image: Image, plane: Plane, panels: Sequence[Panel], mask: Segmentation | None, before: NDArray[np.float32] | None
) -> list[Panel]:
    """What was done to the input where both show the same quantity; else what was found on the result."""
    result = next(panel for panel in panels if panel.title.startswith("Result"))
    if image.modality and before is not None:
        change = result.pixels - before
        top = max(float(np.quantile(np.abs(change), 0.998)), 1e-9)
        return [Panel("Difference: result - input", change, plane, "RdBu_r", -top, top, result.unit)]
    if mask is None:
        return []
    labels = sampled(mask.labels, mask.grid, plane, nearest=True).astype(np.uint8)
    return [replace(result, title=f"Found: {mask.name}", labels=labels, tints=_tints(mask), names=_names(mask))]


def _of_mask(mask: Segmentation, taken: Volume, words: str) -> list[Row]:
    """No image was made: the labels on the input."""
    rows = []
    for plane in planes_of(mask.grid, (mask.labels > 0).astype(np.float32), ROWS):
        pixels = sampled(taken.data, taken.grid, plane)
        part = plane.cropped(sampled(mask.labels, mask.grid, plane, nearest=True) > 0, _MARGIN_MM)
        pixels = sampled(taken.data, taken.grid, part)
        labels = sampled(mask.labels, mask.grid, part, nearest=True).astype(np.uint8)
        low, high = _limits(pixels)
        shown = Panel(f"Input: {words}", pixels, part, "gray", low, high, _shown_unit(taken.unit))
        title = f"Result (synthetic): {mask.name}"
        over = replace(shown, title=title, labels=labels, tints=_tints(mask), names=_names(mask))
        rows.append(Row(f"{mask.description}: {_where(part)}", (shown, over)))
    return rows


def _tints(mask: Segmentation) -> dict[int, tuple[int, int, int]]:
    """The segments' own colours, else some that neighbours do not share."""
    return {segment.number: segment.color or _TINTS[(segment.number - 1) % len(_TINTS)] for segment in mask.segments}


def _names(mask: Segmentation) -> dict[int, str]:
    return {segment.number: segment.label for segment in mask.segments}


def _before(taken: Volume | KSpace | None, image: Image, plane: Plane) -> NDArray[np.float32] | None:
    """The input on the pixels of the plane."""
    if isinstance(taken, Volume):
        return sampled(taken.data, taken.grid, plane)
    if isinstance(taken, KSpace) and plane.axis == 0 and image.modality == "MR":
        from dicomnode.report import kspace

        return kspace.zero_filled(taken, image.volume.grid, plane)
    return None


def _limits(pixels: NDArray[np.float32], other: NDArray[np.float32] | None = None) -> tuple[float, float]:
    """Black and white: nought is black where nothing is below it."""
    values = pixels if other is None else np.concatenate([pixels.ravel(), other.ravel()])
    low, high = (float(value) for value in np.percentile(values, _WINDOW))
    low = 0.0 if float(values.min()) >= 0 else low
    return low, max(high, low + 1e-9)


def _readable(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """Activity in kilobecquerels, where becquerels are many."""
    if max((panel.high for panel in panels if panel.unit == "Bq/ml"), default=0.0) < 2000:
        return tuple(panels)
    return tuple(_in_thousands(panel) if panel.unit == "Bq/ml" else panel for panel in panels)


def _in_thousands(panel: Panel) -> Panel:
    pixels: NDArray[np.float32] = np.divide(panel.pixels, 1000, dtype=np.float32)
    return replace(panel, unit="kBq/ml", pixels=pixels, low=panel.low / 1000, high=panel.high / 1000)


def _shown_unit(unit: str) -> str:
    return _unit(unit) or "no unit"


def _where(plane: Plane) -> str:
    return f"{plane.name}, slice {plane.index + 1} of {plane.count}"
