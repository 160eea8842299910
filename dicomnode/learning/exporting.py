"""Cases as folders and as the table of a recipe: the spool's files, and label maps as NIfTI on the image's grid."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import InputRefused
from dicomnode.learning.cases import Case
from dicomnode.learning.targets import Target
from dicomnode.nifti import images
from dicomnode.reading import folders, segmentations, volumes
from model_zoo.structures import STRUCTURES
from pipelines.contract import Labels, Volume

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["link_files", "make_row", "write_table"]

_ROW = "row.json"
_STRUCTURES = "structures"


def link_files(case: Case, folder: Path) -> None:
    """Give the files of a case a second name below ``folder``, so that retention does not end a run; else copy them.

    The folder goes when the run ends.
    """
    for column, paths in case.files.items():
        (folder / column).mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            target = folder / column / f"{number:05}.dcm"
            try:
                os.link(path, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, target)


def make_row(
    folder: Path, target: Target, numbers: Mapping[str, float], load_anatomy: Callable[[], Model]
) -> dict[str, str]:
    """Return the cells of a case by column, with paths from the table; label maps are written once.

    Raises InputRefused where an image or a label map cannot be read, or does not fit.
    """
    written = folder / _ROW
    if not written.is_file():
        content = json.dumps(_make_cells(folder, target, numbers, load_anatomy))
        written.with_suffix(".tmp").write_text(content)
        written.with_suffix(".tmp").replace(written)
    cells: dict[str, str] = json.loads(written.read_text())
    return cells


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the table of a recipe; its rows begin on line 2."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _make_cells(
    folder: Path, target: Target, numbers: Mapping[str, float], load_anatomy: Callable[[], Model]
) -> dict[str, str]:
    names = [each.name for each in sorted(folder.iterdir()) if each.is_dir()]
    labels = [name for name in names if name in target.label_maps]
    read = {name: volumes.read(folders.list_instances(folder / name)).volume for name in names if name not in labels}
    first = next(iter(target.inputs), target.column)
    _check_images(read, target, first)
    cells = {name: f"{folder.parent.name}/{folder.name}/{name}" for name in read}
    for name in labels:
        found, _, _ = segmentations.read(folders.list_instances(folder / name))
        _write_labels(folder / f"{name}.nii.gz", _renumber(name, found), found, read[first])
    if target.structures:
        _write_structures(folder / f"{target.structures}.nii.gz", read[first], load_anatomy())
        labels.append(target.structures)
    cells |= {name: f"{folder.parent.name}/{folder.name}/{name}.nii.gz" for name in labels}
    apart = any(not each.grid.matches(read[first].grid) for each in read.values())
    return cells | {name: f"{value:g}" for name, value in numbers.items()} | ({"resample": "yes"} if apart else {})


def _check_images(read: Mapping[str, Volume], target: Target, first: str) -> None:
    """Raise InputRefused for an image on which training or evaluation would stop, or in another unit."""
    for name, image in read.items():
        if image.grid.shape[0] < 2:
            raise InputRefused(f"the series of the column {name} is a single slice")
        if not np.isfinite(image.data).all() or not float(np.ptp(image.data)):
            raise InputRefused(f"the image of the column {name} is the same everywhere, or not finite")
        if target.has_one_unit and image.unit != read[first].unit:
            raise InputRefused(f"the column {name} is in {image.unit}, the column {first} in {read[first].unit}")


def _renumber(column: str, found: Labels) -> NDArray[np.uint8]:
    """Return the numbers that the recipe takes: of structures by their names, else 1 for every segment."""
    lookup = np.zeros(max((each.number for each in found.segments), default=0) + 1, np.uint8)
    known = {each.name: each.number for each in STRUCTURES}
    for segment in found.segments:
        name = segment.label.strip().casefold()
        if column == _STRUCTURES and name not in known:
            raise InputRefused(f"segment {segment.number} of its label map is no structure of the anatomy model")
        lookup[segment.number] = known[name] if column == _STRUCTURES else 1
    if column == _STRUCTURES and (missing := sorted(set(known.values()) - set(lookup.tolist()))):
        names = ", ".join(each.name for each in STRUCTURES if each.number in missing)
        raise InputRefused(f"its label map has no segment for: {names}")
    return np.asarray(lookup[found.data], np.uint8)


def _write_labels(path: Path, values: NDArray[np.uint8], found: Labels, onto: Volume) -> None:
    from pipelines import resampling

    on_grid = resampling.resample_labels(values, found.grid, onto.grid, int(values.max(initial=0)))
    if not on_grid.any():
        raise InputRefused("its label map covers nothing of the image")
    images.write(path, on_grid, onto.grid, description="label map, drawn or accepted by a person")


def _write_structures(path: Path, image: Volume, anatomy: Model) -> None:
    from pipelines.anatomy import check_head, segment_head

    check_head(image)
    images.write(path, segment_head(image, anatomy).image_labels, image.grid)
