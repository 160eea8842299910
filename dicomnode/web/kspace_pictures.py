"""The zero-filled picture of k-space in Raw Data: the image without a model, for a look at the source."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from dicomnode import decoding, mrd
from dicomnode.errors import InputRefused
from dicomnode.reading import unreadable
from dicomnode.web.pictures import Triple, WindowChange
from dicomnode.web.sides import draw_sides, name_sides
from pipelines.contract import KSpace

__all__ = ["draw_kspace"]

_WHITE_PERCENTILE = 99.5


def draw_kspace(path: Path, centre_mm: Triple | None, size: int, change: WindowChange = WindowChange()) -> bytes:
    """Draw the slice nearest to a position (None: the middle one) of the first image, ``size`` pixels wide.

    Raises InputRefused for a file without k-space, NodeBusy.
    """
    return decoding.run_cached(_render_kspace, path, centre_mm, size, change)


def _render_kspace(path: Path, centre_mm: Triple | None, size: int, change: WindowChange) -> bytes:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may identify the patient
        ds = dcmread(path)
        unreadable.decode(ds)
        if not mrd.is_mrd(ds):
            raise InputRefused("the instance holds no k-space")
        kspace, _ = mrd.to_images(mrd.read(mrd.unwrap(ds)))[0]
    magnitude = reconstruct_slice(kspace, _find_slice(kspace, centre_mm))
    white = max(float(np.percentile(magnitude, _WHITE_PERCENTILE)), 1e-12)
    low = white * (0.5 + change.shift - change.stretch / 2)
    grey = np.rint(255 * np.clip((magnitude - low) / (white * change.stretch), 0, 1)).astype(np.uint8)
    _, rows_mm, columns_mm = (n * s for n, s in zip(kspace.grid.shape, kspace.grid.spacing_mm, strict=True))
    file = io.BytesIO()
    picture = Image.fromarray(grey).resize((size, max(1, round(size * rows_mm / columns_mm))))
    sides = name_sides(kspace.grid.affine_mm[:3, 0], kspace.grid.affine_mm[:3, 1])
    draw_sides(picture, sides).save(file, "JPEG", quality=90)
    return file.getvalue()


def _find_slice(kspace: KSpace, centre_mm: Triple | None) -> int:
    slices = kspace.grid.shape[0]
    if centre_mm is None:
        return slices // 2
    k = np.linalg.solve(kspace.grid.affine_mm, [*centre_mm, 1.0])[2]
    return int(np.clip(np.rint(k), 0, slices - 1))


def reconstruct_slice(kspace: KSpace, index: int) -> NDArray[np.float64]:
    """Reconstruct the magnitude (row, column) of a slice: root sum of squares of the coils, within the grid's view."""
    samples = np.fft.ifftshift(kspace.samples[index], axes=(1, 2))
    coils = np.fft.fftshift(np.fft.ifft2(samples, norm="ortho"), axes=(1, 2))
    magnitude = np.sqrt((np.abs(coils) ** 2).sum(axis=0))
    view_mm = [n * s for n, s in zip(kspace.grid.shape[1:], kspace.grid.spacing_mm[1:], strict=True)]
    cropped = [
        min(count, max(1, round(count * view / encoded)))
        for count, view, encoded in zip(magnitude.shape, view_mm, kspace.encoded_fov_mm, strict=True)
    ]
    start = [count // 2 - keep // 2 for count, keep in zip(magnitude.shape, cropped, strict=True)]
    return np.asarray(magnitude[start[0] : start[0] + cropped[0], start[1] : start[1] + cropped[1]])
