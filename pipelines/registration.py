"""Where an image lies in the patient as another one has it: six numbers, by mutual information.

The result is the moving image itself on another lattice: its voxels keep their values, their places are turned and
shifted, so that whoever samples it interpolates once. Mutual information after Mattes et al., IEEE Trans. Med. Imaging
22, 2003, from coarse to fine; starts are the places that the headers state and the images' centres of mass. Nothing
depends on threads or on the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from pipelines.contract import Grid, Refused, Volume

__all__ = ["PlausibleMotion", "Registration", "measure_motion", "register_rigid"]

BINS = 32
WORKING_MM = 2.0
"""Finer images are averaged to about this."""
LEVELS = ((4, 4.0), (2, 2.0), (1, 0.0))
"""Of the images' resolution: every how many voxels, smoothed by how many mm."""
POINTS = 60_000
"""Drawn on each level, or all voxels where there are fewer."""
STEPS = 150
"""At most, on each level."""
HEAD_RADIUS_MM = 80.0
"""What a radian weighs against a millimetre."""
LEAST_OVERLAP = 0.3
"""Share of the fixed image's bright voxels that the moving image must cover."""


@dataclass(frozen=True)
class PlausibleMotion:
    """What is believed: how far the middle of the fixed image moves, how far it turns, and how much is in common.

    ``mutual_information``: in nats; images of different things have hardly any.
    """

    shift_mm: float = 40.0
    turn_degrees: float = 30.0
    mutual_information: float = 0.08


@dataclass(frozen=True)
class Registration:
    """``volume``: the moving image where the fixed one has it; ``shift_mm`` of the fixed image's middle and
    ``turn_degrees``, against the headers; ``mutual_information`` in nats; ``start``: what led there.

    ``correction_mm``: 4 x 4, from places as the moving image's header has them to the fixed one's.
    """

    volume: Volume
    shift_mm: float
    turn_degrees: float
    mutual_information: float
    start: str
    correction_mm: NDArray[np.float64]

    def follow(self, grid: Grid) -> Grid:
        """Another lattice of the moving image's examination, moved likewise."""
        return Grid(grid.shape, self.correction_mm @ grid.affine_mm)


def register_rigid(
    fixed: Volume, moving: Volume, seed: int, limits: PlausibleMotion | None = None, *, name: str = "the moving image"
) -> Registration:
    """``moving`` where ``fixed`` has it. Raises Refused where no start leads to a plausible place.

    Any two contrasts of one head, any lattices. ``name``: of the moving image in a refusal.
    """
    limits = limits or PlausibleMotion()
    target, image = _itk(fixed), _itk(moving)
    found: list[Registration] = []
    reasons: list[str] = []
    for start, transform in _starts(target, image):
        try:
            result = _registered(target, image, transform, start, moving, seed)
        except RuntimeError as error:
            reasons.append(f"from {start}: {_last_line(error)}")
            continue
        if reason := _implausible(result, limits):
            reasons.append(f"from {start}: {reason}")
        else:
            found.append(result)
            break
    if not found:
        raise Refused(f"{name} cannot be laid on the other one: {'; '.join(reasons)}")
    return found[0]


def measure_motion(correction_mm: NDArray[np.float64], middle_mm: NDArray[np.float64]) -> tuple[float, float]:
    """How far a rigid 4 x 4 moves a point, and by what angle it turns."""
    shift = correction_mm[:3, :3] @ middle_mm + correction_mm[:3, 3] - middle_mm
    cosine = (np.trace(correction_mm[:3, :3]) - 1) / 2
    return float(np.linalg.norm(shift)), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _starts(fixed: sitk.Image, moving: sitk.Image) -> list[tuple[str, sitk.Euler3DTransform]]:
    """Where the headers say that it is; then, if that leads nowhere, the centres of mass on each other."""
    centre = _centre_of_mass(fixed)
    stated, centred = sitk.Euler3DTransform(), sitk.Euler3DTransform()
    for each in (stated, centred):
        each.SetCenter(centre.tolist())
    centred.SetTranslation((_centre_of_mass(moving) - centre).tolist())
    return [("the place that its header states", stated), ("the centres of mass", centred)]


