"""Real scans of the data kit with the brain masks of the ICBM 2009a template laid on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["list_scans", "load_masked_scan"]

START_HEIGHTS_MM = (-24.0, 0.0, 24.0)
START_SCALE = 0.9
COLLECTIONS = ("ms-3t-t1-flair-mni", "ms-longitudinal-t1-flair")


def list_scans(root: Path) -> list[Path]:
    """Return T1w and FLAIR images of the kit's MS collections, first visits only."""
    found = []
    for collection in COLLECTIONS:
        for pattern in ("*/T1.nii.gz", "*/FLAIR.nii.gz", "*/study1_T1W.nii.gz", "*/study1_FLAIR.nii.gz"):
            found += sorted((root / "mri" / collection).glob(pattern))
    return found


def load_masked_scan(path: Path, root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scan at 1 mm, LPS: float (k, j, i); the template's brain and its grey plus white matter: bool (k, j,
    i).
    """
    import SimpleITK as sitk  # noqa: N813

    image = _resample_to_1_mm(sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS"))
    t1, grey, white = (_read_template(root, name) for name in ("t1", "gm", "wm"))
    to_template = _register(image, t1)
    brain, tissue = (
        sitk.GetArrayFromImage(sitk.Resample(mask, image, to_template, sitk.sitkLinear, 0.0)) > 0.5
        for mask in (_fill_holes(t1 > 0), (grey + white) / 255.0)
    )
    values = sitk.GetArrayFromImage(image)
    return torch.from_numpy(values), torch.from_numpy(brain), torch.from_numpy(tissue)


def _read_template(root: Path, name: str) -> Any:
    import SimpleITK as sitk  # noqa: N813

    folder = root / "anatomy" / "mni152-2009a"
    return sitk.ReadImage(str(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"), sitk.sitkFloat32)


def _fill_holes(mask: Any) -> Any:
    import SimpleITK as sitk  # noqa: N813

    return sitk.Cast(sitk.BinaryFillhole(sitk.Cast(mask, sitk.sitkUInt8)), sitk.sitkFloat32)


def _resample_to_1_mm(image: Any) -> Any:
    import SimpleITK as sitk  # noqa: N813

    size = [max(1, round(n * s)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = sitk.ResampleImageFilter()
    grid.SetSize(size)
    grid.SetOutputSpacing((1.0, 1.0, 1.0))
    grid.SetOutputOrigin(image.GetOrigin())
    grid.SetOutputDirection(image.GetDirection())
    return grid.Execute(image)


def _register(image: Any, template: Any) -> Any:
    """Register scan to template: similarity from several heights, the best then affine, by Mattes mutual information.

    Heads are smaller than the template, and fields of view end anywhere: hence the starts.
    """
    import SimpleITK as sitk  # noqa: N813

    centres = (
        sitk.CenteredTransformInitializer(
            sitk.Cast(template > 0, sitk.sitkFloat32),
            sitk.Cast(sitk.OtsuThreshold(image, 0, 1), sitk.sitkFloat32),
            sitk.Similarity3DTransform(),
            sitk.CenteredTransformInitializerFilter.GEOMETRY,
        )
        for _ in START_HEIGHTS_MM
    )
    starts = []
    for height_mm, start in zip(START_HEIGHTS_MM, centres, strict=True):
        similarity = sitk.Similarity3DTransform(start)
        x, y, z = similarity.GetTranslation()
        similarity.SetTranslation((x, y, z + height_mm))
        similarity.SetScale(START_SCALE)
        starts.append((_improve(similarity, image, template, shrink=(8,)), similarity))
    best = min(starts, key=lambda found: found[0])[1]
    affine = sitk.AffineTransform(3)
    affine.SetCenter(best.GetCenter())
    affine.SetMatrix(best.GetMatrix())
    affine.SetTranslation(best.GetTranslation())
    _improve(affine, image, template, shrink=(4, 2))
    return affine.GetInverse()


def _improve(transform: Any, image: Any, template: Any, shrink: tuple[int, ...]) -> float:
    """Optimise ``transform`` (template to scan) in place; the metric, of which less is better."""
    import SimpleITK as sitk  # noqa: N813

    registration = sitk.ImageRegistrationMethod()
    registration.SetMetricAsMattesMutualInformation(32)
    registration.SetMetricFixedMask(sitk.BinaryDilate(sitk.Cast(template > 0, sitk.sitkUInt8), (4, 4, 4)))
    registration.SetMetricSamplingStrategy(registration.REGULAR)
    registration.SetMetricSamplingPercentage(0.1 if min(shrink) < 8 else 1.0)
    registration.SetInterpolator(sitk.sitkLinear)
    registration.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetShrinkFactorsPerLevel(shrink)
    registration.SetSmoothingSigmasPerLevel([n / 2 for n in shrink])
    registration.SetInitialTransform(transform, inPlace=True)
    registration.Execute(template, image)
    return float(registration.GetMetricValue())
