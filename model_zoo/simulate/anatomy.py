"""Whole-head label maps as tissue classes on a 1 mm grid, and the split that every recipe obeys.

The maps are the SynthSeg training maps (Apache-2.0; FreeSurfer numbering, 5xx extra-cerebral). They are looked for in
``$DICOMNODE_DATA/anatomy/synthseg-label-maps`` and never copied into a bundle.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_zoo.data_kit import data_root
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import brain_label_maps

__all__ = ["TEST", "TRAIN", "VALIDATION", "read_label_map", "read_tissue_map"]

TEST = ("13", "20")
VALIDATION = ("09", "16")
TRAIN = ("01", "02", "03", "04", "05", "06", "08", "11", "12", "15", "17", "19")
"""Split by subject before any augmentation; TEST and VALIDATION are read by no recipe's training step."""


def read_label_map(subject: str, root: Path | None = None) -> NDArray[np.int16]:
    """Return the FreeSurfer and extra-cerebral labels of one subject: int16 (k, j, i) at 1 mm, LPS.

    The subjects of ``brain_label_maps`` are brains with a head of shells.

    ``root``: the data kit's folder, by default ``data_root()``. Raises FileNotFoundError where the map is not there.
    """
    import nibabel

    if subject in brain_label_maps.SUBJECTS:
        return brain_label_maps.read_brain_label_map(subject, root)
    path = (root or data_root()) / "anatomy" / "synthseg-label-maps" / f"training_seg_{subject}.nii.gz"
    canonical = nibabel.as_closest_canonical(nibabel.load(path))  # R, A, S
    labels = np.asarray(canonical.dataobj).astype(np.int16)
    return np.ascontiguousarray(labels[::-1, ::-1].transpose(2, 1, 0))


@lru_cache(maxsize=16)
def read_tissue_map(subject: str, root: Path | None = None) -> torch.Tensor:
    """Return the tissue classes of one subject: uint8 (k, j, i) at 1 mm, axes towards superior, posterior and left
    (LPS).

    ``root``: the data kit's folder, by default ``data_root()``. Raises FileNotFoundError where the map is not there.
    """
    labels = read_label_map(subject, root)
    lookup = np.full(int(labels.max()) + 1, list(TISSUES).index("muscle"), dtype=np.uint8)
    for index, numbers in enumerate(TISSUES.values()):
        for number in numbers:
            if number < len(lookup):
                lookup[number] = index
    return torch.from_numpy(lookup[labels])
