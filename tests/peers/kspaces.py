"""k-space to send: the centre of real acquisitions of the data kit, or of a phantom where the kit is not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomnode import mrd
from model_zoo.simulate.anatomy import data_root
from pipelines.contract import Grid

__all__ = ["DIRECTIONS", "Acquisition", "acquisitions"]

ROWS, COLUMNS, SLICES = 48, 64, 3
SPACING_MM = (5.0, 2.5, 2.0)

DIRECTIONS: dict[str, NDArray[np.float64]] = {
    # columns: the directions of increasing column index, row index and slice
    "axial": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], float),
    "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float),
    "oblique": np.linalg.qr(np.array([[0.9, 0.2, 0.1], [-0.3, 0.8, 0.2], [0.1, -0.3, 0.95]]))[0],
}


@dataclass(frozen=True)
class Acquisition:
    """A Raw Data file, the lattice it encodes, and the magnitude of the image in it, (k, j, i)."""

    path: Path
    grid: Grid
    magnitude: NDArray[np.float64]
    patient_name: str


def acquisitions(folder: Path) -> dict[str, Acquisition]:
    """One acquisition for each plane of the body: different slices of different scans, so that none is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    stacks = _stacks()
    made = {}
    for number, (plane, directions) in enumerate(DIRECTIONS.items()):
        grid = _grid(directions, number)
        samples = stacks[number % len(stacks)]
        recorded = mrd.from_array(samples[:, None], grid=grid, slice_thickness_mm=4.0)
        mrd.write(recorded, folder / f"{plane}.mrd")
        name = "Müller^Jürgen" if plane == "oblique" else f"Phantom^{plane.title()}"
        facts = {"PatientID": f"P{number}", "PatientName": name, "SeriesDescription": plane}
        ds = mrd.wrap((folder / f"{plane}.mrd").read_bytes(), now=datetime.now(UTC), facts=facts)
        ds.save_as(folder / f"{plane}.dcm", enforce_file_format=True)
        made[plane] = Acquisition(folder / f"{plane}.dcm", grid, _magnitude(samples), name)
    return made


def _grid(directions: NDArray[np.float64], number: int) -> Grid:
    affine = np.eye(4)
    if np.linalg.det(directions) < 0:
        directions = directions * [1, 1, -1]
    affine[:3, :3] = directions * SPACING_MM[::-1]
    affine[:3, 3] = [-50.0 + 7 * number, 20.5, -12.25]
    return Grid((SLICES, ROWS, COLUMNS), affine)


def _stacks() -> list[NDArray[np.complex64]]:
    try:
        scans = sorted((data_root() / "kspace" / "ulf-0p055t-paired-3t").glob("*/*GRE_kspace.mat"))
    except FileNotFoundError:
        scans = []
    return [_real(scan) for scan in scans] or [_phantom(number) for number in range(len(DIRECTIONS))]


def _real(scan: Path) -> NDArray[np.complex64]:
    """The middle of k-space, where its strongest sample is: a scan of lower resolution."""
    from scipy.io import loadmat

    stack = loadmat(scan)["kspace"].transpose(2, 1, 0)
    _, a, b = np.unravel_index(np.argmax(np.abs(stack)), stack.shape)
    centred = np.roll(stack, (stack.shape[1] // 2 - a, stack.shape[2] // 2 - b), axis=(1, 2))
    top, left = stack.shape[1] // 2 - ROWS // 2, stack.shape[2] // 2 - COLUMNS // 2
    return np.ascontiguousarray(centred[:SLICES, top : top + ROWS, left : left + COLUMNS], np.complex64)


def _phantom(number: int) -> NDArray[np.complex64]:
    """An ellipse with a bright spot elsewhere in each slice, and noise."""
    generator = np.random.default_rng(number)
    j, i = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    image = np.stack([(j**2 / 0.6 + i**2 / 0.5 < 1) + 0.0 for _ in range(SLICES)])
    for k in range(SLICES):
        image[k] += np.hypot(j - 0.3 * (k - 1), i + 0.2 * (number - 1)) < 0.15
    samples = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    noise = generator.normal(size=(2, *samples.shape)) * 0.02
    return np.asarray(samples + noise[0] + 1j * noise[1], np.complex64)


def _magnitude(samples: NDArray[np.complex64]) -> NDArray[np.float64]:
    shifted = np.fft.ifftshift(samples, axes=(1, 2))
    return np.abs(np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(1, 2))).astype(np.float64)
