"""DICOM objects from findings: no inference, no disk, no clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

from dicomnode.errors import GeometryError
from dicomnode.results import image
from dicomnode.results.header import Context
from dicomnode.results.provenance import Provenance
from pipelines.contract import Finding, Grid, Image, Measurement, ParametricMap, Segmentation
from pipelines.quality import Outcome, Verdict

if TYPE_CHECKING:
    from dicomnode.config.results import ImageKind, ResultsConfig
    from dicomnode.results.page import Page

__all__ = ["Provenance", "write", "write_key_note", "write_refusal"]


def write(
    findings: Sequence[Finding],
    sources: Sequence[Dataset],
    provenance: Provenance,
    config: ResultsConfig,
    now: datetime,
    verdict: Verdict = Verdict(),
    doubts: Sequence[str] = (),
    priors: Sequence[Dataset] = (),
    page: Page | None = None,
) -> list[Dataset]:
    """Return the result objects with file meta information, ready to save: a series for each image variant, map and
    segmentation, and one for the report.

    An image becomes a clean and a labelled series (``config.clean``, ``config.labelled``); maps and segmentations refer
    to the image on their grid, the clean one if it is written, or to the sources where no image of the job is on it.
    The report (``config.report``) holds every measurement and note, the gate's ``verdict`` and the ``doubts`` about the
    input; measurements of the whole result stand in the header of every object, those of regions only where no report
    is written. ``sources``: the headers of all inputs of the study, pixels or payload not needed; ``priors``:
    those of earlier examinations; ``page``: the drawn report (``config.report_page``). A held result has a Key Object
    note (``config.key_object``). Raises ``GeometryError`` or ``InputRefused``.
    """
    from dicomnode.results import groups, key_object, sr  # highdicom: the gate before the wire does without it
    from dicomnode.results import page as pages

    measurements = tuple(
        finding for finding in findings if isinstance(finding, Measurement) and not (finding.group and config.report)
    )
    context = Context(tuple(sources), provenance, measurements, config, now, tuple(priors))
    numbers = itertools.count(config.series_number_base)
    images = _images(findings, context, numbers)
    written = [ds for series in images for ds in series.instances]
    masks: list[tuple[Segmentation, Dataset]] = []
    for finding in findings:
        if isinstance(finding, ParametricMap | Segmentation):
            written.append(_overlay(finding, images, context, next(numbers)))
            if isinstance(finding, Segmentation):
                masks.append((finding, written[-1]))
    if config.report:
        made = groups.JobObjects(tuple(written), tuple(masks))
        written.append(sr.write(findings, made, context, next(numbers), verdict, doubts))
    if page is not None:
        page_objects = pages.write(page, context, next(numbers))
        written += page_objects
        numbers = itertools.count(config.series_number_base + len({ds.SeriesInstanceUID for ds in written}))
    if config.key_object and verdict.outcome is Outcome.HOLD:
        written.append(key_object.write(verdict, context, next(numbers)))
    return written


def write_refusal(
    reason: str,
    sources: Sequence[Dataset],
    provenance: Provenance,
    config: ResultsConfig,
    now: datetime,
    priors: Sequence[Dataset] = (),
) -> Dataset:
    """Return the report that nothing was made of these sources, and why."""
    from dicomnode.results import groups, sr

    context = Context(tuple(sources), provenance, (), config, now, tuple(priors))
    return sr.write((), groups.JobObjects(), context, config.series_number_base, Verdict(Outcome.REFUSE, (reason,)))


def write_key_note(
    reason: str, sources: Sequence[Dataset], provenance: Provenance, config: ResultsConfig, now: datetime
) -> Dataset:
    """Return the refusal as a Key Object note on the sources, which a viewer's study list shows."""
    from dicomnode.results import key_object

    context = Context(tuple(sources), provenance, (), config, now)
    return key_object.write(Verdict(Outcome.REFUSE, (reason,)), context, config.series_number_base + 1)


@dataclass(frozen=True)
class _ImageSeries:
    """A series of an image; ``variant``: its form, empty for the clean multi-frame one."""

    picture: Image
    instances: list[Dataset]
    variant: str


def _images(findings: Sequence[Finding], context: Context, numbers: Iterator[int]) -> list[_ImageSeries]:
    series = []
    for picture in (finding for finding in findings if isinstance(finding, Image)):
        for labelled in [False] * context.config.clean + [True] * context.config.labelled:
            kind = _kind(picture, context, labelled=labelled)
            instances = _image(picture, context, next(numbers), kind, labelled=labelled)
            words = [part for part in ("labelled" * labelled, "" if kind == "multiframe" else kind) if part]
            series.append(_ImageSeries(picture, instances, "".join(f"/{part}" for part in words)))
    return series


def _kind(picture: Image, context: Context, *, labelled: bool) -> ImageKind:
    """Return the configured kind, unless that would claim facts that nobody measured, or could not hold the label."""
    from dicomnode.results import modality

    kind = context.config.image_kind
    honest = kind != "modality" or modality.is_possible(picture, context)
    return kind if honest and not labelled else context.config.secondary_kind


def _image(picture: Image, context: Context, number: int, kind: ImageKind, *, labelled: bool) -> list[Dataset]:
    from dicomnode.results import modality, parametric

    if kind == "modality":
        return modality.write(picture, context, number)
    if kind == "parametric":
        return [parametric.write_image(picture, context, number)]
    return image.write(picture, context, number, labelled=labelled, single=kind == "single")


def _overlay(
    finding: ParametricMap | Segmentation, images: Sequence[_ImageSeries], context: Context, number: int
) -> Dataset:
    from dicomnode.results import parametric, planes, seg

    grid = finding.grid if isinstance(finding, Segmentation) else finding.volume.grid
    series = _image_on(grid, images, finding.image_name)
    instances = series.instances if series else planes.find_series_on(context.sources, grid)
    if not instances:
        where = f"its grid of {grid.shape}, and no series of the sources"
        raise GeometryError(f"result '{finding.name}': no result image lies on {where}")
    variant = series.variant if series else ""
    if isinstance(finding, ParametricMap):
        return parametric.write(finding, context, number, instances, variant)
    return seg.write(finding, context, number, instances, variant)


def _image_on(grid: Grid, images: Sequence[_ImageSeries], name: str) -> _ImageSeries | None:
    """Return the image of that name on the grid, or the first on the grid where no name is given."""
    for series in images:
        if name in ("", series.picture.name) and series.picture.volume.grid.matches(grid):
            return series
    return None
