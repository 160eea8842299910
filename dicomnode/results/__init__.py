"""Findings -> DICOM objects: no inference, no disk, no clock."""

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

__all__ = ["Provenance", "key_note", "refusal", "write"]


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
    """Data sets with file meta information, ready to save; a series for each image variant, map and segmentation, and
    one for the report.

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
    written = [ds for shown in images for ds in shown.instances]
    masks: list[tuple[Segmentation, Dataset]] = []
    for finding in findings:
        if isinstance(finding, ParametricMap | Segmentation):
            written.append(_overlay(finding, images, context, next(numbers)))
            if isinstance(finding, Segmentation):
                masks.append((finding, written[-1]))
    if config.report:
        made = groups.Written(tuple(written), tuple(masks))
        written.append(sr.write(findings, made, context, next(numbers), verdict, doubts))
    if page is not None:
        drawn = pages.write(page, context, next(numbers))
        written += drawn
        numbers = itertools.count(config.series_number_base + len({ds.SeriesInstanceUID for ds in written}))
    if config.key_object and verdict.outcome is Outcome.HOLD:
        written.append(key_object.write(verdict, context, next(numbers)))
    return written


def refusal(
    reason: str,
    sources: Sequence[Dataset],
    provenance: Provenance,
    config: ResultsConfig,
    now: datetime,
    priors: Sequence[Dataset] = (),
) -> Dataset:
    """The note that nothing was made of these sources, and why."""
    from dicomnode.results import groups, sr

    context = Context(tuple(sources), provenance, (), config, now, tuple(priors))
    return sr.write((), groups.Written(), context, config.series_number_base, Verdict(Outcome.REFUSE, (reason,)))


def key_note(
    reason: str, sources: Sequence[Dataset], provenance: Provenance, config: ResultsConfig, now: datetime
) -> Dataset:
    """The same as a Key Object note on the sources, which a viewer's study list shows."""
    from dicomnode.results import key_object

    context = Context(tuple(sources), provenance, (), config, now)
    return key_object.write(Verdict(Outcome.REFUSE, (reason,)), context, config.series_number_base + 1)


@dataclass(frozen=True)
class _Shown:
    """A series of an image; ``variant``: in what form, empty for the clean multi-frame one."""

    picture: Image
    instances: list[Dataset]
    variant: str


def _images(findings: Sequence[Finding], context: Context, numbers: Iterator[int]) -> list[_Shown]:
    shown = []
    for picture in (finding for finding in findings if isinstance(finding, Image)):
        for labelled in [False] * context.config.clean + [True] * context.config.labelled:
            kind = _kind(picture, context, labelled=labelled)
            instances = _image(picture, context, next(numbers), kind, labelled=labelled)
            words = [word for word in ("labelled" * labelled, "" if kind == "multiframe" else kind) if word]
            shown.append(_Shown(picture, instances, "".join(f"/{word}" for word in words)))
    return shown


def _kind(picture: Image, context: Context, *, labelled: bool) -> ImageKind:
    """What the configuration asks for, unless that would not be honest or could not hold the label."""
    from dicomnode.results import modality

    wanted = context.config.image_kind
    honest = wanted != "modality" or modality.possible(picture, context)
    return wanted if honest and not labelled else context.config.secondary_kind


def _image(picture: Image, context: Context, number: int, kind: ImageKind, *, labelled: bool) -> list[Dataset]:
    from dicomnode.results import modality, parametric

    if kind == "modality":
        return modality.write(picture, context, number)
    if kind == "parametric":
        return [parametric.of_image(picture, context, number)]
    return image.write(picture, context, number, labelled=labelled, single=kind == "single")


def _overlay(finding: ParametricMap | Segmentation, images: Sequence[_Shown], context: Context, number: int) -> Dataset:
    from dicomnode.results import parametric, planes, seg

    grid = finding.grid if isinstance(finding, Segmentation) else finding.volume.grid
    shown = _image_on(grid, images, finding.image_name)
    instances = shown.instances if shown else planes.shown_by(context.sources, grid)
    if not instances:
        where = f"its grid of {grid.shape}, and no series of the sources"
        raise GeometryError(f"result '{finding.name}': no result image lies on {where}")
    variant = shown.variant if shown else ""
    if isinstance(finding, ParametricMap):
        return parametric.write(finding, context, number, instances, variant)
    return seg.write(finding, context, number, instances, variant)


def _image_on(grid: Grid, images: Sequence[_Shown], name: str) -> _Shown | None:
    """The image of that name on the grid, or the first there where no name is given."""
    for shown in images:
        if name in ("", shown.picture.name) and shown.picture.volume.grid.matches(grid):
            return shown
    return None
