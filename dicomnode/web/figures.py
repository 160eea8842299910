"""The pictures that summarize a job: its source, its images, their uncertainty and its masks, at one slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import RawDataStorage
from sqlalchemy.orm import Session, sessionmaker

from db import contents
from db.contents import ResultSeries
from db.models import Job, Series
from dicomnode.errors import InputRefused, NotFound
from dicomnode.reading import frames
from dicomnode.reading.unreadable import UNDECODABLE
from dicomnode.storage import spool
from dicomnode.web import kspace_pictures, pictures, segments
from dicomnode.web.pictures import FramePlane, WindowChange
from dicomnode.web.reading_table import build_table, choose_slice

__all__ = ["Figure", "JobPictures", "find_correction", "find_referenced_series", "list_figures", "move_to_prior"]

_MOST_FIGURES = 8
_DRAWABLE_KINDS = ("labelled image", "image", "parametric map", "segmentation")


@dataclass(frozen=True)
class Figure:
    """A picture of a job's series. ``kind``: prior, source, image, map or mask."""

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

    def draw(
        self, series_uid: str, slice_index: int | None, size: int, change: WindowChange = WindowChange()
    ) -> bytes | None:
        """Draw a series, ``size`` pixels wide, at a slice (None: the first to show). Returns None for no picture."""
        kind, planes = self.load_series(series_uid)
        reference = self.reference_planes()
        slice_index = self.find_first_slice() if slice_index is None else slice_index
        if not planes:
            return self._draw_kspace(series_uid, reference, slice_index, size, change)
        place = _select_plane(reference or planes, slice_index)
        try:
            if kind == "segmentation":
                return self._draw_masks(planes, place, size, change)
            selected = self._select_frame(series_uid, planes, place)
            if selected is None:
                return None
            if kind == "parametric map":
                return pictures.draw_map(_mark(selected), size)
            plane = _clear_band(selected) if kind == "labelled image" else _mark(selected) if kind else selected
            return pictures.draw_frame(plane, size, change)
        except InputRefused:
            return None

    def draw_mask_thumbnail(self, series_uid: str, size: int) -> bytes | None:
        """Draw the middle one of the slices that a segmentation marks, on its source; None without a mask."""
        _, planes = self.load_series(series_uid)
        try:
            return self._draw_masks(planes, planes[len(planes) // 2], size, WindowChange()) if planes else None
        except InputRefused:
            return None

    def find_first_slice(self) -> int:
        """Return the slice to show first: that of the first finding, else the middle one. Raises NotFound, NodeBusy."""
        reference = self.reference_planes()
        with self.readers() as session:
            job = session.get(Job, self.job_id)
            if job is None:
                raise NotFound(f"no job {self.job_id}")
            return choose_slice(None, build_table(session, self.spool_dir, job, reference), len(reference))

    def _select_frame(self, series_uid: str, planes: Sequence[FramePlane], place: FramePlane) -> FramePlane | None:
        """Return the frame at a place; of an earlier examination None rather than a frame of another orientation."""
        with self.readers() as session:
            prior = contents.list_prior_series(session, self.job_id).get(series_uid)
            report = session.get_one(Job, self.job_id).report
        if prior is not None:
            return pictures.find_nearest_plane(planes, move_to_prior(place, find_correction(report, prior[0])))
        return pictures.find_nearest_plane(planes, place) or planes[len(planes) // 2]

    def _draw_kspace(
        self,
        series_uid: str,
        reference: Sequence[FramePlane],
        slice_index: int | None,
        size: int,
        change: WindowChange,
    ) -> bytes | None:
        """Draw the zero-filled image of k-space at a slice; None for another object without slices."""
        with self.readers() as session:
            files = contents.list_files(session, self.job_id, series_uid)
        place = _select_plane(reference, slice_index).centre_mm if reference else None
        try:
            path = spool.path(self.spool_dir, files[0][1]) if len(files) == 1 else None
            return kspace_pictures.draw_kspace(path, place, size, change) if path is not None else None
        except InputRefused:
            return None

    def _draw_masks(
        self, planes: Sequence[FramePlane], place: FramePlane, size: int, change: WindowChange
    ) -> bytes | None:
        """Draw the masks of the slice at a place on the image that they refer to, which is bare where none is there."""
        selected = pictures.find_nearest_plane(planes, place) or planes[len(planes) // 2]
        uid = find_referenced_series(selected.path)
        background = self.load_series(uid)[1] if uid else ()
        background_plane = pictures.find_nearest_plane(background, place)
        slices = background or self.reference_planes()
        at = pictures.find_nearest_plane(slices, place) or selected
        masks = tuple(plane for plane in planes if _is_at(plane, at, slices))
        if not masks and background_plane is not None:
            return pictures.draw_frame(_mark(background_plane), size, change)
        marked = tuple(map(_mark, masks))
        return pictures.draw_overlay(marked, background_plane, size, change, segments.list_colours(selected.path))

    def reference_planes(self) -> Sequence[FramePlane]:
        """Return the slices that all pictures follow: those of the job's first image, else of its first input."""
        with self.readers() as session:
            made = contents.list_results(session, [self.job_id]).get(self.job_id, [])
            inputs = contents.list_input_series(session, [self.job_id]).get(self.job_id, [])
        images = [each.series_uid for each in made if each.kind in ("image", "labelled image")]
        for uid in [*images, *(series.series_uid for _, series in inputs)]:
            if planes := self.load_series(uid)[1]:
                return planes
        return ()

    def load_series(self, uid: str) -> tuple[str, Sequence[FramePlane]]:
        """Return kind and planes of a series among the job's inputs and results."""
        with self.readers() as session:  # closed before files are read
            files = contents.list_files(session, self.job_id, uid)
        paths = tuple(spool.path(self.spool_dir, sha256) for _, sha256 in files)
        return (files[0][0] if files else ""), pictures.list_planes(paths)


def find_correction(report: Mapping[str, Any], input_name: str) -> NDArray[np.float64] | None:
    """Return the motion (4 x 4, mm) that a job found from an input's positions to the result's, or None."""
    for each in report.get("alignments", ()):
        if each["input"] == input_name:
            return np.asarray(each["correction_mm"], np.float64)
    return None


def move_to_prior(place: FramePlane, correction_mm: NDArray[np.float64] | None) -> FramePlane:
    """Return the place in an earlier examination's positions; unchanged where no motion between both is known."""
    if correction_mm is None:
        return place
    back = np.linalg.inv(correction_mm)
    x, y, z = (back @ [*place.centre_mm, 1.0])[:3]
    u, v, w = back[:3, :3] @ place.normal
    return replace(place, centre_mm=(float(x), float(y), float(z)), normal=(float(u), float(v), float(w)))


def _is_at(plane: FramePlane, at: FramePlane, slices: Sequence[FramePlane]) -> bool:
    """Return whether a mask lies on a slice: nearer to it than to its neighbours, half a slice away at most."""
    heights = [each.height_mm for each in slices]
    spacing_mm = float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0
    return abs(plane.height_mm - at.height_mm) < max(0.45 * abs(spacing_mm), 1e-3)


@lru_cache(maxsize=256)
def find_referenced_series(path: Path) -> str:
    """Return the UID of the series that a segmentation refers to, or ""."""
    try:
        items = frames.read_keywords(path, ["ReferencedSeriesSequence"]).get("ReferencedSeriesSequence") or []
        return str(items[0].get("SeriesInstanceUID", "")) if items else ""
    except (InputRefused, *UNDECODABLE):
        return ""


def _select_plane(planes: Sequence[FramePlane], slice_index: int | None) -> FramePlane:
    return planes[len(planes) // 2 if slice_index is None else min(max(slice_index, 0), len(planes) - 1)]


def _mark(plane: FramePlane) -> FramePlane:
    """Return a plane whose picture says that it is synthetic."""
    return replace(plane, is_marked=True)


def _clear_band(plane: FramePlane) -> FramePlane:
    """Return a labelled plane without its lower letter, which would stand on the words SYNTHETIC."""
    return replace(plane, sides=(*plane.sides[:3], ""))


def _order_results(results: Sequence[Figure]) -> list[Figure]:
    """Order images and maps alternately, each image next to its uncertainty, and masks last."""
    images, maps, masks = ([each for each in results if each.kind == kind] for kind in ("image", "map", "mask"))
    pairs = [each for pair in zip(images, maps, strict=False) for each in pair]
    shorter = min(len(images), len(maps))
    return [*pairs, *images[shorter:], *maps[shorter:], *masks]


def _figure_kind(kind: str) -> str:
    return {"parametric map": "map", "segmentation": "mask"}.get(kind, "image")


def _source_caption(name: str, series: Series) -> str:
    if series.attributes.get("SOPClassUID") == RawDataStorage:
        return "zero-filled: computed by this node from the measured k-space, not an image of the scanner"
    description = str(series.attributes.get("SeriesDescription", "")) or series.modality
    return description if name == "match" else f"{description} ({name})"
