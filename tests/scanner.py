"""A small simulated scanner: it measures points at known places in the patient and writes MRD files by ismrmrd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from ismrmrd import xsd
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dicomnode import mrd
from pipelines.contract import Grid

__all__ = ["ORIENTATIONS", "Scan", "acquire", "make_grid", "reconstruct"]

Array = NDArray[np.float64]

_OBLIQUE = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
ORIENTATIONS: dict[str, Array] = {  # rows: read, phase and slice direction in LPS
    "axial": np.eye(3),
    "sagittal": np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "oblique": np.asarray(_OBLIQUE),
    "axial, left-handed": np.diag([1.0, 1.0, -1.0]),
    "oblique, left-handed": np.asarray(_OBLIQUE * np.array([[1], [-1], [1]])),
}


def _keep_unchanged(_: Any) -> None:
    """Leave the object unchanged."""


@dataclass
class Scan:
    """Parameters of a scan: sizes (read, phase, slice or partition); ``voxel_mm`` of the encoded matrix."""

    n: tuple[int, int, int] = (24, 20, 1)
    voxel_mm: tuple[float, float, float] = (1.5, 2.0, 4.0)
    directions: Array = field(default_factory=lambda: np.eye(3))
    centre_mm: tuple[float, float, float] = (12.5, -30.0, 7.25)
    slices: int = 1
    gap_mm: float = 1.0
    order: Sequence[int] | None = None
    oversampling: int = 1
    coils: int = 2
    averages: int = 1
    sampled: Callable[[int, int], bool] = lambda y, z: True
    points_mm: Sequence[Array] = ()
    first_sample: int = 0
    noise_samples: int = 0
    edit_header: Callable[[Any], None] = _keep_unchanged
    edit: Callable[[Any], None] = _keep_unchanged

    def position_mm(self, slice_number: int) -> Array:
        """Return the centre of a slice, counted by position in space."""
        along = (slice_number - (self.slices - 1) / 2) * (self.voxel_mm[2] + self.gap_mm)
        place: Array = np.array(self.centre_mm) + along * self.directions[2]
        return place

    def place_mm(self, x: int, y: int, z: int, slice_number: int = 0) -> Array:
        """Return the centre of an encoded voxel, whose indices count from the centre of the plane or slab."""
        offset = np.array([x, y, z]) * self.voxel_mm @ self.directions
        place: Array = self.position_mm(slice_number) + offset
        return place


def acquire(scan: Scan, path: Path) -> mrd.MRD:
    """Measure the scan and write it by ismrmrd; return the file as the node reads it."""
    header = _make_header(scan)
    scan.edit_header(header)
    generator = np.random.default_rng(3)
    with ismrmrd.Dataset(str(path), mode="w") as file:
        file.write_xml_header(xsd.ToXML(header).encode())
        for acquisition in _make_acquisitions(scan, generator):
            scan.edit(acquisition)
            file.append_acquisition(acquisition)
    return mrd.read(path)


def reconstruct(samples: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the magnitude (slice, a, b) of the centred inverse transform, with coils combined."""
    shifted = np.fft.ifftshift(samples, axes=(2, 3))
    coils = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(2, 3))
    return np.asarray(np.sqrt((np.abs(coils) ** 2).sum(axis=1)), np.float32)


def make_grid(
    orientation: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    first_mm: tuple[float, float, float],
) -> Grid:
    """Return a grid with voxels (k, j, i) along slice, phase and read; ``first_mm`` is the centre of the first."""
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[orientation].T * spacing_mm[::-1]
    affine[:3, 3] = first_mm
    return Grid(shape, affine)


