"""The five SynthSR label maps, brains without a head, in the numbering and on the grid of the SynthSeg maps.

They have left codes on both sides, no fluid about the brain and no head. Fluid fills the sulci and 2 mm about the
brain; skull and scalp are shells of 7 and 5 mm: no head of a person.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_zoo.data_kit import data_root

__all__ = ["SUBJECTS", "read_brain_label_map"]

SUBJECTS = ("sr1", "sr2", "sr3", "sr4", "sr5")
"""Names of the maps as subjects; only training may read them."""
FLUID, SKULL, SCALP, UNDETERMINED = 24, 515, 507, 29
_SIDE = 256
_CLOSING, _FLUID_MM, _SKULL_MM, _SCALP_MM = 4, 2, 7, 5


def read_brain_label_map(subject: str, root: Path | None = None) -> NDArray[np.int16]:
    """Return the labels: int16 (256, 256, 256) (k, j, i) at 1 mm, LPS, the brain in the middle.

    Raises FileNotFoundError where the data kit does not have the map.
    """
    import nibabel

    folder = (root or data_root()) / "anatomy" / "synthsr-label-maps"
    image = nibabel.as_closest_canonical(nibabel.load(folder / f"brain{subject.removeprefix('sr')}_labels.nii.gz"))
    labels = np.ascontiguousarray(np.asarray(image.dataobj).astype(np.int16)[::-1, ::-1].transpose(2, 1, 0))
    labels[labels == UNDETERMINED] = FLUID
    starts = [(_SIDE - n) // 2 for n in labels.shape]
    k, j, i = (slice(a, a + n) for a, n in zip(starts, labels.shape, strict=True))
    found = np.zeros((_SIDE,) * 3, np.int16)
    found[k, j, i] = labels
    return _add_head(found)


def _add_head(labels: NDArray[np.int16]) -> NDArray[np.int16]:
    """Fill the sulci with fluid, and lay skull and scalp about them."""
    from scipy import ndimage

    brain = labels > 0
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=_CLOSING))
    distance = ndimage.distance_transform_edt(~closed)
    inner = _FLUID_MM + _SKULL_MM
    labels[~brain & (distance <= inner + _SCALP_MM)] = SCALP
    labels[~brain & (distance <= inner)] = SKULL
    labels[~brain & (distance <= _FLUID_MM)] = FLUID
    return labels
