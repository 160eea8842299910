"""Volumes of a user's data set: a NIfTI file, or a folder that holds one DICOM series.

Arrays are (k, j, i), LPS: axes towards superior, posterior and left. An oblique acquisition keeps its grid, with its
axes ordered and flipped to the nearest of these directions. SimpleITK reads NIfTI; series come through the reader that
the caller hands down (``SeriesReader``), so that a network is trained on the values that the node will give it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from torch import Tensor

from model_zoo.grid import Grid

__all__ = ["SeriesReader", "Volume", "read_grid", "read_volume", "resample"]

SUFFIXES = (".nii", ".nii.gz")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SeriesReader:
    """Functions that read a folder with one DICOM series: its grid from headers, its float32 values (k, j, i) with the
    grid. Both raise ValueError that names the fault; they are module-level functions, for processes that draw batches.
    """

    read_grid: Callable[[Path], Grid]
    read_values: Callable[[Path], tuple[NDArray[np.float32], Grid]]


@dataclass(frozen=True)
class Volume:
    """``values`` float32 (k, j, i) in the file's own units, on ``grid``."""

    values: Tensor
    grid: Grid


def read_grid(path: Path, series: SeriesReader | None = None) -> Grid:
    """Return the grid of an image in LPS, from headers only. Raises ValueError that names the image's fault."""
    if path.is_dir():
        grid = _require_reader(series).read_grid(path)
        if grid.shape[0] < 2:
            raise ValueError("the series is a single slice")
        return _orient(None, grid)[1]
    reader = _import_toolkit().ImageFileReader()
    reader.SetFileName(str(_check_nifti_path(path)))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError("no image can be read from it") from error
    if reader.GetDimension() != 3:
        raise ValueError(f"an image of 3 dimensions is needed, it has {reader.GetDimension()}")
    if reader.GetNumberOfComponents() != 1:
        raise ValueError("one value per voxel is needed, it has more")
    return _orient(None, _read_image_grid(reader))[1]


def read_volume(path: Path, series: SeriesReader | None = None) -> Volume:
    """Return the image, turned to LPS. Raises ValueError that names the image's fault."""
    values, grid = _require_reader(series).read_values(path) if path.is_dir() else _read_nifti(path)
    values, grid = _orient(values, grid)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    return Volume(torch.from_numpy(values), grid)


def resample(volume: Volume, target: Grid, *, labels: bool) -> Volume:
    """Return ``volume`` on ``target``: trilinear, or the nearest voxel for labels.

    Voxels outside of the volume get its lowest value (labels: 0).
    """
    sitk = _import_toolkit()
    outside = 0.0 if labels else float(volume.values.min())
    interpolator = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    image = sitk.GetImageFromArray(volume.values.numpy())
    _set_geometry(image, volume.grid)
    reference = sitk.Image([int(n) for n in target.shape[::-1]], sitk.sitkUInt8)
    _set_geometry(reference, target)
    resampled = sitk.Resample(image, reference, sitk.Transform(), interpolator, outside)
    return Volume(torch.from_numpy(sitk.GetArrayFromImage(resampled)), target)


def _require_reader(series: SeriesReader | None) -> SeriesReader:
    if series is None:
        raise ValueError("it is a folder, and no reader of DICOM series was given; a NIfTI file can be read")
    return series


def _import_toolkit() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ValueError("SimpleITK is not installed: pip install simpleitk") from error
    return SimpleITK


def _check_nifti_path(path: Path) -> Path:
    if not path.exists():
        raise ValueError("there is no such file or folder")
    if not path.name.endswith(SUFFIXES):
        raise ValueError("an image is a NIfTI file (.nii, .nii.gz) or a folder with one DICOM series")
    return path


def _read_nifti(path: Path) -> tuple[NDArray[np.float32], Grid]:
    sitk = _import_toolkit()
    try:
        image = sitk.ReadImage(str(_check_nifti_path(path)), sitk.sitkFloat32)
    except RuntimeError as error:
        raise ValueError("no image can be read from it") from error
    return sitk.GetArrayFromImage(image), _read_image_grid(image)


def _orient(values: NDArray[np.float32] | None, grid: Grid) -> tuple[Any, Grid]:
    """Reorder and flip the axes to the nearest to superior, posterior and left; values (k, j, i) or None."""
    to_lps = ornt_transform(io_orientation(_LPS_TO_RAS @ grid.affine_mm), axcodes2ornt("LPS"))
    affine = grid.affine_mm @ inv_ornt_aff(to_lps, grid.shape[::-1])
    i, j, k = (int(grid.shape[2 - int(axis)]) for axis in np.argsort(to_lps[:, 0]))
    turned = None if values is None else np.ascontiguousarray(apply_orientation(values.T, to_lps).T)
    return turned, Grid((k, j, i), affine)


def _read_image_grid(image: Any) -> Grid:
    """Return the grid of a SimpleITK image, or of a reader that has read the image's header."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    i, j, k = image.GetSize()
    return Grid((k, j, i), affine)


def _set_geometry(image: Any, grid: Grid) -> None:
    spacing = np.array(grid.spacing_mm[::-1])
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(grid.affine_mm[:3, 3].tolist())
    image.SetDirection((grid.affine_mm[:3, :3] / spacing).flatten().tolist())
