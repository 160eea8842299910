"""The pictures that summarize a job: its source, its images, their uncertainty and its masks, at one slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from db import contents
from db.contents import ResultSeries
from db.models import Series
from dicomnode.errors import InputRefused
from dicomnode.reading import frames
from dicomnode.storage import spool
from dicomnode.web import pictures
from dicomnode.web.pictures import FramePlane

__all__ = ["Figure", "JobPictures", "list_figures"]

_MOST_FIGURES = 8
_DRAWABLE_KINDS = ("labelled image", "image", "parametric map", "segmentation")


@dataclass(frozen=True)
class Figure:
    """A picture of a job's series. ``kind``: source, image, map or mask."""

    job_id: int
    series_uid: str
    kind: str
    caption: str

    @property
    def address(self) -> str:
        """Address of the picture."""
        return f"/jobs/{self.job_id}/pictures/{self.series_uid}"


def list_figures(job_id: int, inputs: Sequence[tuple[str, Series]], made: Sequence[ResultSeries]) -> list[Figure]:
    """List a job's figures, source first; labelled images, which state in their pixels that they are synthetic, replace
    plain ones."""
    sources = [
        Figure(job_id, series.series_uid, "source", _source_caption(name, series))
        for name, series in inputs[:2]
        if series.modality not in ("SR", "KO", "DOC")
    ]
    kinds = {each.kind for each in made}
    kinds_shown = [kind for kind in _DRAWABLE_KINDS if not (kind == "image" and "labelled image" in kinds)]
    results = [
        Figure(job_id, each.series_uid, _figure_kind(each.kind), each.description or each.kind)
        for each in made
        if each.kind in kinds_shown
    ]
    return [*sources[:1], *_order_results(results), *sources[1:]][:_MOST_FIGURES]


@dataclass(frozen=True)
class JobPictures:
    """The pictures of one job, all at the same slice of its reference series."""

    readers: sessionmaker[Session]
    spool_dir: Path
    job_id: int

    def draw(self, series_uid: str, slice_index: int | None, size: int) -> bytes | None:
        """Draw a series, ``size`` pixels wide, at a slice (None: the middle one). Returns None for no picture."""
        kind, planes = self._load_series(series_uid)
        reference = self._reference_planes()
        if not planes:
            return None
        place = _select_plane(reference or planes, slice_index)
        selected = pictures.find_nearest_plane(planes, place) or planes[len(planes) // 2]
        try:
            if kind == "parametric map":
                return pictures.draw_map(selected.path, selected.index, size)
            if kind == "segmentation":
                return self._draw_masks(planes, selected, size)
            return pictures.draw_frame(selected.path, selected.index, size)
        except InputRefused:
            return None

    def count_slices(self) -> int:
        """Return the number of slices of the reference series."""
        return len(self._reference_planes())

    def _draw_masks(self, planes: Sequence[FramePlane], selected: FramePlane, size: int) -> bytes:
        masks = tuple(plane for plane in planes if abs(plane.height_mm - selected.height_mm) < 1e-3)
        uid = _referenced_series(selected.path)
        background = self._load_series(uid)[1] if uid else ()
        return pictures.draw_overlay(masks, pictures.find_nearest_plane(background, selected), size)

    def _reference_planes(self) -> Sequence[FramePlane]:
        """Return the slices that all pictures follow: those of the job's first image, else of its first input."""
        with self.readers() as session:
            made = contents.list_results(session, [self.job_id]).get(self.job_id, [])
            inputs = contents.list_input_series(session, [self.job_id]).get(self.job_id, [])
        images = [each.series_uid for each in made if each.kind in ("image", "labelled image")]
        for uid in [*images, *(series.series_uid for _, series in inputs)]:
            if planes := self._load_series(uid)[1]:
                return planes
        return ()

    def _load_series(self, uid: str) -> tuple[str, Sequence[FramePlane]]:
        """Return kind and planes of a series among the job's inputs and results."""
        with self.readers() as session:  # closed before files are read
            files = contents.list_files(session, self.job_id, uid)
        paths = tuple(spool.path(self.spool_dir, sha256) for _, sha256 in files)
        return (files[0][0] if files else ""), pictures.list_planes(paths)


def _referenced_series(path: Path) -> str:
    """Return the UID of the series that a segmentation refers to, or ""."""
    try:
        items = frames.read_header(path).get("ReferencedSeriesSequence") or []
    except InputRefused:
        return ""
    return str(items[0].get("SeriesInstanceUID", "")) if items else ""


def _select_plane(planes: Sequence[FramePlane], slice_index: int | None) -> FramePlane:
    return planes[len(planes) // 2 if slice_index is None else min(max(slice_index, 0), len(planes) - 1)]


def _order_results(results: Sequence[Figure]) -> list[Figure]:
    """Order images and maps alternately, each image next to its uncertainty, and masks last."""
    images, maps, masks = ([each for each in results if each.kind == kind] for kind in ("image", "map", "mask"))
    pairs = [each for pair in zip(images, maps, strict=False) for each in pair]
    shorter = min(len(images), len(maps))
    return [*pairs, *images[shorter:], *maps[shorter:], *masks]


def _figure_kind(kind: str) -> str:
    return {"parametric map": "map", "segmentation": "mask"}.get(kind, "image")


def _source_caption(name: str, series: Series) -> str:
    description = str(series.attributes.get("SeriesDescription", "")) or series.modality
    return description if name == "match" else f"{description} ({name})"
