"""Structures of the label maps with the cortex divided by region: the Allen atlas brought to each subject.

The label maps hold no cortical parcellation. The ICBM 2009a grey- and white-matter template, on whose coordinates the
Allen Human Reference Atlas (Ding et al. 2016) lies, is registered to a subject's own tissues (affine, then symmetric
diffeomorphic demons, SimpleITK); a cortical voxel takes the region of the nearest cortical voxel of the warped atlas.
The division follows the template's folding, not the subject's: borders between regions are smooth and some millimetres
uncertain. Registered coordinates are cached (``data_kit.cache_root``), since they take about half a minute.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo.data_kit import cache_root, data_root
from model_zoo.simulate import anatomy
from model_zoo.structures import number

__all__ = ["ALLEN", "LABELS", "compute_mni_coordinates", "make_structure_map", "sample_mni"]

CACHE_VERSION = 2
SPACING_MM = 2.0
LEAST_OVERLAP = 0.8

ALLEN: dict[str, tuple[int, ...]] = {
    "frontal cortex": (67, 68, 69, 70, 71, 72, 73, 74, 75, 77, 132, 135, 136, 137, 138),
    "sensorimotor cortex": (66, 76, 78, 83),
    "parietal cortex": (79, 80, 81, 133),
    "precuneus": (82,),
    "cingulate cortex": (98, 99, 100, 101),
    "temporal cortex": (84, 85, 86, 87, 88, 89, 90, 91),
    "parahippocampal cortex": (102, 103, 104, 139),
    "occipital cortex": (92, 93, 94, 95, 96, 97),
    "insula": (108, 109, 110),
}
"""Indices of the Allen atlas in each cortical region; the parahippocampal one holds entorhinal and perirhinal gyri."""

LABELS: dict[str, tuple[int, ...]] = {
    "cerebral white matter": (2, 41, 25, 57, 77, 30, 62, 85),
    "lateral ventricles": (4, 43, 5, 44, 31, 63),
    "third and fourth ventricles": (14, 15, 72),
    "csf": (24,),
    "cerebellar cortex": (8, 47),
    "cerebellar white matter": (7, 46),
    "thalamus": (10, 49),
    "caudate": (11, 50, 26, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "brain stem": (16,),
    "ventral diencephalon": (28, 60),
}
"""Label-map numbers of the structures that need no atlas."""

CORTEX_LABELS = (3, 42)


@lru_cache(maxsize=16)
def make_structure_map(subject: str, root: Path | None = None) -> NDArray[np.uint8]:
    """Return the structures of one subject: uint8 (256, 256, 256) on the grid of ``anatomy.read_tissue_map``."""
    labels = anatomy.read_label_map(subject, root)
    lookup = np.zeros(int(labels.max()) + 1, np.uint8)
    for name, values in LABELS.items():
        lookup[[value for value in values if value < len(lookup)]] = number(name)
    found = lookup[labels]
    cortex = (labels == CORTEX_LABELS[0]) | (labels == CORTEX_LABELS[1])
    found[cortex] = _label_cortex(subject, root, cortex)
    return _remove_strays(found)


def _remove_strays(structure: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Keep cerebrospinal fluid only within 12 mm of the brain and not below it: the maps hold strays and the spine."""
    from scipy import ndimage

    fluid = structure == number("csf")
    brain = (structure > 0) & ~fluid
    (box,) = ndimage.find_objects(brain.view(np.uint8))
    around = tuple(slice(max(0, each.start - 12), each.stop + 12) for each in box)  # farther voxels are not near
    near = np.zeros_like(brain)
    near[around] = np.asarray(ndimage.distance_transform_edt(~brain[around])) < 12
    near[: box[0].start] = False
    return np.where(fluid & ~near, np.uint8(0), structure)


