"""NIfTI images on a grid in LPS, and back in the voxel order of the file that they came from.

A file is refused where it does not say where its voxels lie: without an orientation code, with sheared axes, with a
direction of the axes that sform and qform dispute, or with several volumes.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import InputRefused
from model_zoo.grid import Grid

__all__ = ["SUFFIXES", "NiftiImage", "is_marked", "is_nifti", "read", "strip_suffix", "write"]

SUFFIXES = (".nii", ".nii.gz")
MARK = "SYNTHETIC - RESEARCH USE ONLY"
"""Text in the field ``descrip`` of every file that is written."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEAR_MM = 0.1
"""Largest distance of a voxel from its place on the nearest grid with perpendicular axes."""
_LARGEST_ANGLE_DEG = 45.0
"""Between an axis of sform and of qform: a head that was aligned to an atlas turns less, a wrong side turns more."""


@dataclass(frozen=True)
class NiftiImage:
    """``values`` (k, j, i) as real numbers on ``grid``, a right-handed one in LPS.

    ``is_flipped``: the file has its slices in the opposite order; ``affine`` and ``codes`` (sform, qform) are the
    file's own; ``digest``: SHA-256 of the file.
    """

    values: NDArray[Any]
    grid: Grid
    is_flipped: bool
    affine: NDArray[np.float64]
    codes: tuple[int, int]
    digest: str


def is_nifti(path: Path) -> bool:
    """Return whether the file's name is that of a NIfTI image."""
    return path.name.endswith(SUFFIXES)


def is_marked(path: Path) -> bool:
    """Return whether the file states in its header that it is synthetic; False for a file that cannot be read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        header = nibabel.load(path).header
        return bool(header["descrip"].item().startswith(b"SYNTHETIC"))
    except (ImageFileError, HeaderDataError, OSError, EOFError, KeyError, ValueError, zlib.error):
        return False


def strip_suffix(path: Path) -> str:
    """Return the name of the file without its suffix."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def read(path: Path) -> NiftiImage:
    """Read one volume. Raises InputRefused that names the file and its fault."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image = nibabel.load(path)
        values = _read_values(image, path)
        affine = _check_affine(image, path)
    except (ImageFileError, HeaderDataError, OSError, ValueError, EOFError, zlib.error) as error:
        raise InputRefused(f"{path.name}: no NIfTI image can be read from it ({type(error).__name__})") from error
    grid = Grid((values.shape[0], values.shape[1], values.shape[2]), _LPS_TO_RAS @ affine)
    is_flipped = bool(np.linalg.det(grid.affine_mm[:3, :3]) < 0)
    if is_flipped:
        values, grid = values[::-1], _flip(grid)
    _check_shear(grid, path)
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    return NiftiImage(values, grid, is_flipped, affine, codes, hashlib.sha256(path.read_bytes()).hexdigest())


def write(
    path: Path, values: NDArray[Any], grid: Grid, *, like: NiftiImage | None = None, description: str = MARK
) -> None:
    """Write ``values`` (k, j, i) on ``grid``, with the mark of synthetic data.

    ``like``: image whose voxel order and affine the file gets where it lies on the same grid.
    """
    import nibabel

    affine, codes = _LPS_TO_RAS @ grid.affine_mm, (1, 1)
    if like is not None and like.grid.matches(grid):
        values = values[::-1] if like.is_flipped else values
        affine, codes = like.affine, like.codes
    image = nibabel.Nifti1Image(np.ascontiguousarray(values.T), affine)
    image.set_sform(affine, code=codes[0] or codes[1])
    image.set_qform(affine, code=codes[1] or codes[0])
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    nibabel.save(image, path)


def _read_values(image: Any, path: Path) -> NDArray[Any]:
    """Return the values (k, j, i): integers where the file stores them without a scale, else float64."""
    if not hasattr(image.header, "get_slope_inter"):
        raise InputRefused(f"{path.name}: an image of NIfTI is needed")
    shape = tuple(n for at, n in enumerate(image.shape) if at < 3 or n != 1)
    if len(shape) != 3:
        count = int(np.prod(image.shape[3:]))
        raise InputRefused(f"{path.name}: one volume of 3 dimensions is needed; it has {count} of {len(shape)}")
    if image.get_data_dtype().kind not in "iuf":
        raise InputRefused(f"{path.name}: one real number per voxel is needed; it has {image.get_data_dtype()}")
    is_plain = image.header.get_slope_inter() in ((None, None), (1.0, 0.0)) and image.get_data_dtype().kind in "iu"
    values = np.asarray(image.dataobj) if is_plain else image.get_fdata(dtype=np.float64, caching="unchanged")
    values = values.reshape(shape)
    if not np.isfinite(values).all():
        raise InputRefused(f"{path.name}: it holds values that are not finite")
    return np.asarray(values.T)


def _check_affine(image: Any, path: Path) -> NDArray[np.float64]:
    """Return the affine (i, j, k, 1) to RAS mm. Raises InputRefused where the file states none, or two."""
    header = image.header
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None and qform is None:
        raise InputRefused(f"{path.name}: neither sform_code nor qform_code is set: nobody knows which side is left")
    if header.get_xyzt_units()[0] not in ("mm", "unknown"):
        raise InputRefused(f"{path.name}: its places are in {header.get_xyzt_units()[0]}; mm are needed")
    axes = [each[:3, :3] for each in (sform, qform) if each is not None]
    volumes_mm3 = np.linalg.det(axes)
    if 0.0 in volumes_mm3 or not np.isfinite(volumes_mm3).all():
        raise InputRefused(f"{path.name}: its affine maps several voxels to one place")
    if _largest_angle_deg(axes[0], axes[-1]) > _LARGEST_ANGLE_DEG:
        raise InputRefused(
            f"{path.name}: sform and qform dispute which way its axes go; correct one, or clear its code"
        )
    return np.asarray(image.affine, np.float64)


def _largest_angle_deg(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the largest angle between an axis (a column) and the same axis of the other."""
    cosines = (one * other).sum(axis=0) / np.linalg.norm(one, axis=0) / np.linalg.norm(other, axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def _flip(grid: Grid) -> Grid:
    """Return the grid with its slices in the opposite order."""
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = grid.shape[0] - 1
    return Grid(grid.shape, grid.affine_mm @ flip)


def _check_shear(grid: Grid, path: Path) -> None:
    axes = grid.affine_mm[:3, :3]
    u, _, vt = np.linalg.svd(axes / np.linalg.norm(axes, axis=0))
    straight = np.array(grid.affine_mm)
    straight[:3, :3] = (u @ vt) * np.linalg.norm(axes, axis=0)
    corners = np.array(np.meshgrid(*([0, n - 1] for n in grid.shape[::-1]), [1], indexing="ij")).reshape(4, -1)
    apart_mm = np.linalg.norm(((straight - grid.affine_mm) @ corners)[:3], axis=0).max()
    if apart_mm > _SHEAR_MM:
        raise InputRefused(f"{path.name}: its axes are not perpendicular ({apart_mm:.2f} mm at a corner); resample it")
