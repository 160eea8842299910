"""A user's subjects as a recipe's ``batch`` sees them: rows drawn at random, volumes read when first asked for."""

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
from model_zoo.training.images import Volume

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
    """Rows of one split. ``digest``: of the manifest. Volumes are kept in memory up to ``cache_bytes``."""

    rows: tuple[Row, ...]
    digest: str
    cache_bytes: int = CACHE_BYTES
    _cache: OrderedDict[tuple[int, str, float], Volume] = field(default_factory=OrderedDict, repr=False, compare=False)

    def part(self, split: str) -> Cohort:
        """The rows of ``split``: train, validation or test."""
        rows = tuple(row for row in self.rows if row.split == split)
        return replace(self, rows=rows, _cache=OrderedDict())

    def row(self, generator: torch.Generator) -> Row:
        """One row at random; every row is as likely."""
        return self.rows[int(torch.randint(len(self.rows), (1,), generator=generator, device=generator.device))]

    def volume(self, row: Row, column: str, spacing_mm: float | None = None) -> Volume:
        """One image of a row, float32 (k, j, i) LPS in its own units, cached; read-only.

        ``spacing_mm``: None for the grid of the file; else isotropic voxels of that size over the row's first image,
        smoothed before where that is coarser than the file (labels: the nearest voxel). Raises KeyError where the row
        has no such image.
        """
        key = row.line, column, spacing_mm or 0.0
        if key not in self._cache:
            self._cache[key] = self._read(row, column, spacing_mm)
            self._forget()
        self._cache.move_to_end(key)
        return self._cache[key]

    def patch(
        self,
        row: Row,
        columns: Iterable[str],
        shape: tuple[int, int, int],
        spacing_mm: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The same random patch of several images of a row: float32 (k, j, i) of ``shape`` at ``spacing_mm``.

        Images smaller than ``shape`` are padded with their lowest value (labels: 0) on both sides.
        """
        whole = {name: self.volume(row, name, spacing_mm).values for name in columns}
        size = next(iter(whole.values())).shape
        place = torch.rand(3, generator=generator, device=generator.device).tolist()
        start = [int(u * (max(0, n - want) + 1)) for u, n, want in zip(place, size, shape, strict=True)]
        cut = tuple(slice(a, a + want) for a, want in zip(start, shape, strict=True))
        return {name: _padded(x[cut], shape, 0.0 if name in row.labels else None) for name, x in whole.items()}

    def _read(self, row: Row, column: str, spacing_mm: float | None) -> Volume:
        try:
            found = images.read_volume(row.images[column])
            labels, first = column in row.labels, next(iter(row.images))
            if spacing_mm is None and not row.resample:
                return found
            target = images.read_grid(row.images[first])
            if spacing_mm is not None:
                target = _isotropic(target, spacing_mm)
            smooth = found if labels else _smoothed(found, target)
            return images.resample(smooth, target, labels=labels)
        except ValueError as error:
            raise ValueError(f"line {row.line}, column {column}, {row.images[column]}: {error}") from error

    def _forget(self) -> None:
        """Drop what was not used for longest until the rest fits, but keep the newest."""
        while len(self._cache) > 1 and sum(4 * v.values.numel() for v in self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)


def _isotropic(grid: Grid, spacing_mm: float) -> Grid:
    """The same box in voxels of ``spacing_mm``, centred."""
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


def _smoothed(volume: Volume, target: Grid) -> Volume:
    """Blurred by what the wider voxels of ``target`` lack, as a Gaussian of full width at half maximum one voxel."""
    from model_zoo.simulate.heads import gaussian_blur_3d

    own, wanted = np.array(volume.grid.spacing_mm), np.array(target.spacing_mm)
    sigma = np.sqrt(np.maximum(0.0, wanted**2 - own**2)) / 2.355 / own
    if float(sigma.max()) < 0.2:
        return volume
    k, j, i = (float(s) for s in sigma)
    return replace(volume, values=gaussian_blur_3d(volume.values, (k, j, i)))


def _padded(x: Tensor, shape: tuple[int, int, int], outside: float | None) -> Tensor:
    short = [want - n for want, n in zip(shape, x.shape, strict=True)]
    if not any(short):
        return x.clone()
    sides = [side for n in reversed(short) for side in (n // 2, n - n // 2)]
    return functional.pad(x, sides, value=float(x.min()) if outside is None else outside)
