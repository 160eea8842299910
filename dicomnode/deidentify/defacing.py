"""Faces taken out of images of heads, where torch is at hand: in a worker for results, in the command for series."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.config.results import DefacedResultsConfig, ResultsConfig
from dicomnode.deidentify import faces
from dicomnode.errors import InputRefused
from dicomnode.reading import frames, stored_values, volumes
from dicomnode.results.provenance import Provenance
from pipelines import face
from pipelines.contract import Case, Finding, Image, ParametricMap, Refused, Volume

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["FaceOfSeries", "series", "shown"]

_log = logging.getLogger(__name__)


def shown(
    form: ResultsConfig, findings: Sequence[Finding], case: Case, made_by: Provenance, model: Callable[[], Model]
) -> tuple[Sequence[Finding], Provenance]:
    """The findings for a form, and their provenance, which is another one where faces were taken out of images and
    maps. Where it is doubtful where the face is, both stay, and their images go to nobody who wants no faces."""
    if not isinstance(form, DefacedResultsConfig):
        return findings, made_by
    try:
        kept = face.find_face(_head(findings, case), model())
    except Refused as refusal:
        _log.warning("no face is taken away: %s", refusal)
        return findings, made_by
    cleared = [_cleared(each, kept) if isinstance(each, Image | ParametricMap) else each for each in findings]
    return cleared, replace(made_by, parameters=dict(made_by.parameters) | {"face": "removed"})


def _head(findings: Sequence[Finding], case: Case) -> Volume:
    """An MR image of the case, or one that was made of it. Raises Refused."""
    names = [name for name, each in case.inputs.items() if isinstance(each, Volume)]
    for at, name in enumerate(names):
        facts = case.facts.get(name) or (case.facts if at == 0 else {})
        if facts.get("modality") == "MR":
            found = case[name]
            assert isinstance(found, Volume)
            return found
    for each in findings:
        if isinstance(each, Image) and each.modality == "MR":
            return each.volume
    raise Refused("no MR image shows where it is")


def _cleared(finding: Image | ParametricMap, kept: face.FaceMask) -> Finding:
    volume = finding.volume
    data = volume.data.copy()
    data[kept.find_removed_voxels(volume.grid)] = data.min()
    return replace(finding, volume=replace(volume, data=data))


@dataclass(frozen=True)
class FaceOfSeries:
    """``planes``: bool (row, column) by file and frame, true where it loses its values; ``fill``: their stored one."""

    planes: Mapping[tuple[Path, int], NDArray[np.bool_]]
    fill: int

    def remove(self, path: Path, ds: Dataset) -> None:
        """From the pixels of the data set of that file, which is uncompressed then. Raises InputRefused."""
        try:
            ds.decompress(generate_instance_uid=False) if ds.file_meta.TransferSyntaxUID.is_encapsulated else None
            stack = stored_values.stored(ds, ds).copy()
        except InputRefused:
            raise
        except Exception as error:  # whatever a decoder raises
            raise InputRefused(f"face: an instance's pixels cannot be decoded ({type(error).__name__})") from None
        for number in range(len(stack)):
            stack[number][self.planes[path, number]] = self.fill
        ds.PixelData = stack.astype(stack.dtype.newbyteorder("<")).tobytes()
        ds.HighBit = ds.BitsStored - 1
        ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue"):
            ds.pop(keyword, None)
        faces.say(ds)


def series(paths: Sequence[Path], model: Model) -> FaceOfSeries:
    """Where the face is in the slices of one MR series. Raises InputRefused or Refused."""
    found = volumes.read(paths)
    removed = face.find_face(found.volume, model, found.facts).find_removed_voxels(found.volume.grid)
    to_index = np.linalg.inv(found.volume.grid.affine_mm)
    planes: dict[tuple[Path, int], NDArray[np.bool_]] = {}
    least = []
    for path in paths:
        header = frames.header(path)
        least.append(int(stored_values.stored(path, header).min()))
        for frame in frames.frames_of(header):
            position = frame.numbers("ImagePositionPatient", 3)
            if position is None:
                raise InputRefused("face: a slice has no place in the patient")
            planes[path, frame.number] = removed[round(float((to_index @ [*position, 1])[2]))]
    return FaceOfSeries(planes, min(least))
