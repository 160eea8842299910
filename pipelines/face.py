"""Mask of the face in an MR image of a head: the voxels to remove so that no rendering shows a recognisable person.

A voxel is removed if it lies further than ``MARGIN_MM`` from brain and cerebrospinal fluid and in front of or below the
oblique plane through their centre, whose normal points as much forward as down: nose, eyes, mouth, chin, ears, throat.
The brain stays complete by construction, and so do scalp and skull above and behind. The plane is fixed in patient
coordinates (LPS), so a head that nods by less than about 30 degrees loses the same.

The anatomy found must be plausible for a head: size, confidence, and the directions of top and front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.structures import BRAIN, number
from pipelines import anatomy, resampling
from pipelines.anatomy import Anatomy
from pipelines.contract import Grid, Progress, Refused, Volume

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["LEAST_CONFIDENCE", "MARGIN_MM", "FaceMask", "find_face", "make_face_mask"]

MARGIN_MM = 10.0
LEAST_CONFIDENCE = 0.7
"""Least mean of the largest class probability over the brain."""
BRAIN_ML = (600.0, 1900.0)
"""Plausible volumes of a brain without outer cerebrospinal fluid."""
LEAST_DISTANCE_MM = 30.0
"""Least distance of the centres of occipital and frontal cortex, and of parietal cortex and brain stem."""
_NORMAL = np.array([0.0, -1.0, -1.0]) / np.sqrt(2)  # LPS: forward and down
_SPACING_MM = 2.0
_BORDER = 2


@dataclass(frozen=True)
class FaceMask:
    """Part of an image that stays: ``share`` float32 (k, j, i) on ``grid``, 1 there, 0 in the face and outside."""

    share: NDArray[np.float32]
    grid: Grid

    def find_removed_voxels(self, grid: Grid) -> NDArray[np.bool_]:
        """Return the mask (k, j, i), on any grid, of the voxels to be removed from an image."""
        removed = np.zeros(grid.shape, np.bool_)
        share = torch.from_numpy(self.share)[None]
        for first, last in resampling.iterate_slabs(grid.shape):
            slab = resampling.subgrid(grid, (first, 0, 0), (last - first, *grid.shape[1:]))
            removed[first:last] = (resampling.resample(share, self.grid, slab)[0] < 0.5).numpy()
        return removed


def find_face(head: Volume, model: Model, facts: object = None, progress: Progress = lambda f, step: None) -> FaceMask:
    """Find the face in an MR image of a head by the bundle ``anatomy``. Raises Refused for doubtful anatomy."""
    anatomy.check_head(head, facts)
    head_anatomy = anatomy.segment_head(head, model, progress)
    _check_plausibility(head_anatomy)
    return make_face_mask(head_anatomy.image_labels > 0, head.grid)


def make_face_mask(inner: NDArray[np.bool_], grid: Grid) -> FaceMask:
    """Return the face mask for a mask (k, j, i) of brain and fluid on ``grid``."""
    coarse = resampling.axis_aligned(grid, _SPACING_MM)
    k, j, i = coarse.shape
    bordered = resampling.subgrid(coarse, (-_BORDER,) * 3, (k + 2 * _BORDER, j + 2 * _BORDER, i + 2 * _BORDER))
    inner_mask = resampling.resample(torch.from_numpy(inner.astype(np.float32))[None], grid, bordered)[0].numpy() > 0
    margin = ndimage.distance_transform_edt(~inner_mask, sampling=bordered.spacing_mm) <= MARGIN_MM
    centre = _centre(inner_mask, bordered)
    beyond_plane = _places_along_normal(bordered) > centre @ _NORMAL
    return FaceMask((margin | ~beyond_plane).astype(np.float32), bordered)


def _check_plausibility(found: Anatomy) -> None:
    brain = np.isin(found.labels, BRAIN)
    volume_ml = found.volume_ml(*BRAIN)
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        low, high = BRAIN_ML
        raise Refused(f"face: the brain found is of {volume_ml:.0f} ml; from {low:g} to {high:g} ml is believed")
    confidence = float(found.confidence[brain].mean())
    if confidence < LEAST_CONFIDENCE:
        raise Refused(
            f"face: the brain is found with a mean probability of {confidence:.2f}, less than {LEAST_CONFIDENCE:g}"
        )
    front, back = _centre_of(found, "frontal cortex"), _centre_of(found, "occipital cortex")
    top, bottom = _centre_of(found, "parietal cortex"), _centre_of(found, "brain stem")
    if back[1] - front[1] < LEAST_DISTANCE_MM or top[2] - bottom[2] < LEAST_DISTANCE_MM:
        raise Refused("face: front and back, or top and bottom, of the brain found do not lie as the header says")


def _centre_of(found: Anatomy, name: str) -> NDArray[np.float64]:
    mask = found.labels == number(name)
    if not mask.any():
        raise Refused(f"face: no {name} is found")
    return _centre(mask, found.grid)


def _centre(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """Return the mean place of a mask (k, j, i) in LPS millimetres."""
    k, j, i = (float(each.mean()) for each in np.nonzero(mask))
    place: NDArray[np.float64] = (grid.affine_mm @ [i, j, k, 1])[:3]
    return place


def _places_along_normal(grid: Grid) -> NDArray[np.float64]:
    """Return the place of each voxel (k, j, i) along the normal, in millimetres."""
    steps, first = _NORMAL @ grid.affine_mm[:3, :3], float(_NORMAL @ grid.affine_mm[:3, 3])
    k, j, i = (np.arange(n, dtype=np.float64) for n in grid.shape)
    along: NDArray[np.float64] = first + k[:, None, None] * steps[2] + j[:, None] * steps[1] + i * steps[0]
    return along
