"""Content of the report page of a job: pictures of input, result, uncertainty and difference, numbers with their
intervals, the output gate's verdict with its reasons, and the provenance. The page is complete by itself.

``layout`` places the content. The patient is named only on demand: in an archive the object's header names the
patient, and a file is easily passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode.report import summary
from dicomnode.report.numerals import format_interval, format_quantity, format_unit
from dicomnode.report.planes import ReportPlane, choose_planes, sample_on_plane
from dicomnode.report.region_table import RegionTable, build_region_table
from dicomnode.results.provenance import Provenance, sentences
from pipelines.contract import (
    Case,
    Finding,
    Grid,
    Image,
    KSpace,
    Measurement,
    Note,
    ParametricMap,
    Segmentation,
    Volume,
)
from pipelines.quality import Outcome, Verdict

__all__ = ["NumberLine", "Panel", "PictureRow", "ReportPage", "compose_page"]

ROWS = 2
"""Rows of pictures; with more, the pictures would be too small."""
_LOW_CONFIDENCE = "low confidence"
_WINDOW = (0.5, 99.5)
_MARGIN_MM = 8.0
_SEGMENT_COLOURS = (
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
    """A picture: ``pixels`` (row, column) from ``low`` to ``high`` in ``unit``, by matplotlib's ``colour_map``.

    ``labels`` (row, column): segment numbers, painted over the picture in ``segment_colours`` (RGB by number), with
    ``segment_names``.
    """

    title: str
    pixels: NDArray[np.float32]
    plane: ReportPlane
    colour_map: str
    low: float
    high: float
    unit: str
    labels: NDArray[np.uint8] | None = None
    segment_colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    segment_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureRow:
    """A row of pictures of one plane."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class NumberLine:
    """A number of the whole result as text; ``detail``: its interval."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class ReportPage:
    """The content of the page. ``sentence`` and ``remarks``: see ``summary``; ``regions``: a row for each region."""

    title: str
    subtitle: str
    sentence: str
    remarks: tuple[str, ...]
    outcome: Outcome
    verdict: str
    rows: tuple[PictureRow, ...]
    regions: RegionTable
    numbers: tuple[NumberLine, ...]
    notes: tuple[tuple[str, str], ...]
    provenance: tuple[str, ...]
    run_id: str
    fine_print: str = _FINE_PRINT


def compose_page(
    findings: Sequence[Finding],
    case: Case,
    sources: Sequence[Dataset],
    made_by: Provenance,
    now: datetime,
    verdict: Verdict,
    doubts: Sequence[str] = (),
    *,
    identify: bool = False,
    priors: Sequence[Dataset] = (),
) -> ReportPage:
    """Compose the page of a job. ``identify``: with the patient's name, identifier and birth date; ``priors``: headers
    of the earlier examination.
    """
    reasons = list(dict.fromkeys([*verdict.reasons, *doubts]))
    measurements = [finding for finding in findings if isinstance(finding, Measurement)]
    prior_date = _format_date(priors[0].get("StudyDate")) if priors else ""
    return ReportPage(
        title=made_by.title or made_by.pipeline,
        subtitle=_compose_subtitle(sources, now, prior_date, identify=identify),
        sentence=summary.summarize(made_by.pipeline, measurements, prior_date),
        remarks=tuple(summary.find_remarks(measurements)),
        outcome=verdict.outcome,
        verdict=" ".join([_VERDICTS[verdict.outcome], *(f"{_to_sentence(reason)}" for reason in reasons)]),
        rows=tuple(_picture_rows(findings, case)),
        regions=build_region_table(measurements),
        numbers=tuple(_number_line(m) for m in measurements if not m.group),
        notes=tuple((note.name, note.text) for note in findings if isinstance(note, Note)),
        provenance=tuple(sentences(made_by)[1:]),
        run_id=made_by.run_id,
    )


def _to_sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _format_date(value: object) -> str:
    date = str(value or "")
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 else "unknown date"


def _compose_subtitle(sources: Sequence[Dataset], now: datetime, prior_date: str, *, identify: bool) -> str:
    first = sources[0] if sources else Dataset()
    parts = [
        f"Study of {_format_date(first.get('StudyDate'))}",
        f"compared with {prior_date}" if prior_date else "",
        str(first.get("Modality") or ""),
        str(first.get("BodyPartExamined") or "").lower(),
    ]
    parts += [str(first.get("StudyDescription") or "") if identify else ""]
    parts += [f"computed {now:%Y-%m-%d %H:%M} (UTC{now:%z})"]
    if identify:
        name = str(first.get("PatientName") or "").replace("^", " ").strip()
        parts.insert(0, f"{name}, ID {first.get('PatientID', '')}, born {first.get('PatientBirthDate', '')}")
    return "  ·  ".join(part for part in parts if part)


def _number_line(m: Measurement) -> NumberLine:
    widest = max(m.intervals, key=lambda each: each.level, default=None)
    return NumberLine(m.name, format_quantity(m.value, m.unit), format_interval(widest) if widest else "")


def _picture_rows(findings: Sequence[Finding], case: Case) -> list[PictureRow]:
    """Return two planes of a single image, or one of each of the first two."""
    images = [finding for finding in findings if isinstance(finding, Image)]
    masks = [finding for finding in findings if isinstance(finding, Segmentation)]
    source = _find_input(case, "")
    if not images:
        shown_masks = masks[:1] if isinstance(source, Volume) else []
        return [row for mask in shown_masks for row in _mask_rows(mask, source, _input_label(case))]  # type: ignore[arg-type]
    rows = []
    for image in images[:ROWS]:
        mask = _find_belonging(image, masks)
        planes = choose_planes(image.volume.grid, _interest_weight(image.volume, mask), ROWS if len(images) == 1 else 1)
        source = _find_input(case, image.name)
        rows += [_image_row(image, plane, findings, mask, source, _input_label(case)) for plane in planes]
    return rows[:ROWS]


def _find_input(case: Case, name: str) -> Volume | KSpace | None:
    """Return the first input; of several images of one acquisition the one that the result is named after."""
    found = [each for each in case.inputs.values() if isinstance(each, Volume | KSpace)]
    matching = [each for each in found if isinstance(each, KSpace) and each.label and name.endswith(each.label)]
    return next(iter(matching or found), None)


def _input_label(case: Case) -> str:
    return next((name for name, each in case.inputs.items() if isinstance(each, Volume | KSpace)), "").upper()


def _find_belonging(image: Image, candidates: Sequence[Any]) -> Any:
    """Return the map or segmentation that belongs to an image by its name, else the first on its grid, or None."""
    matching = [each for each in candidates if each.image_name == image.name or each.name.endswith(f"of {image.name}")]
    candidates_on_grid = [
        each for each in candidates if not each.image_name and _grid_of(each).matches(image.volume.grid)
    ]
    return next(iter(matching or candidates_on_grid), None)


def _grid_of(finding: ParametricMap | Segmentation) -> Grid:
    return finding.grid if isinstance(finding, Segmentation) else finding.volume.grid


def _interest_weight(volume: Volume, mask: Segmentation | None) -> NDArray[np.float32]:
    """Return weights of the voxels of interest: the segments, unless they mark low confidence, else the foreground."""
    if mask is not None and mask.labels.any() and not mask.name.startswith(_LOW_CONFIDENCE):
        return (mask.labels > 0).astype(np.float32)
    bright = np.abs(volume.data)
    level = 0.15 * float(np.quantile(bright, 0.995))
    return (bright > level).astype(np.float32)


def _image_row(
    image: Image,
    plane: ReportPlane,
    findings: Sequence[Finding],
    mask: Segmentation | None,
    source: Volume | KSpace | None,
    label: str,
) -> PictureRow:
    grid, unit = image.volume.grid, image.volume.unit
    plane = plane.crop(sample_on_plane(_interest_weight(image.volume, None), grid, plane) > 0, _MARGIN_MM)
    result = sample_on_plane(image.volume.data, grid, plane)
    before = _sample_input(source, image, plane)
    low, high = _display_range(result, before if image.modality else None)
    colour_map = "gray_r" if image.modality == "PT" or unit == "{SUVr}" or "PET" in image.name else "gray"
    panels = []
    if before is not None:
        input_range = (low, high) if image.modality else _display_range(before)
        input_map = colour_map if image.modality else "gray"
        title = "Input: zero-filled" if isinstance(source, KSpace) else f"Input: {label}"
        source_unit = unit if image.modality or not isinstance(source, Volume) else source.unit
        panels.append(Panel(title, before, plane, input_map, *input_range, _unit_label(source_unit)))
    panels.append(Panel("Result (synthetic)", result, plane, colour_map, low, high, _unit_label(unit)))
    spread = _find_belonging(image, [each for each in findings if isinstance(each, ParametricMap)])
    if spread is not None:
        sd = sample_on_plane(spread.volume.data, spread.volume.grid, plane)
        top = max(float(np.quantile(sd, 0.995)), 1e-9)
        panels.append(Panel("Uncertainty: 1 sd", sd, plane, "magma", 0.0, top, _unit_label(spread.volume.unit)))
    panels += _fourth_panel(image, plane, panels, mask, before)
    return PictureRow(f"{image.description}: {_describe_plane(plane)}", _scale_activity(panels))


def _fourth_panel(
    image: Image,
    plane: ReportPlane,
    panels: Sequence[Panel],
    mask: Segmentation | None,
    before: NDArray[np.float32] | None,
) -> list[Panel]:
    """Return the difference where input and result show the same quantity, else the segments on the result."""
    result = next(panel for panel in panels if panel.title.startswith("Result"))
    if image.modality and before is not None:
        change = result.pixels - before
        top = max(float(np.quantile(np.abs(change), 0.998)), 1e-9)
        return [Panel("Difference: result - input", change, plane, "RdBu_r", -top, top, result.unit)]
    if mask is None:
        return []
    labels = sample_on_plane(mask.labels, mask.grid, plane, nearest=True).astype(np.uint8)
    return [
        replace(
            result,
            title=f"Found: {mask.name}",
            labels=labels,
            segment_colours=_segment_colours(mask),
            segment_names=_segment_names(mask),
        )
    ]


def _mask_rows(mask: Segmentation, source: Volume, label: str) -> list[PictureRow]:
    """Return rows with the labels on the input, for results without an image."""
    rows = []
    for plane in choose_planes(mask.grid, (mask.labels > 0).astype(np.float32), ROWS):
        part = plane.crop(sample_on_plane(mask.labels, mask.grid, plane, nearest=True) > 0, _MARGIN_MM)
        pixels = sample_on_plane(source.data, source.grid, part)
        labels = sample_on_plane(mask.labels, mask.grid, part, nearest=True).astype(np.uint8)
        low, high = _display_range(pixels)
        panel = Panel(f"Input: {label}", pixels, part, "gray", low, high, _unit_label(source.unit))
        title = f"Result (synthetic): {mask.name}"
        over = replace(
            panel,
            title=title,
            labels=labels,
            segment_colours=_segment_colours(mask),
            segment_names=_segment_names(mask),
        )
        rows.append(PictureRow(f"{mask.description}: {_describe_plane(part)}", (panel, over)))
    return rows


def _segment_colours(mask: Segmentation) -> dict[int, tuple[int, int, int]]:
    """Return the segments' own colours, else default ones that neighbours do not share."""
    return {
        segment.number: segment.color or _SEGMENT_COLOURS[(segment.number - 1) % len(_SEGMENT_COLOURS)]
        for segment in mask.segments
    }


