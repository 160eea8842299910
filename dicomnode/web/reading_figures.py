"""The figures of the reading page: earlier examination, source, result, uncertainty and segmentation."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from db import contents
from db.models import Job, Series
from dicomnode.web import figures
from dicomnode.web.template_filters import FILTERS

__all__ = ["ReadingFigure", "list_figures"]

_TITLES = {"prior": "Earlier examination", "source": "Source", "image": "Result", "map": "Uncertainty",
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
        ReadingFigure(each.address, each.kind, _TITLES[each.kind], each.caption.removeprefix("SYN "), date)
        for each in figures.list_figures(job.id, own, results)
    ]
    return [*_list_priors(job, inputs, priors)[:1], *found]


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
