"""Removal of faces from images of heads. Needs torch: runs in a worker for results, in the command for series."""

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

__all__ = ["SeriesFaceMask", "locate_face", "remove_faces"]

_log = logging.getLogger(__name__)


def remove_faces(
    rendition: ResultsConfig, findings: Sequence[Finding], case: Case, made_by: Provenance, model: Callable[[], Model]
) -> tuple[Sequence[Finding], Provenance]:
    """Return findings without faces, and their provenance, where the rendition demands that; else both unchanged.

    Where the face cannot be located, both stay unchanged too; ``faces.check_face`` then refuses such images to every
    destination that demands images without faces.
    """
    if not isinstance(rendition, DefacedResultsConfig):
        return findings, made_by
    try:
        face_region = face.find_face(_find_head_image(findings, case), model())
    except Refused as refusal:
        _log.warning("no face is removed: %s", refusal)
        return findings, made_by
    cleared = [
        _without_face(each, face_region) if isinstance(each, Image | ParametricMap) else each for each in findings
    ]
    return cleared, replace(made_by, parameters=dict(made_by.parameters) | {"face": "removed"})


def _find_head_image(findings: Sequence[Finding], case: Case) -> Volume:
    """Return an MR image of the case, or one that was computed from it. Raises Refused."""
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


def _without_face(finding: Image | ParametricMap, face_region: face.FaceMask) -> Finding:
    volume = finding.volume
    data = volume.data.copy()
    data[face_region.find_removed_voxels(volume.grid)] = data.min()
    return replace(finding, volume=replace(volume, data=data))


@dataclass(frozen=True)
class SeriesFaceMask:
    """Pixels of a series that show the face.

    ``planes``: bool (row, column) by file and frame, true in the face; ``fill``: the stored value that replaces them.
    """

    planes: Mapping[tuple[Path, int], NDArray[np.bool_]]
    fill: int

    def remove(self, path: Path, ds: Dataset) -> None:
        """Remove the face from the data set of a file; its pixels are uncompressed afterwards. Raises InputRefused."""
        try:
            ds.decompress(generate_instance_uid=False) if ds.file_meta.TransferSyntaxUID.is_encapsulated else None
            stack = stored_values.decode_frames(ds, ds).copy()
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
        faces.mark_face_removed(ds)


def locate_face(paths: Sequence[Path], model: Model) -> SeriesFaceMask:
    """Locate the face in the slices of one MR series. Raises InputRefused or Refused."""
    found = volumes.read(paths)
    removed = face.find_face(found.volume, model, found.facts).find_removed_voxels(found.volume.grid)
    to_index = np.linalg.inv(found.volume.grid.affine_mm)
    planes: dict[tuple[Path, int], NDArray[np.bool_]] = {}
    least = []
    for path in paths:
        header = frames.read_header(path)
        least.append(int(stored_values.decode_frames(path, header).min()))
        for frame in frames.frames_of(header):
            position = frame.numbers("ImagePositionPatient", 3)
            if position is None:
                raise InputRefused("face: a slice has no place in the patient")
            planes[path, frame.number] = removed[round(float((to_index @ [*position, 1])[2]))]
    return SeriesFaceMask(planes, min(least))
