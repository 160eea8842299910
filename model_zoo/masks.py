"""Cartesian sampling masks, drawn without replacement, always with the calibration block.

Every function returns a bool array (a, b) with exactly the number of samples that the acceleration asks for, or raises
ValueError when the calibration block alone exceeds it. 1D masks sample whole columns (lines along ``a``, the readout;
phase encoding along ``b``). ``actual_acceleration`` returns the acceleration of a mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "actual_acceleration",
    "calibration_block",
    "gaussian_1d",
    "gaussian_2d",
    "poisson_2d",
    "random_1d",
    "uniform_1d",
]

Mask = NDArray[np.bool_]


def actual_acceleration(mask: Mask) -> float:
    """Return the acceleration of a mask: positions over samples."""
    return mask.size / max(int(mask.sum()), 1)


def uniform_1d(shape: tuple[int, int], acceleration: float, calibration: int, rng: np.random.Generator) -> Mask:
    """Sample equispaced columns with a random offset, spaced so that the whole mask meets the acceleration."""
    n, block = shape[1], _block(shape[1], calibration)
    outside = np.setdiff1d(np.arange(n), block)
    count = _count(n, acceleration, block.size)
    steps = (np.arange(count) + rng.random()) * outside.size / max(count, 1)
    return _columns(shape, np.concatenate([block, outside[np.floor(steps).astype(int)]]))


def random_1d(shape: tuple[int, int], acceleration: float, calibration: int, rng: np.random.Generator) -> Mask:
    """Draw columns with equal probability."""
    return _columns(shape, _draw(np.ones(shape[1]), _block(shape[1], calibration), acceleration, rng))


def gaussian_1d(
    shape: tuple[int, int], acceleration: float, calibration: int, rng: np.random.Generator, *, width: float = 0.33
) -> Mask:
    """Draw columns with a Gaussian density of standard deviation ``width`` times half the matrix."""
    return _columns(shape, _draw(_density(shape[1], width), _block(shape[1], calibration), acceleration, rng))


def gaussian_2d(
    shape: tuple[int, int], acceleration: float, calibration: int, rng: np.random.Generator, *, width: float = 0.5
) -> Mask:
    """Draw points with a separable Gaussian density."""
    density = np.outer(_density(shape[0], width), _density(shape[1], width))
    block = np.flatnonzero(calibration_block(shape, calibration))
    mask = np.zeros(shape, bool)
    mask.flat[_draw(density.ravel(), block, acceleration, rng)] = True
    return mask


def poisson_2d(
    shape: tuple[int, int], acceleration: float, calibration: int, rng: np.random.Generator, *, slope: float = 2.0
) -> Mask:
    """Draw a variable-density Poisson disc: no two points nearer than a distance that grows with the radius.

    Dart throwing with r(k) = r0 (1 + slope |k|) over a random order of all positions (after Cook 1986); r0 is found by
    bisection, and the few points too many are left out at random so that the count is exact.
    """
    order = rng.permutation(shape[0] * shape[1])
    block = calibration_block(shape, calibration)
    count = _count(block.size, acceleration, int(block.sum()))
    low, high = 0.0, 4.0 * float(np.sqrt(acceleration))
    best = np.empty(0, int)
    for _ in range(12):
        r0 = 0.5 * (low + high)
        points = _throw_darts(order, block, r0, slope)
        low, high, best = (r0, high, points) if points.size >= count else (low, r0, best)
    if best.size < count:
        best = _throw_darts(order, block, low, slope)
    mask = block.copy()
    mask.flat[rng.permutation(best)[:count]] = True
    return mask


def calibration_block(shape: tuple[int, int], size: int) -> Mask:
    """Return the centred square of ``size`` samples on each side (or the whole axis, where that is shorter)."""
    mask = np.zeros(shape, bool)
    mask[np.ix_(_block(shape[0], size), _block(shape[1], size))] = True
    return mask


def _block(n: int, size: int) -> NDArray[np.intp]:
    start = n // 2 - min(size, n) // 2
    return np.arange(start, start + min(size, n))


def _count(n: int, acceleration: float, calibration: int) -> int:
    count = round(n / acceleration) - calibration
    if count < 0:
        raise ValueError(
            f"{calibration} calibration positions of {n} already exceed an acceleration of {acceleration:g}"
        )
    return count


def _draw(
    density: NDArray[np.float64], block: NDArray[np.intp], acceleration: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    p = density.astype(float)
    p[block] = 0.0
    count = _count(p.size, acceleration, block.size)
    columns = rng.choice(p.size, size=count, replace=False, p=p / p.sum()) if count else np.empty(0, int)
    return np.concatenate([block, columns])


def _density(n: int, width: float) -> NDArray[np.float64]:
    r = (np.arange(n) - n // 2) / (n / 2)
    return np.asarray(np.exp(-0.5 * (r / width) ** 2) + 1e-6)


def _columns(shape: tuple[int, int], columns: NDArray[np.intp]) -> Mask:
    mask = np.zeros(shape, bool)
    mask[:, columns] = True
    return mask


def _throw_darts(order: NDArray[np.intp], block: Mask, r0: float, slope: float) -> NDArray[np.intp]:
    """Accept free positions in order; each accepted one blocks the disc of its own radius around it."""
    na, nb = block.shape
    blocked = block.copy()
    points = []
    for index in order:
        a, b = divmod(int(index), nb)
        if blocked[a, b]:
            continue
        points.append(index)
        radius = r0 * (1 + slope * np.hypot((a - na // 2) / (na / 2), (b - nb // 2) / (nb / 2)))
        reach = int(radius)
        a0, b0 = max(a - reach, 0), max(b - reach, 0)
        disc = blocked[a0 : a + reach + 1, b0 : b + reach + 1]
        da, db = np.ogrid[a0 - a : a0 - a + disc.shape[0], b0 - b : b0 - b + disc.shape[1]]
        disc |= da**2 + db**2 < max(radius, 0.5) ** 2
    return np.array(points, int)
