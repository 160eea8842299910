"""Rigid registration of two images by mutual information.

The result is the moving image on another grid: its voxels keep their values, and their places are rotated and shifted,
so that a later resampling interpolates only once. Mutual information after Mattes et al., IEEE Trans. Med. Imaging 22,
2003, from coarse to fine, started from the positions in the headers and then from the images' centres of mass. The
result depends neither on threads nor on the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import linalg

from pipelines.contract import Grid, Refused, Volume

__all__ = ["PlausibleMotion", "Registration", "measure_motion", "register_rigid"]

BINS = 32
WORKING_MM = 2.0
"""Spacing to which finer images are averaged."""
LEVELS = ((4, 4.0), (2, 2.0), (1, 0.0))
"""Resolution levels: shrink factor, smoothing in mm (sd)."""
POINTS = 60_000
"""Number of sample points on each level, or all voxels where the image has fewer."""
STEPS = 150
"""Largest number of optimiser steps on each level."""
HEAD_RADIUS_MM = 80.0
"""Weight of a radian against a millimetre."""
LEAST_OVERLAP = 0.3
"""Share of the fixed image's bright voxels that the moving image must cover."""


@dataclass(frozen=True)
class PlausibleMotion:
    """Limits of a plausible registration: shift of the fixed image's middle, rotation, and mutual information.

    ``mutual_information``: least value in nats; images of different objects share hardly any.
    """

    shift_mm: float = 40.0
    rotation_degrees: float = 30.0
    mutual_information: float = 0.08


@dataclass(frozen=True)
class Registration:
    """Result of a rigid registration.

    ``volume``: the moving image at its registered position; ``shift_mm`` of the fixed image's middle and
    ``rotation_degrees``, against the headers; ``mutual_information`` in nats; ``start``: name of the start used.
    ``correction_mm``: 4 x 4, from positions as the moving image's header states them to the fixed image's.
    """

    volume: Volume
    shift_mm: float
    rotation_degrees: float
    mutual_information: float
    start: str
    correction_mm: NDArray[np.float64]

    def apply_correction(self, grid: Grid) -> Grid:
        """Return another grid of the moving image's examination, moved by the same correction."""
        return Grid(grid.shape, self.correction_mm @ grid.affine_mm)


def register_rigid(
    fixed: Volume, moving: Volume, seed: int, limits: PlausibleMotion | None = None, *, name: str = "the moving image"
) -> Registration:
    """Register ``moving`` rigidly to ``fixed``. Raises Refused where no start leads to a plausible position.

    The images may be any two contrasts of one head on any grids. ``name``: name of the moving image in a refusal.
    """
    limits = limits or PlausibleMotion()
    target, image = _to_itk(fixed), _to_itk(moving)
    plausible: list[Registration] = []
    reasons: list[str] = []
    for start, transform in _starts(target, image):
        try:
            result = _register_from(target, image, transform, start, moving, seed)
        except RuntimeError as error:
            reasons.append(f"from {start}: {_last_line(error)}")
            continue
        if reason := _find_implausibility(result, limits):
            reasons.append(f"from {start}: {reason}")
        else:
            plausible.append(result)
            break
    if not plausible:
        raise Refused(f"{name} cannot be laid on the other one: {'; '.join(reasons)}")
    return plausible[0]


def measure_motion(correction_mm: NDArray[np.float64], middle_mm: NDArray[np.float64]) -> tuple[float, float]:
    """Return the distance by which a rigid 4 x 4 moves a point, and its angle of rotation."""
    shift = correction_mm[:3, :3] @ middle_mm + correction_mm[:3, 3] - middle_mm
    cosine = (np.trace(correction_mm[:3, :3]) - 1) / 2
    return float(np.linalg.norm(shift)), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _starts(fixed: sitk.Image, moving: sitk.Image) -> list[tuple[str, sitk.Euler3DTransform]]:
    """Return the starts, in order: the position in the headers, then the alignment of the centres of mass."""
    centre = _centre_of_mass(fixed)
    from_headers, from_centres = sitk.Euler3DTransform(), sitk.Euler3DTransform()
    for each in (from_headers, from_centres):
        each.SetCenter(centre.tolist())
    from_centres.SetTranslation((_centre_of_mass(moving) - centre).tolist())
    return [("the place that its header states", from_headers), ("the centres of mass", from_centres)]


