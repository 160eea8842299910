"""Where an MR image of a head shows the face: what may be taken away so that nobody is recognised by a rendering of it.

Everything goes that lies further than ``MARGIN_MM`` from brain and cerebrospinal fluid and in front of or below the
oblique plane through their centre, whose normal points as much forward as down: nose, eyes, mouth, chin, ears, throat.
The brain stays whole by construction, and so do scalp and skull above and behind. The plane stands in patient
coordinates (LPS), so a head that nods by less than about 30 degrees loses the same.

What the anatomy model says has to look like a head: size, certainty, and which way is up and front.
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
"""Mean of the largest class probability over the brain."""
BRAIN_ML = (600.0, 1900.0)
"""Without outer cerebrospinal fluid."""
LEAST_DISTANCE_MM = 30.0
"""Of the occipital from the frontal cortex, and of the parietal cortex from the brain stem, by their centres."""
_NORMAL = np.array([0.0, -1.0, -1.0]) / np.sqrt(2)  # LPS: forward and down
_SPACING_MM = 2.0
_BORDER = 2


@dataclass(frozen=True)
class FaceMask:
    """``share`` float32 (k, j, i) on ``grid``: 1 where the image stays, 0 where the face may be, and outside of it."""

    share: NDArray[np.float32]
    grid: Grid

    def removed(self, grid: Grid) -> NDArray[np.bool_]:
        """On any lattice (k, j, i): where an image loses its values."""
        found = np.zeros(grid.shape, np.bool_)
        share = torch.from_numpy(self.share)[None]
        for first, last in resampling.iterate_slabs(grid.shape):
            slab = resampling.subgrid(grid, (first, 0, 0), (last - first, *grid.shape[1:]))
            found[first:last] = (resampling.resample(share, self.grid, slab)[0] < 0.5).numpy()
        return found


def find_face(head: Volume, model: Model, facts: object = None, progress: Progress = lambda f, step: None) -> FaceMask:
    """What stays of an MR image of a head, by the bundle ``anatomy``. Raises Refused where that is doubtful."""
    anatomy.check_head(head, facts)
    found = anatomy.segment_head(head, model, progress)
    _doubt(found)
    return make_face_mask(found.own_labels > 0, head.grid)


def make_face_mask(inner: NDArray[np.bool_], grid: Grid) -> FaceMask:
    """For a mask (k, j, i) of brain and fluid on ``grid``."""
    whole = resampling.axis_aligned(grid, _SPACING_MM)
    k, j, i = whole.shape
    bordered = resampling.subgrid(whole, (-_BORDER,) * 3, (k + 2 * _BORDER, j + 2 * _BORDER, i + 2 * _BORDER))
    here = resampling.resample(torch.from_numpy(inner.astype(np.float32))[None], grid, bordered)[0].numpy() > 0
    near = ndimage.distance_transform_edt(~here, sampling=bordered.spacing_mm) <= MARGIN_MM
    centre = _centre(here, bordered)
    ahead = _along(bordered) > centre @ _NORMAL
    return FaceMask((near | ~ahead).astype(np.float32), bordered)


def _doubt(found: Anatomy) -> None:
    brain = np.isin(found.labels, BRAIN)
    volume_ml = found.volume_ml(*BRAIN)
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        low, high = BRAIN_ML
        raise Refused(f"face: the brain found is of {volume_ml:.0f} ml; from {low:g} to {high:g} ml is believed")
    sure = float(found.confidence[brain].mean())
    if sure < LEAST_CONFIDENCE:
        raise Refused(f"face: the brain is found with a mean probability of {sure:.2f}, less than {LEAST_CONFIDENCE:g}")
    front, back = _where(found, "frontal cortex"), _where(found, "occipital cortex")
    top, bottom = _where(found, "parietal cortex"), _where(found, "brain stem")
    if back[1] - front[1] < LEAST_DISTANCE_MM or top[2] - bottom[2] < LEAST_DISTANCE_MM:
        raise Refused("face: front and back, or top and bottom, of the brain found do not lie as the header says")


def _where(found: Anatomy, name: str) -> NDArray[np.float64]:
    mask = found.labels == number(name)
    if not mask.any():
        raise Refused(f"face: no {name} is found")
    return _centre(mask, found.grid)


def _centre(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """LPS millimetres of the mean place of a mask (k, j, i)."""
    k, j, i = (float(each.mean()) for each in np.nonzero(mask))
    place: NDArray[np.float64] = (grid.affine_mm @ [i, j, k, 1])[:3]
    return place


def _along(grid: Grid) -> NDArray[np.float64]:
    """Of each voxel (k, j, i) its place along the normal, in millimetres."""
    steps, first = _NORMAL @ grid.affine_mm[:3, :3], float(_NORMAL @ grid.affine_mm[:3, 3])
    k, j, i = (np.arange(n, dtype=np.float64) for n in grid.shape)
    along: NDArray[np.float64] = first + k[:, None, None] * steps[2] + j[:, None] * steps[1] + i * steps[0]
    return along
