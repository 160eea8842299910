"""Real scans of the data kit with the brain masks of the ICBM 2009a template laid on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["masked_scan", "scans"]

COLLECTIONS = ("ms-3t-t1-flair-mni", "ms-longitudinal-t1-flair")
IN_TEMPLATE_SPACE = "ms-3t-t1-flair-mni"


def scans(root: Path) -> list[Path]:
    """T1w and FLAIR images of the kit's MS collections, first visits only."""
    found = []
    for collection in COLLECTIONS:
        for pattern in ("*/T1.nii.gz", "*/FLAIR.nii.gz", "*/study1_T1W.nii.gz", "*/study1_FLAIR.nii.gz"):
            found += sorted((root / "mri" / collection).glob(pattern))
    return found


def masked_scan(path: Path, root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The scan at 1 mm, LPS: float (k, j, i); the template's brain and its grey plus white matter: bool (k, j, i)."""
    import SimpleITK as sitk  # noqa: N813

    image = _one_mm(sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS"))
    t1, grey, white = (_template(root, name) for name in ("t1", "gm", "wm"))
    if path.parents[1].name == IN_TEMPLATE_SPACE:
        to_template: Any = sitk.Transform(3, sitk.sitkIdentity)
    else:
        to_template = _registered(image, t1)
    brain, tissue = (
        sitk.GetArrayFromImage(sitk.Resample(mask, image, to_template, sitk.sitkLinear, 0.0)) > 0.5
        for mask in (_filled(t1 > 0), (grey + white) / 255.0)
    )
    values = sitk.GetArrayFromImage(image)
    return torch.from_numpy(values), torch.from_numpy(brain), torch.from_numpy(tissue)


def _template(root: Path, name: str) -> Any:
    import SimpleITK as sitk  # noqa: N813

    folder = root / "anatomy" / "mni152-2009a"
    return sitk.ReadImage(str(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"), sitk.sitkFloat32)


def _filled(mask: Any) -> Any:
    import SimpleITK as sitk  # noqa: N813

    return sitk.Cast(sitk.BinaryFillhole(sitk.Cast(mask, sitk.sitkUInt8)), sitk.sitkFloat32)


def _one_mm(image: Any) -> Any:
    import SimpleITK as sitk  # noqa: N813

    size = [max(1, round(n * s)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = sitk.ResampleImageFilter()
    grid.SetSize(size)
    grid.SetOutputSpacing((1.0, 1.0, 1.0))
    grid.SetOutputOrigin(image.GetOrigin())
    grid.SetOutputDirection(image.GetDirection())
    return grid.Execute(image)


def _registered(image: Any, template: Any) -> Any:
    """Scan to template: rigid, then affine, by Mattes mutual information within the template's brain."""
    import SimpleITK as sitk  # noqa: N813

    start: Any = sitk.CenteredTransformInitializer(
        template, image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    near_brain = sitk.BinaryDilate(sitk.Cast(template > 0, sitk.sitkUInt8), (6, 6, 6))
    for kind in (start, sitk.AffineTransform(3)):
        if isinstance(kind, sitk.AffineTransform):
            kind.SetMatrix(start.GetMatrix())
            kind.SetTranslation(start.GetTranslation())
            kind.SetCenter(start.GetCenter())
        registration = sitk.ImageRegistrationMethod()
        registration.SetMetricAsMattesMutualInformation(32)
        registration.SetMetricFixedMask(near_brain)
        registration.SetMetricSamplingStrategy(registration.REGULAR)
        registration.SetMetricSamplingPercentage(0.1)
        registration.SetInterpolator(sitk.sitkLinear)
        registration.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 120)
        registration.SetOptimizerScalesFromPhysicalShift()
        registration.SetShrinkFactorsPerLevel([4, 2])
        registration.SetSmoothingSigmasPerLevel([4.0, 2.0])
        registration.SetInitialTransform(kind, inPlace=True)
        registration.Execute(template, image)
        start = kind
    return start.GetInverse()