def _register_from(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Euler3DTransform, start_name: str, volume: Volume, seed: int
) -> Registration:
    transform, value = _optimise(fixed, moving, start, seed)
    to_moving = _to_matrix(transform)
    correction = np.asarray(np.linalg.inv(to_moving), np.float64)
    middle = np.array(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    shift_mm, rotation_degrees = measure_motion(to_moving, middle)
    placed = replace(volume, grid=Grid(volume.grid.shape, correction @ volume.grid.affine_mm))
    return Registration(placed, shift_mm, rotation_degrees, value, start_name, correction)


def _optimise(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Euler3DTransform, seed: int
) -> tuple[sitk.Euler3DTransform, float]:
    """Return the transform from fixed to moving positions, and its mutual information."""
    r = sitk.ImageRegistrationMethod()
    r.SetMetricAsMattesMutualInformation(BINS)
    r.SetMetricSamplingStrategy(r.RANDOM)
    shares = [min(1.0, POINTS * shrink**3 / fixed.GetNumberOfPixels()) for shrink, _ in LEVELS]
    r.SetMetricSamplingPercentagePerLevel(shares, seed % 2**31 + 1)  # 0 would ask the clock
    r.SetInterpolator(sitk.sitkLinear)
    r.SetShrinkFactorsPerLevel([shrink for shrink, _ in LEVELS])
    r.SetSmoothingSigmasPerLevel([sigma for _, sigma in LEVELS])
    r.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=STEPS, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-8
    )
    r.SetOptimizerScales([HEAD_RADIUS_MM**2] * 3 + [1.0] * 3)
    transform = sitk.Euler3DTransform(start)
    r.SetInitialTransform(transform, inPlace=True)
    with _run_on_one_thread():
        r.Execute(fixed, moving)
    if _overlap(fixed, moving, transform) < LEAST_OVERLAP:
        raise RuntimeError("the images hardly overlap")
    return transform, -float(r.GetMetricValue())


@contextmanager
def _run_on_one_thread() -> Iterator[None]:
    """Run ITK on one thread: sums in another order differ in the last digits.

    The metric reads only the global number of threads.
    """
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _overlap(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Euler3DTransform) -> float:
    """Return the share of the fixed image's bright voxels that lie within the moving image."""
    inside = sitk.Resample(moving * 0 + 1, fixed, transform, sitk.sitkNearestNeighbor, 0.0)
    values, covered = sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(inside) > 0
    bright = values > 0.5 * values.mean()
    return float(covered[bright].mean()) if bright.any() else 0.0


def _find_implausibility(r: Registration, limits: PlausibleMotion) -> str:
    """Return the reason why a registration is implausible, or an empty string."""
    if r.mutual_information < limits.mutual_information:
        return (
            f"they share a mutual information of {r.mutual_information:.3f}, "
            f"less than {limits.mutual_information:g}: not the same head, or no image"
        )
    if r.shift_mm > limits.shift_mm or r.rotation_degrees > limits.rotation_degrees:
        return (
            f"it would move by {r.shift_mm:.0f} mm and {r.rotation_degrees:.0f} degrees; believed are "
            f"{limits.shift_mm:g} mm and {limits.rotation_degrees:g} degrees"
        )
    return ""


def _to_itk(volume: Volume) -> sitk.Image:
    """Return the image with its position, averaged to about the working spacing; its darkest percentile becomes 0."""
    low, high = np.quantile(volume.data.ravel()[::13], (0.01, 0.995))
    if not high > low:
        raise Refused("a uniform image cannot be laid on another one")
    image = sitk.GetImageFromArray(np.clip(volume.data - low, 0, high - low).astype(np.float32))
    affine, (k, j, i) = volume.grid.affine_mm, volume.grid.spacing_mm
    image.SetSpacing((i, j, k))
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(_make_orthonormal(affine[:3, :3]).ravel().tolist())
    shrink = [min(max(int(WORKING_MM / mm), 1), n) for mm, n in zip((i, j, k), image.GetSize(), strict=True)]
    return sitk.BinShrink(image, shrink)


def _make_orthonormal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the directions of the axes, made exactly perpendicular, because headers round them."""
    rotation, _ = linalg.polar(matrix / np.linalg.norm(matrix, axis=0))
    return np.asarray(rotation)


def _centre_of_mass(image: sitk.Image) -> NDArray[np.float64]:
    """Return the centre of mass in LPS millimetres."""
    values = sitk.GetArrayViewFromImage(image)
    total = max(float(values.sum(dtype=np.float64)), 1e-9)
    index = [float((values.sum(axis=tuple(b for b in range(3) if b != a)) * np.arange(n)).sum() / total)
             for a, n in enumerate(values.shape)]  # fmt: skip
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index[::-1]))


def _to_matrix(transform: sitk.Euler3DTransform) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return matrix


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("ITK ERROR:").strip() or "it does not converge"
