"""A user's subjects for a recipe's ``batch``: rows drawn at random, volumes read when first needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.grid import Grid
from model_zoo.training import images
from model_zoo.training.images import SeriesReader, Volume

__all__ = ["Cohort", "Row"]

CACHE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Row:
    """One line of a manifest: ``line`` in the file, paths of images, numbers and words by their columns' names.

    ``labels``: those of ``images`` that hold whole numbers. ``resample``: images go to the first one's grid.
    """

    line: int
    subject: str
    split: str
    images: Mapping[str, Path]
    numbers: Mapping[str, float]
    words: Mapping[str, str]
    labels: frozenset[str] = frozenset()
    resample: bool = False


@dataclass(frozen=True)
class Cohort:
    """Rows of one split.

    ``digest``: of the manifest. Volumes stay in memory up to ``cache_bytes``. ``series`` reads folders with a DICOM
    series.
    """

    rows: tuple[Row, ...]
    digest: str
    cache_bytes: int = CACHE_BYTES
    series: SeriesReader | None = None
    _cache: OrderedDict[tuple[int, str, float], Volume] = field(default_factory=OrderedDict, repr=False, compare=False)

    def select_split(self, split: str) -> Cohort:
        """Return the rows of ``split``: train, validation or test."""
        rows = tuple(row for row in self.rows if row.split == split)
        return replace(self, rows=rows, _cache=OrderedDict())

    def draw_row(self, generator: torch.Generator) -> Row:
        """Return one row at random, all rows being equally likely."""
        return self.rows[int(torch.randint(len(self.rows), (1,), generator=generator, device=generator.device))]

    def read_volume(self, row: Row, column: str, spacing_mm: float | None = None) -> Volume:
        """Return one image of a row, float32 (k, j, i) LPS in its own units, cached; read-only.

        ``spacing_mm``: None for the grid of the file; else isotropic voxels of that size over the row's first image,
        smoothed before where that is coarser than the file (labels: the nearest voxel). Raises KeyError for an image
        that the row lacks.
        """
        key = row.line, column, spacing_mm or 0.0
        if key not in self._cache:
            self._cache[key] = self._read(row, column, spacing_mm)
            self._forget()
        self._cache.move_to_end(key)
        return self._cache[key]

    def draw_patch(
        self,
        row: Row,
        columns: Iterable[str],
        shape: tuple[int, int, int],
        spacing_mm: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the same random patch of several images of a row: float32 (k, j, i) of ``shape`` at ``spacing_mm``.

        Images smaller than ``shape`` are padded with their lowest value (labels: 0) on both sides.
        """
        volumes = {name: self.read_volume(row, name, spacing_mm).values for name in columns}
        size = next(iter(volumes.values())).shape
        place = torch.rand(3, generator=generator, device=generator.device).tolist()
        start = [int(u * (max(0, n - length) + 1)) for u, n, length in zip(place, size, shape, strict=True)]
        cut = tuple(slice(a, a + length) for a, length in zip(start, shape, strict=True))
        return {name: _pad(x[cut], shape, 0.0 if name in row.labels else None) for name, x in volumes.items()}

    def _read(self, row: Row, column: str, spacing_mm: float | None) -> Volume:
        try:
            volume = images.read_volume(row.images[column], self.series)
            labels, first = column in row.labels, next(iter(row.images))
            if spacing_mm is None and not row.resample:
                return volume
            target = images.read_grid(row.images[first], self.series)
            if spacing_mm is not None:
                target = _isotropic_grid(target, spacing_mm)
            smooth = volume if labels else _smooth(volume, target)
            return images.resample(smooth, target, labels=labels)
        except ValueError as error:
            raise ValueError(f"line {row.line}, column {column}, {row.images[column]}: {error}") from error

    def _forget(self) -> None:
        """Drop the volumes that were not used for longest until the others fit, but keep the newest."""
        while len(self._cache) > 1 and sum(4 * v.values.numel() for v in self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)


def _isotropic_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Return the same box in voxels of ``spacing_mm``, centred."""
    own = np.array(grid.spacing_mm[::-1])
    size = np.array(grid.shape[::-1])
    new = np.maximum(1, np.round(size * own / spacing_mm)).astype(int)
    axes = grid.affine_mm[:3, :3] / own
    centre = grid.affine_mm[:3, :3] @ ((size - 1) / 2) + grid.affine_mm[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = centre - affine[:3, :3] @ ((new - 1) / 2)
    i, j, k = (int(n) for n in new)
    return Grid((k, j, i), affine)


def _smooth(volume: Volume, target: Grid) -> Volume:
    """Blur so that the total full width at half maximum is one of the wider voxels of ``target``."""
    from model_zoo.simulate.heads import gaussian_blur_3d

    own, wider = np.array(volume.grid.spacing_mm), np.array(target.spacing_mm)
    sigma = np.sqrt(np.maximum(0.0, wider**2 - own**2)) / 2.355 / own
    if float(sigma.max()) < 0.2:
        return volume
    k, j, i = (float(s) for s in sigma)
    return replace(volume, values=gaussian_blur_3d(volume.values, (k, j, i)))


def _pad(x: Tensor, shape: tuple[int, int, int], outside: float | None) -> Tensor:
    missing = [length - n for length, n in zip(shape, x.shape, strict=True)]
    if not any(missing):
        return x.clone()
    sides = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
    return functional.pad(x, sides, value=float(x.min()) if outside is None else outside)