def _registered(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Euler3DTransform, words: str, volume: Volume, seed: int
) -> Registration:
    transform, value = _optimised(fixed, moving, start, seed)
    to_moving = _matrix(transform)
    correction = np.asarray(np.linalg.inv(to_moving), np.float64)
    middle = np.array(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    shift_mm, turn_degrees = measure_motion(to_moving, middle)
    placed = replace(volume, grid=Grid(volume.grid.shape, correction @ volume.grid.affine_mm))
    return Registration(placed, shift_mm, turn_degrees, value, words, correction)


def _optimised(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Euler3DTransform, seed: int
) -> tuple[sitk.Euler3DTransform, float]:
    """The transform from fixed to moving places, and the mutual information there."""
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
    with _one_thread():
        r.Execute(fixed, moving)
    if _overlap(fixed, moving, transform) < LEAST_OVERLAP:
        raise RuntimeError("the images hardly overlap")
    return transform, -float(r.GetMetricValue())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in another order end elsewhere in the last digits; the metric heeds the global number only."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _overlap(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Euler3DTransform) -> float:
    """Share of the fixed image's bright voxels that lie within the moving image."""
    inside = sitk.Resample(moving * 0 + 1, fixed, transform, sitk.sitkNearestNeighbor, 0.0)
    values, covered = sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(inside) > 0
    bright = values > 0.5 * values.mean()
    return float(covered[bright].mean()) if bright.any() else 0.0


def _implausible(found: Registration, limits: PlausibleMotion) -> str:
    """Why this is not believed; empty where it is."""
    if found.mutual_information < limits.mutual_information:
        return (
            f"they share a mutual information of {found.mutual_information:.3f}, "
            f"less than {limits.mutual_information:g}: not the same head, or no image"
        )
    if found.shift_mm > limits.shift_mm or found.turn_degrees > limits.turn_degrees:
        return (
            f"it would move by {found.shift_mm:.0f} mm and {found.turn_degrees:.0f} degrees; believed are "
            f"{limits.shift_mm:g} mm and {limits.turn_degrees:g} degrees"
        )
    return ""


def _itk(volume: Volume) -> sitk.Image:
    """The image with its place, averaged to voxels of about the working size, from 0 at its darkest percentile on."""
    low, high = np.quantile(volume.data.ravel()[::13], (0.01, 0.995))
    if not high > low:
        raise Refused("a uniform image cannot be laid on another one")
    image = sitk.GetImageFromArray(np.clip(volume.data - low, 0, high - low).astype(np.float32))
    affine, (k, j, i) = volume.grid.affine_mm, volume.grid.spacing_mm
    image.SetSpacing((i, j, k))
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(_orthonormal(affine[:3, :3]).ravel().tolist())
    shrink = [min(max(int(WORKING_MM / mm), 1), n) for mm, n in zip((i, j, k), image.GetSize(), strict=True)]
    return sitk.BinShrink(image, shrink)


def _orthonormal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The directions of the axes, made exactly perpendicular: headers round them."""
    u, _, v = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0))
    return np.asarray(u @ v)


def _centre_of_mass(image: sitk.Image) -> NDArray[np.float64]:
    """In millimetres, LPS."""
    values = sitk.GetArrayViewFromImage(image)
    total = max(float(values.sum(dtype=np.float64)), 1e-9)
    index = [float((values.sum(axis=tuple(b for b in range(3) if b != a)) * np.arange(n)).sum() / total)
             for a, n in enumerate(values.shape)]  # fmt: skip
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index[::-1]))


def _matrix(transform: sitk.Euler3DTransform) -> NDArray[np.float64]:
    found = np.eye(4)
    found[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    found[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return found


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("ITK ERROR:").strip() or "it does not converge"
