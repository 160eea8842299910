"""Which pictures show a job at a glance: its source, its images, their uncertainty, its masks; at one place."""

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
from dicomnode.web.pictures import Plane

__all__ = ["Figure", "depth", "drawn", "of_job"]

_MOST = 8
_DRAWN = ("labelled image", "image", "parametric map", "segmentation")


@dataclass(frozen=True)
class Figure:
    """A picture of a job's series. ``kind``: source, image, map or mask."""

    job_id: int
    series_uid: str
    kind: str
    words: str

    @property
    def address(self) -> str:
        """Where the picture is."""
        return f"/jobs/{self.job_id}/pictures/{self.series_uid}"


def of_job(job_id: int, taken: Sequence[tuple[str, Series]], made: Sequence[ResultSeries]) -> list[Figure]:
    """The source first; of each image its labelled twin where there is one, which says in its pixels what it is."""
    sources = [
        Figure(job_id, series.series_uid, "source", _source_words(name, series))
        for name, series in taken[:2]
        if series.modality not in ("SR", "KO", "DOC")
    ]
    kinds = {each.kind for each in made}
    wanted = [kind for kind in _DRAWN if not (kind == "image" and "labelled image" in kinds)]
    results = [
        Figure(job_id, each.series_uid, _kind(each.kind), each.description or each.kind)
        for each in made
        if each.kind in wanted
    ]
    return [*sources[:1], *_paired(results), *sources[1:]][:_MOST]


def drawn(
    readers: sessionmaker[Session], spool_dir: Path, job_id: int, figure_uid: str, at: int | None, size: int
) -> bytes | None:
    """The picture of a job's series at slice ``at`` of its reference series (None: the middle); None: none to draw."""
    kind, own = _series(readers, spool_dir, job_id, figure_uid)
    reference = _reference(readers, spool_dir, job_id)
    if not own:
        return None
    place = _slice(reference or own, at)
    shown = pictures.nearest(own, place) or own[len(own) // 2]
    try:
        if kind == "parametric map":
            return pictures.in_colours(shown.path, shown.index, size)
        if kind == "segmentation":
            return _masks(readers, spool_dir, job_id, own, shown, size)
        return pictures.as_it_is(shown.path, shown.index, size)
    except InputRefused:
        return None


def depth(readers: sessionmaker[Session], spool_dir: Path, job_id: int) -> int:
    """How many slices there are to look at."""
    return len(_reference(readers, spool_dir, job_id))


def _masks(
    readers: sessionmaker[Session], spool_dir: Path, job_id: int, own: Sequence[Plane], shown: Plane, size: int
) -> bytes:
    masks = tuple(plane for plane in own if abs(plane.height_mm - shown.height_mm) < 1e-3)
    uid = _referenced(shown.path)
    ground = _series(readers, spool_dir, job_id, uid)[1] if uid else ()
    return pictures.overlaid(masks, pictures.nearest(ground, shown), size)


def _referenced(path: Path) -> str:
    """The series that a segmentation lies on."""
    try:
        items = frames.header(path).get("ReferencedSeriesSequence") or []
    except InputRefused:
        return ""
    return str(items[0].get("SeriesInstanceUID", "")) if items else ""


def _slice(planes: Sequence[Plane], at: int | None) -> Plane:
    return planes[len(planes) // 2 if at is None else min(max(at, 0), len(planes) - 1)]


def _reference(readers: sessionmaker[Session], spool_dir: Path, job_id: int) -> Sequence[Plane]:
    """The slices that all pictures of a job follow: those of its first image, else those of its source."""
    with readers() as session:
        made = contents.list_results(session, [job_id]).get(job_id, [])
        taken = [series.series_uid for _, series in contents.list_input_series(session, [job_id]).get(job_id, [])]
    images = [each.series_uid for each in made if each.kind in ("image", "labelled image")]
    for uid in [*images, *taken]:
        if found := _series(readers, spool_dir, job_id, uid)[1]:
            return found
    return ()


def _series(readers: sessionmaker[Session], spool_dir: Path, job_id: int, uid: str) -> tuple[str, Sequence[Plane]]:
    """Kind and planes of a series that a job took or made."""
    with readers() as session:  # it is not kept while files are read
        files = contents.list_files(session, job_id, uid)
    paths = tuple(spool.path(spool_dir, sha256) for _, sha256 in files)
    return (files[0][0] if files else ""), pictures.planes(paths)


def _paired(results: Sequence[Figure]) -> list[Figure]:
    """Images and maps in turns, each image beside its uncertainty; masks last."""
    images, maps, masks = ([each for each in results if each.kind == kind] for kind in ("image", "map", "mask"))
    pairs = [each for pair in zip(images, maps, strict=False) for each in pair]
    shorter = min(len(images), len(maps))
    return [*pairs, *images[shorter:], *maps[shorter:], *masks]


def _kind(kind: str) -> str:
    return {"parametric map": "map", "segmentation": "mask"}.get(kind, "image")


def _source_words(name: str, series: Series) -> str:
    told = str(series.attributes.get("SeriesDescription", "")) or series.modality
    return told if name == "match" else f"{told} ({name})"