def _make_acquisitions(scan: Scan, generator: np.random.Generator) -> list[Any]:
    acquisitions = []
    if scan.noise_samples:
        noise = generator.normal(size=(scan.coils, scan.noise_samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
        acquisitions.append(_make_acquisition(scan, noise, np.array(scan.centre_mm)))
        acquisitions[-1].setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    excited = scan.order or range(scan.slices)
    for counter, place in enumerate(excited):
        for average in range(scan.averages):
            for z in range(scan.n[2]):
                for y in range(scan.n[1]):
                    if scan.sampled(y, z):
                        acquisitions.append(_make_line(scan, place, y, z))
                        acquisitions[-1].idx.slice, acquisitions[-1].idx.average = counter, average
    return acquisitions


def _make_line(scan: Scan, place: int, y: int, z: int) -> Any:
    nx = scan.n[0] * scan.oversampling
    fov = np.array([scan.n[axis] * scan.voxel_mm[axis] for axis in range(3)]) * [scan.oversampling, 1, 1]
    samples = np.arange(scan.first_sample, nx)
    k = np.stack([samples - nx // 2, np.full_like(samples, y - scan.n[1] // 2),
                  np.full_like(samples, z - scan.n[2] // 2 if scan.n[2] > 1 else 0)], axis=1) / fov  # fmt: skip
    centre = scan.position_mm(place)
    signal = np.full(len(samples), 1e-6 + 0j)  # a receiver never reads exact zeros
    for point in scan.points_mm:
        offset = (point - centre) @ scan.directions.T
        if scan.n[2] > 1 or abs(offset[2]) < scan.voxel_mm[2] / 2:
            signal += np.exp(-2j * np.pi * k @ offset)
    weights = np.exp(1j * np.arange(scan.coils)) / (1 + np.arange(scan.coils))
    acquisition = _make_acquisition(scan, (weights[:, None] * signal).astype(np.complex64), centre)
    acquisition.center_sample = nx // 2 - scan.first_sample
    acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = y, z
    return acquisition


def _make_acquisition(scan: Scan, data: NDArray[np.complex64], position_mm: Array) -> Any:
    acquisition = ismrmrd.Acquisition.from_array(data, sample_time_us=5.0)
    acquisition.position[:] = position_mm.tolist()
    acquisition.read_dir[:], acquisition.phase_dir[:], acquisition.slice_dir[:] = scan.directions.tolist()
    return acquisition


def _make_header(scan: Scan) -> Any:
    nx, ny, nz = scan.n
    fov = [count * size for count, size in zip(scan.n, scan.voxel_mm, strict=True)]
    encoded = _make_space((nx * scan.oversampling, ny, nz), (fov[0] * scan.oversampling, fov[1], fov[2]))
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_1=xsd.limitType(minimum=0, maximum=ny - 1, center=ny // 2),
        kspace_encoding_step_2=xsd.limitType(minimum=0, maximum=nz - 1, center=nz // 2),
        slice=xsd.limitType(minimum=0, maximum=scan.slices - 1, center=0))  # fmt: skip
    encoding = xsd.encodingType(
        encodedSpace=encoded, reconSpace=_make_space(scan.n, (fov[0], fov[1], fov[2])), encodingLimits=limits,
        trajectory=xsd.trajectoryType.CARTESIAN)  # fmt: skip
    return xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_500_000),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="Scanner works", receiverChannels=scan.coils, systemFieldStrength_T=1.5),
        subjectInformation=xsd.subjectInformationType(
            patientName="Müller^Jörg", patientID="4711", patientGender="M",
            patientBirthdate=xsd.ismrmrdschema.ismrmrd.XmlDate(1970, 1, 31)),
        studyInformation=xsd.studyInformationType(
            studyInstanceUID="1.2.826.0.1.3680043.8.498.1", accessionNumber=815, bodyPartExamined="HEAD"),
        encoding=[encoding],
        sequenceParameters=xsd.sequenceParametersType(TR=[2000.0], TE=[30.0], flipAngle_deg=[90.0]))  # fmt: skip


def _make_space(n: tuple[int, int, int], fov: tuple[float, float, float]) -> Any:
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=n[0], y=n[1], z=n[2]),
        fieldOfView_mm=xsd.fieldOfViewMm(x=fov[0], y=fov[1], z=fov[2]))  # fmt: skip
