"""The figures of the reading page: earlier examination, source, result, uncertainty and segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import RawDataStorage
from sqlalchemy.orm import Session

from db import contents
from db.models import Job, Series
from dicomnode.storage import spool
from dicomnode.web import figures
from dicomnode.web.template_filters import FILTERS
from dicomnode.web.viewer import Layout

__all__ = ["ReadingFigure", "choose_layout", "list_figures"]

_TITLES = {"prior": "Earlier examination", "source": "Source", "image": "Result", "map": "Map",
           "mask": "Segmentation"}  # fmt: skip
_NO_PICTURES = ("SR", "KO", "DOC")


@dataclass(frozen=True)
class ReadingFigure:
    """A picture with its title, what it shows, its date, and a ``remark`` on its place."""

    address: str
    kind: str
    title: str
    caption: str
    date: str
    remark: str = ""


def list_figures(session: Session, job: Job) -> list[ReadingFigure]:
    """List the figures of a job, the earlier examination beside the source."""
    results = contents.list_results(session, [job.id]).get(job.id, [])
    inputs = contents.list_input_series(session, [job.id]).get(job.id, [])
    priors = contents.list_prior_series(session, job.id)
    own = [(name, series) for name, series in inputs if series.series_uid not in priors]
    date = FILTERS["date"](job.study.study_date)
    found = [
        ReadingFigure(each.address, each.kind, _title(each.kind, each.caption), each.caption.removeprefix("SYN "), date)
        for each in figures.list_figures(job.id, own, results)
    ]
    return [*_list_priors(job, inputs, priors)[:1], *found]


def _title(kind: str, caption: str) -> str:
    """Return the title; a map is one of uncertainty where its description says so, else it may be a probability."""
    return "Uncertainty" if kind == "map" and "standard deviation" in caption.lower() else _TITLES[kind]


def choose_layout(session: Session, job: Job, spool_dir: Path, slice_index: int | None) -> Layout | None:
    """Choose the series that a viewer shows side by side: the source, and the image that the masks lie on.

    No source is left where it is k-space; None where the result has no image.

    ``slice_index``: of the first image of the result, None for the middle; the slices of a source may have another
    order in a viewer.
    """
    priors = contents.list_prior_series(session, job.id)
    inputs = contents.list_input_series(session, [job.id]).get(job.id, [])
    sources = [each.series_uid for _, each in inputs if each.series_uid not in priors and _is_displayable(each)]
    results = contents.list_results(session, [job.id]).get(job.id, [])
    images = [each.series_uid for each in results if each.kind == "image"]
    masks = [each for each in results if each.kind == "segmentation"]
    below = figures.find_referenced_series(spool.path(spool_dir, masks[0].first_sha256)) if masks else ""
    right = below or next(iter(images), "")
    if not right:
        return None
    at = slice_index if images and right == images[0] else None
    return Layout(next(iter(sources), ""), right, masks[0].series_uid if masks else "", at)


def _is_displayable(series: Series) -> bool:
    return series.modality not in _NO_PICTURES and series.attributes.get("SOPClassUID") != RawDataStorage


def _list_priors(job: Job, inputs: list[tuple[str, Series]], priors: dict[str, tuple[str, str]]) -> list[ReadingFigure]:
    return [
        ReadingFigure(
            f"/jobs/{job.id}/pictures/{series.series_uid}",
            "prior",
            _TITLES["prior"],
            str(series.attributes.get("SeriesDescription", "")) or series.modality,
            FILTERS["date"](priors[series.series_uid][1]),
            "nearest slice after registration"
            if figures.find_correction(job.report, name) is not None
            else "nearest slice by the scanner's positions, not registered",
        )
        for name, series in inputs
        if series.series_uid in priors and series.modality not in _NO_PICTURES
    ]
