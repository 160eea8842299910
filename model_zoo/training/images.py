"""Volumes of a user's data set, read by SimpleITK: a NIfTI file, or a folder that holds one DICOM series.

Arrays are (k, j, i), LPS: axes towards superior, posterior and left. An oblique acquisition keeps its grid, with its
axes ordered and flipped to the nearest of these directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_zoo.grid import Grid

__all__ = ["Volume", "read_grid", "read_volume", "resample"]

TOLERANCE_MM = 0.1
SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Volume:
    """``values`` float32 (k, j, i) in the file's own units, on ``grid``."""

    values: Tensor
    grid: Grid


def read_grid(path: Path) -> Grid:
    """Geometry of an image, read from headers. Raises ValueError saying what is wrong with it."""
    if path.is_dir():
        return _series_grid(path)
    reader = _toolkit().ImageFileReader()
    reader.SetFileName(str(_nifti(path)))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError("no image can be read from it") from error
    if reader.GetDimension() != 3:
        raise ValueError(f"an image of 3 dimensions is needed, it has {reader.GetDimension()}")
    if reader.GetNumberOfComponents() != 1:
        raise ValueError("one value per voxel is needed, it has more")
    header = reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
    return _oriented(_empty(*header))


def read_volume(path: Path) -> Volume:
    """The image, turned to LPS. Raises ValueError saying what is wrong with it."""
    sitk = _toolkit()
    try:
        if path.is_dir():
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(_series(path))
            reader.SetOutputPixelType(sitk.sitkFloat32)
            image = reader.Execute()
        else:
            image = sitk.ReadImage(str(_nifti(path)), sitk.sitkFloat32)
    except RuntimeError as error:
        raise ValueError("no image can be read from it") from error
    image = sitk.DICOMOrient(image, "LPS")
    values = torch.from_numpy(sitk.GetArrayFromImage(image))
    if not bool(torch.isfinite(values).all()):
        raise ValueError("it holds values that are not finite")
    return Volume(values, _of(image))


def resample(volume: Volume, target: Grid, *, labels: bool) -> Volume:
    """``volume`` on ``target``: trilinear, or the nearest voxel for labels; outside it is the lowest value there is."""
    sitk = _toolkit()
    outside = 0.0 if labels else float(volume.values.min())
    how = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    image = sitk.GetImageFromArray(volume.values.numpy())
    _place(image, volume.grid)
    empty = sitk.Image([int(n) for n in target.shape[::-1]], sitk.sitkUInt8)
    _place(empty, target)
    found = sitk.Resample(image, empty, sitk.Transform(), how, outside)
    return Volume(torch.from_numpy(sitk.GetArrayFromImage(found)), target)


def _toolkit() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ValueError("SimpleITK is not installed: pip install simpleitk") from error
    return SimpleITK


def _nifti(path: Path) -> Path:
    if not path.exists():
        raise ValueError("there is no such file or folder")
    if not path.name.endswith(SUFFIXES):
        raise ValueError("an image is a NIfTI file (.nii, .nii.gz) or a folder with one DICOM series")
    return path


def _series(folder: Path) -> list[str]:
    """Files of the folder's one DICOM series, in the order of their positions."""
    reader = _toolkit().ImageSeriesReader
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"a folder with one DICOM series is needed, it has {len(series) or 'none'}")
    return list(reader.GetGDCMSeriesFileNames(str(folder), series[0]))


def _series_grid(folder: Path) -> Grid:
    """Geometry of a series; refuses one with a gap, as a missing slice leaves, and one of tilted slices."""
    reader = _toolkit().ImageFileReader()
    origins, headers = [], []
    for name in _series(folder):
        reader.SetFileName(name)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise ValueError("a file of the series cannot be read") from error
        headers.append((reader.GetSize()[:2], reader.GetSpacing()[:2], reader.GetDirection()))
        origins.append(np.array(reader.GetOrigin()))
    if len(origins) < 2:
        return _single_file_grid(reader)
    if any(header != headers[0] for header in headers):
        raise ValueError("the slices of the series differ in size, pixel spacing or orientation")
    steps = np.diff(origins, axis=0)
    if np.abs(steps - steps[0]).max() > TOLERANCE_MM:
        raise ValueError("the slices of the series are not evenly spaced: is one missing?")
    size, spacing, direction = headers[0]
    axes = np.array(direction).reshape(3, 3)
    distance = float(np.linalg.norm(steps[0]))
    if distance == 0 or np.abs(np.abs(axes[:, 2] @ steps[0]) - distance) > TOLERANCE_MM:
        raise ValueError("the slices of the series are not stacked along their normal")
    axes[:, 2] = steps[0] / distance
    image = _empty((*size, len(origins)), (*spacing, distance), tuple(origins[0]), tuple(axes.flatten()))
    return _oriented(image)


def _single_file_grid(reader: Any) -> Grid:
    """Geometry of a series of one file, which holds a volume by itself or is a single slice."""
    if reader.GetDimension() != 3 or reader.GetSize()[2] < 2:
        raise ValueError("the series is a single slice")
    return _oriented(_empty(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()))


def _empty(size: Any, spacing: Any, origin: Any, direction: Any) -> Any:
    sitk = _toolkit()
    image = sitk.Image([int(n) for n in size], sitk.sitkUInt8)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    image.SetDirection([float(d) for d in direction])
    return image


def _oriented(image: Any) -> Grid:
    return _of(_toolkit().DICOMOrient(image, "LPS"))


def _of(image: Any) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    i, j, k = image.GetSize()
    return Grid((k, j, i), affine)


def _place(image: Any, grid: Grid) -> None:
    spacing = np.array(grid.spacing_mm[::-1])
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(grid.affine_mm[:3, 3].tolist())
    image.SetDirection((grid.affine_mm[:3, :3] / spacing).flatten().tolist())
