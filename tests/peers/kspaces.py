"""k-space to send: the centre of real acquisitions of the data kit, or a phantom without the kit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomnode import mrd
from model_zoo.data_kit import data_root
from pipelines.contract import Grid
from tests import scanner

__all__ = ["PLANES", "Acquisition", "acquisitions", "raw_data"]

PLANES = ("axial", "sagittal", "coronal", "oblique")
ROWS, COLUMNS, SLICES = 48, 64, 3
SPACING_MM = (5.0, 2.5, 2.0)


@dataclass(frozen=True)
class Acquisition:
    """Raw Data file, the grid that it encodes, and the magnitude of its image (k, j, i)."""

    path: Path
    grid: Grid
    magnitude: NDArray[np.float32]
    patient_name: str


def acquisitions(folder: Path) -> dict[str, Acquisition]:
    """Write one acquisition for each plane of the body, from different slices of different scans: no two share data."""
    folder.mkdir(parents=True, exist_ok=True)
    stacks = _load_stacks()
    written = {}
    for number, plane in enumerate(PLANES):
        grid = scanner.make_grid(plane, (SLICES, ROWS, COLUMNS), SPACING_MM, (-50.0 + 7 * number, 20.5, -12.25))
        samples = stacks[number % len(stacks)][:, None]
        name = "Müller^Jürgen" if plane == "oblique" else f"Phantom^{plane.title()}"
        facts = {"PatientID": f"P{number}", "PatientName": name, "SeriesDescription": plane}
        recorded = mrd.from_array(samples, grid=grid, slice_thickness_mm=4.0)
        path = _save(recorded, folder / f"{plane}.dcm", datetime.now(UTC), facts)
        written[plane] = Acquisition(path, grid, scanner.reconstruct(samples), name)
    return written


def raw_data(path: Path, now: datetime, **facts: str) -> Path:
    """Write one slice of the phantom, every second line and a calibration block, which is fast to reconstruct."""
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[::2] = mask[ROWS // 2 - 8 : ROWS // 2 + 8] = True
    samples = (_make_phantom(0)[:1] * mask)[:, None]
    grid = scanner.make_grid("axial", (1, ROWS, COLUMNS), SPACING_MM, (0.0, 0.0, 0.0))
    return _save(mrd.from_array(samples, grid=grid, slice_thickness_mm=5.0, mask=mask), path, now, facts)


def _save(recorded: mrd.MRD, path: Path, now: datetime, facts: dict[str, str]) -> Path:
    file = path.with_suffix(".mrd")
    mrd.write(recorded, file)
    mrd.wrap(file.read_bytes(), now=now, facts=facts).save_as(path, enforce_file_format=True)
    file.unlink()
    return path


def _load_stacks() -> list[NDArray[np.complex64]]:
    try:
        scans = sorted((data_root() / "kspace" / "ulf-0p055t-paired-3t").glob("*/*GRE_kspace.mat"))
    except FileNotFoundError:
        scans = []
    return [_load_centre(scan) for scan in scans] or [_make_phantom(number) for number in range(len(PLANES))]


def _load_centre(scan: Path) -> NDArray[np.complex64]:
    """Return the part of k-space about its strongest sample, as of a scan of lower resolution."""
    from scipy.io import loadmat

    stack = loadmat(scan)["kspace"].transpose(2, 1, 0)
    _, a, b = np.unravel_index(np.argmax(np.abs(stack)), stack.shape)
    centred = np.roll(stack, (stack.shape[1] // 2 - a, stack.shape[2] // 2 - b), axis=(1, 2))
    top, left = stack.shape[1] // 2 - ROWS // 2, stack.shape[2] // 2 - COLUMNS // 2
    return np.ascontiguousarray(centred[:SLICES, top : top + ROWS, left : left + COLUMNS], np.complex64)


def _make_phantom(number: int) -> NDArray[np.complex64]:
    """Return k-space of an ellipse with a bright spot that moves from slice to slice, and noise."""
    generator = np.random.default_rng(number)
    j, i = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    image = np.stack([(j**2 / 0.6 + i**2 / 0.5 < 1) + 0.0 for _ in range(SLICES)])
    for k in range(SLICES):
        image[k] += np.hypot(j - 0.3 * (k - 1), i + 0.2 * (number - 1)) < 0.15
    samples = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    noise = generator.normal(size=(2, *samples.shape)) * 0.02
    return np.asarray(samples + noise[0] + 1j * noise[1], np.complex64)
