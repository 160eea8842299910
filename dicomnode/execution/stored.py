"""The result of a finished job, read back: its objects as findings, and its inputs as the case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, ParametricMapStorage, SecondaryCaptureImageStorage

from db.models import Job, Output, Study
from db.states import JobState
from dicomnode.config import Config
from dicomnode.deployment import pipeline_names
from dicomnode.errors import NotFound
from dicomnode.execution import inputs, job_run
from dicomnode.reading import frames, volumes
from dicomnode.reading.lookup import split_rescale_type
from dicomnode.report.recorded import read_measurements
from dicomnode.results.image import DERIVATION
from dicomnode.results.inherited import inherit
from dicomnode.results.page import Page
from dicomnode.results.provenance import Provenance, read_provenance
from dicomnode.storage import spool
from pipelines.contract import (
    Case,
    Code,
    Finding,
    Grid,
    Image,
    Note,
    ParametricMap,
    Segment,
    Segmentation,
)
from pipelines.quality import Outcome, Verdict

__all__ = [
    "StoredResult",
    "choose_job",
    "find_stored_page",
    "load_page",
    "read_image",
    "read_result",
    "read_segmentation",
]


@dataclass(frozen=True)
class StoredResult:
    """The content of a report page, as ``report.rendering.render`` takes it."""

    findings: list[Finding]
    case: Case
    sources: list[Dataset]
    made_by: Provenance
    now: datetime
    verdict: Verdict
    priors: list[Dataset]


def choose_job(study: Study, number: int | None) -> Job:
    """Return the study's job of that number, or its newest one of a route with a result. Raises NotFound."""
    jobs: list[Job] = [job for job in study.jobs if job.id == number or (number is None and not job.is_trial)]
    finished = [job for job in jobs if job.state in (JobState.DONE, JobState.HELD, JobState.REFUSED)]
    with_result = [job for job in finished if any(output.expired_at is None for output in job.outputs)]
    if not with_result:
        what = f"job {number}" if number is not None else "any route"
        raise NotFound(f"study {study.study_uid}: no result of {what}; 'dicomnode studies show' lists its jobs")
    return max(with_result, key=lambda job: job.id)


def read_result(job: Job, config: Config) -> StoredResult:
    """Read a job's result from the spool and its row. Raises InputRefused where a file can no longer be read."""
    task = job_run.build_task(job, config)
    pipeline = pipeline_names.resolve_pipeline(job.pipeline, config, job.model)
    loaded = inputs.load_inputs(pipeline, task.inputs)
    own = [output for output in job.outputs if not output.rendition]
    paths = {output.sop_instance_uid: spool.path(config.spool_dir, output.sha256) for output in own}
    images = _restore_names(list(_read_images(own, paths)), job.report)
    notes = [Note(each["name"], each["text"]) for each in job.report.get("notes", ())]
    findings = [*images, *read_measurements(job.report), *notes]
    reasons = tuple(map(str, job.report.get("reasons", ())))
    verdict = Verdict(Outcome(job.report.get("verdict", "accept")), reasons)
    made_by = replace(read_provenance(dcmread(next(iter(paths.values()))), task.key), title=pipeline.title)
    now = inherit(loaded.sources).moment(config.node.to_local_time(job.created_at))
    return StoredResult(findings, loaded.case, loaded.sources, made_by, now, verdict, loaded.priors)


def load_page(job: Job, config: Config, kind: str, *, identify: bool = False) -> bytes:
    """Return the job's report page as a file: the one that was stored with the results, else rendered from them.

    ``kind``: "pdf" or "png". ``identify``: see ``rendering.render``.
    Raises InputRefused where a file can no longer be read.
    """
    from dicomnode.report import layout, rendering

    if not identify and (page := find_stored_page(job, config, kind)):
        return page
    result = read_result(job, config)
    rendered = rendering.render(
        result.findings,
        result.case,
        result.sources,
        result.made_by,
        result.now,
        result.verdict,
        identify=identify,
        priors=result.priors,
    )
    return layout.encode_page(rendered, kind)