def _label_cortex(subject: str, root: Path | None, cortex: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the region number of each cortical voxel, in the order of ``cortex``'s True voxels."""
    from scipy import ndimage

    folder = (root or data_root()) / "anatomy" / "allen-human-reference-atlas-mni"
    lookup = np.zeros(256, np.uint8)
    for name, indices in ALLEN.items():
        lookup[list(indices)] = number(name)
    atlas = lookup[sample_mni(folder / "AllenAtlas.nii.gz", subject, root, linear=False).astype(np.uint8)]
    nearest = ndimage.distance_transform_edt(atlas == 0, return_distances=False, return_indices=True)
    k, j, i = (np.round((axis + 0.25) / SPACING_MM - 0.25).astype(int).clip(0, 127) for axis in np.nonzero(cortex))
    at = nearest[:, k, j, i]
    regions: NDArray[np.uint8] = atlas[at[0], at[1], at[2]]
    return regions


def sample_mni(path: Path, subject: str, root: Path | None = None, *, linear: bool = True) -> NDArray[np.float32]:
    """Return a NIfTI volume in MNI coordinates, brought to a subject: float32 (128, 128, 128), 2 mm, zero outside of
    it.
    """
    import nibabel
    from scipy import ndimage

    image = nibabel.load(path)
    lps = compute_mni_coordinates(subject, root)
    ras = np.concatenate([-lps[:2], lps[2:]]).reshape(3, -1)
    inverse = np.linalg.inv(image.affine)
    at = (inverse[:3, :3] @ ras + inverse[:3, 3:]).reshape(lps.shape)
    data = np.asarray(image.dataobj, dtype=np.float32)
    sampled: NDArray[np.float32] = ndimage.map_coordinates(data, at, order=1 if linear else 0)
    return sampled


@lru_cache(maxsize=16)
def compute_mni_coordinates(subject: str, root: Path | None = None) -> NDArray[np.float32]:
    """Return the MNI position (LPS mm) of every second voxel of a subject: float32 (3: x, y, z, k, j, i), (128, 128,
    128) at 2 mm.

    Voxel n of this grid lies between voxels 2 n and 2 n + 1 of the 1 mm grid.
    """
    cached = cache_root() / "regions" / f"v{CACHE_VERSION}-{subject}.npy"
    if cached.is_file():
        found: NDArray[np.float16] = np.load(cached)
    else:
        found = _register(subject, root).astype(np.float16)
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{os.getpid()}.npy")
        np.save(temporary, found)
        temporary.replace(cached)
    return found.astype(np.float32)


def _register(subject: str, root: Path | None) -> NDArray[np.float32]:
    """Register the template's tissues to the subject's, affine, then demons; return the MNI position of each fixed
    voxel.
    """
    import SimpleITK as sitk  # noqa: N813

    fixed = _make_subject_image(anatomy.read_label_map(subject, root))
    moving = _read_template_image((root or data_root()) / "anatomy" / "mni152-2009a")
    affine = _register_affine(fixed, moving)
    near = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, 0.0)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(60)
    demons.SetStandardDeviations(1.5)
    displacement = demons.Execute(
        sitk.SmoothingRecursiveGaussian(fixed, 1.5), sitk.SmoothingRecursiveGaussian(near, 1.5)
    )
    warp = sitk.CompositeTransform(
        [affine, sitk.DisplacementFieldTransform(sitk.Cast(displacement, sitk.sitkVectorFloat64))]
    )
    to_field = sitk.TransformToDisplacementFieldFilter()
    to_field.SetReferenceImage(fixed)
    moved = sitk.GetArrayFromImage(to_field.Execute(warp))
    _check_overlap(subject, fixed, sitk.Resample(moving, fixed, warp, sitk.sitkLinear, 0.0))
    centre = (np.arange(128) - 63.5) * SPACING_MM
    z, y, x = np.meshgrid(centre, centre, centre, indexing="ij")
    found: NDArray[np.float32] = (moved.transpose(3, 0, 1, 2) + np.stack([x, y, z])).astype(np.float32)
    return found


def _check_overlap(subject: str, fixed: Any, warped: Any) -> None:
    import SimpleITK as sitk  # noqa: N813

    a, b = (sitk.GetArrayFromImage(image) > 0.25 for image in (fixed, warped))
    dice = 2 * float((a & b).sum()) / float(a.sum() + b.sum())
    if dice < LEAST_OVERLAP:
        raise RuntimeError(
            f"label map {subject}: the template does not fit (Dice {dice:.2f}, less than {LEAST_OVERLAP})"
        )


def _register_affine(fixed: Any, moving: Any) -> Any:
    """Register fixed to moving: the boxes of the two brains are aligned, then refined by cross-correlation.

    The sampled voxels have a fixed seed: by the clock's, which is the default, one registration in five of a label map
    ended 5 mm from the others.
    """
    import SimpleITK as sitk  # noqa: N813

    registration = sitk.ImageRegistrationMethod()
    registration.SetMetricAsCorrelation()
    registration.SetMetricSamplingStrategy(registration.REGULAR)
    registration.SetMetricSamplingPercentage(0.2, seed=1)
    registration.SetInterpolator(sitk.sitkLinear)
    registration.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetShrinkFactorsPerLevel([2, 1])
    registration.SetSmoothingSigmasPerLevel([4.0, 2.0])
    registration.SetInitialTransform(_match_boxes(fixed, moving), inPlace=False)
    return registration.Execute(fixed, moving)


def _match_boxes(fixed: Any, moving: Any) -> Any:
    import SimpleITK as sitk  # noqa: N813

    (at, size), (to, wide) = (_box_mm(image) for image in (fixed, moving))
    start = sitk.AffineTransform(3)
    start.SetCenter(at.tolist())
    start.SetTranslation((to - at).tolist())
    start.SetMatrix(np.diag(wide / size).flatten().tolist())
    return start


def _box_mm(image: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centre and size (x, y, z) in mm of all that is brighter than a quarter."""
    import SimpleITK as sitk  # noqa: N813

    inside = np.argwhere(sitk.GetArrayFromImage(image) > 0.25)[:, ::-1]
    low, high = (
        np.array(image.TransformContinuousIndexToPhysicalPoint(n.tolist()))
        for n in (inside.min(0).astype(float), inside.max(0).astype(float))
    )
    return (low + high) / 2, np.abs(high - low)


def _make_subject_image(labels: NDArray[np.int16]) -> Any:
    """Return an image with white matter 1, grey matter 0.5, else 0, at 2 mm, centred on the origin."""
    import SimpleITK as sitk  # noqa: N813

    white = np.isin(labels, (2, 41, 25, 57, 77, 7, 46, 16, 28, 60, 13, 52))
    grey = np.isin(labels, (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 17, 53, 18, 54, 26, 58))
    value = white.astype(np.float32) + 0.5 * grey
    half = value.reshape(128, 2, 128, 2, 128, 2).mean((1, 3, 5))
    image = sitk.GetImageFromArray(half.astype(np.float32))
    image.SetSpacing((SPACING_MM,) * 3)
    image.SetOrigin((-63.5 * SPACING_MM,) * 3)
    return image


def _read_template_image(folder: Path) -> Any:
    import SimpleITK as sitk  # noqa: N813

    grey, white = (
        sitk.Cast(
            sitk.ReadImage(str(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")), sitk.sitkFloat32
        )
        for name in ("gm", "wm")
    )
    return sitk.Cast(sitk.SmoothingRecursiveGaussian(white / 255.0 + grey / 510.0, 0.8), sitk.sitkFloat32)