def _segment_names(mask: Segmentation) -> dict[int, str]:
    return {segment.number: segment.label for segment in mask.segments}


def _sample_input(source: Volume | KSpace | None, image: Image, plane: ReportPlane) -> NDArray[np.float32] | None:
    """Sample the input at the pixels of the plane, or return None where that is impossible."""
    if isinstance(source, Volume):
        return sample_on_plane(source.data, source.grid, plane)
    if isinstance(source, KSpace) and plane.axis == 0 and image.modality == "MR":
        from dicomnode.report import kspace

        return kspace.reconstruct_zero_filled(source, image.volume.grid, plane)
    return None


def _display_range(pixels: NDArray[np.float32], other: NDArray[np.float32] | None = None) -> tuple[float, float]:
    """Return the values shown as black and as white; zero is black where no value is negative."""
    values = pixels if other is None else np.concatenate([pixels.ravel(), other.ravel()])
    low, high = (float(value) for value in np.percentile(values, _WINDOW))
    low = 0.0 if float(values.min()) >= 0 else low
    return low, max(high, low + 1e-9)


def _scale_activity(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """Show activity concentrations in kBq/ml where they reach 2000 Bq/ml."""
    if max((panel.high for panel in panels if panel.unit == "Bq/ml"), default=0.0) < 2000:
        return tuple(panels)
    return tuple(_to_kilobecquerels(panel) if panel.unit == "Bq/ml" else panel for panel in panels)


def _to_kilobecquerels(panel: Panel) -> Panel:
    pixels: NDArray[np.float32] = np.divide(panel.pixels, 1000, dtype=np.float32)
    return replace(panel, unit="kBq/ml", pixels=pixels, low=panel.low / 1000, high=panel.high / 1000)


def _unit_label(unit: str) -> str:
    return format_unit(unit) or "no unit"


def _describe_plane(plane: ReportPlane) -> str:
    return f"{plane.name}, slice {plane.index + 1} of {plane.count}"