def find_stored_page(job: Job, config: Config, kind: str) -> bytes | None:
    """Return the page that was stored with the results, or None where the configuration had none."""
    from dicomnode.report import layout

    sop_class_uid = {"pdf": EncapsulatedPDFStorage, "png": SecondaryCaptureImageStorage}[kind]
    for output in job.outputs:
        if output.kind.startswith("report page") and output.sop_class_uid == sop_class_uid:
            ds = dcmread(spool.path(config.spool_dir, output.sha256))
            if kind == "pdf":
                return bytes(ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength])
            return layout.encode_page(Page(ds.pixel_array, b""), kind)
    return None


def _read_images(
    outputs: Sequence[Output], paths: Mapping[str, Path]
) -> Iterator[Image | ParametricMap | Segmentation]:
    """Yield images, maps and segmentations in the order in which they were written."""
    series: dict[str, list[Output]] = {}
    for output in outputs:
        if output.kind in ("image", "parametric map", "segmentation"):
            series.setdefault(output.series_uid, []).append(output)
    labelled = [output for output in outputs if output.kind == "labelled image"]
    for output in labelled if not any(each.kind == "image" for each in outputs) else []:
        series.setdefault(output.series_uid, []).append(output)
    for members in series.values():
        files = [paths[output.sop_instance_uid] for output in members]
        yield read_segmentation(files[0]) if members[0].kind == "segmentation" else read_image(files)


def _restore_names(
    findings: Sequence[Image | ParametricMap | Segmentation], report: Mapping[str, Any]
) -> list[Finding]:
    """Add the values that no header holds, from the job's report, which has them in the same order."""
    images = iter(report.get("images", ()))
    overlays = ({"name": each["name"], "image_name": each["of"]} for each in report.get("overlays", ()))
    return [replace(each, **next(images if isinstance(each, Image) else overlays, {})) for each in findings]


def read_image(files: Sequence[Path]) -> Image | ParametricMap:
    """Read an image or a map from the result objects of one series. Raises InputRefused."""
    first = frames.read_header(files[0])
    series = volumes.read(files)
    volume = replace(series.volume, unit=_read_unit(first, series.volume.unit))
    thickness_mm = volume.slice_thickness_mm or volume.grid.spacing_mm[0]
    description = str(first.SeriesDescription).removeprefix("SYN ")
    derivation = first.DerivationCodeSequence[0]
    if first.SOPClassUID == ParametricMapStorage and derivation.CodeValue != DERIVATION[0]:
        quantity = Code(derivation.CodeValue, derivation.CodingSchemeDesignator, derivation.CodeMeaning)
        return ParametricMap(description, volume, quantity, description, thickness_mm)
    return Image(description, volume, description, thickness_mm)


def _read_unit(ds: Dataset, default: str) -> str:
    """Return the unit: a Secondary Capture has it as Rescale Type, which the standard does not define as a unit."""
    _, rescale_type = split_rescale_type(str(ds.get("RescaleType") or "US"))
    return default if rescale_type == "US" else rescale_type


def read_segmentation(path: Path) -> Segmentation:
    """Read a segmentation from its result object, on the slices that hold a segment."""
    import highdicom as hd

    ds = hd.seg.segread(str(path))
    volume = ds.get_volume(combine_segments=True, rescale_fractional=False, allow_missing_positions=True)
    affine = volume.affine[:, [2, 1, 0, 3]]  # highdicom's takes (k, j, i, 1)
    segments = tuple(_read_segment(item) for item in ds.SegmentSequence)
    description = str(ds.SeriesDescription).removeprefix("SYN ")
    labels = np.asarray(volume.array, np.uint8)
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    return Segmentation(
        str(ds.SeriesDescription), labels, Grid(shape, affine), segments, description, float(volume.spacing[0])
    )


def _read_segment(item: Dataset) -> Segment:
    category, kind = item.SegmentedPropertyCategoryCodeSequence[0], item.SegmentedPropertyTypeCodeSequence[0]
    codes = [Code(each.CodeValue, each.CodingSchemeDesignator, each.CodeMeaning) for each in (category, kind)]
    return Segment(int(item.SegmentNumber), str(item.SegmentLabel), codes[0], codes[1])
