"""Whole-head label maps as tissue classes on a 1 mm lattice, and the split that every recipe obeys.

The maps are the SynthSeg training maps (Apache-2.0; FreeSurfer numbering, 5xx extra-cerebral). They are looked for in
``$DICOMNODE_DATA/anatomy/synthseg-label-maps`` and never copied into a bundle.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["TEST", "TISSUES", "TRAIN", "VALIDATION", "cache_root", "data_root", "label_map", "tissue_map", "tissue_of"]

TEST = ("13", "20")
VALIDATION = ("09", "16")
TRAIN = ("01", "02", "03", "04", "05", "06", "08", "11", "12", "15", "17", "19")
"""Split by subject before any augmentation; TEST and VALIDATION are read by no recipe's training step."""

TISSUES: dict[str, tuple[int, ...]] = {
    "air": (0,),
    "white matter": (2, 41, 7, 46),
    "cortex": (3, 42),
    "cerebellar cortex": (8, 47),
    "thalamus": (10, 49, 28, 60),
    "caudate": (11, 50, 26, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53, 18, 54),
    "csf": (4, 43, 5, 44, 14, 15, 24, 72),
    "lesion": (25, 57),
    "brain stem": (16,),
    "bone": (515, 516),
    "fat": (507,),
    "muscle": (502, 508, 509, 512, 514, 530),
    "marrow": (511,),
    "eye": (506,),
    "vessel": (30, 62, 31, 63, 85, 136, 137, 163, 164),
}
"""Tissue class by name: its index here is the value in ``tissue_map``; the tuple holds the label map's numbers."""

_TISSUE_OF_STRUCTURE = {
    "cerebral white matter": "white matter",
    "lateral ventricles": "csf",
    "third and fourth ventricles": "csf",
    "cerebellar white matter": "white matter",
    "amygdala": "hippocampus",
    "ventral diencephalon": "thalamus",
}


def tissue_of(structure: str) -> int:
    """Tissue class of a structure of ``model_zoo.structures``, by its name; regions of the cortex are cortex."""
    name = _TISSUE_OF_STRUCTURE.get(structure, structure)
    return list(TISSUES).index(name if name in TISSUES else "cortex")


def data_root() -> Path:
    """The data kit's folder: ``DICOMNODE_DATA``, else ``../shared/data`` beside the project.

    Raises FileNotFoundError where neither exists.
    """
    root = Path(os.environ.get("DICOMNODE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not root.is_dir():
        raise FileNotFoundError(f"no data kit at {root}: set DICOMNODE_DATA to its folder")
    return root


def cache_root() -> Path:
    """Where derived data that take long to make are kept: ``DICOMNODE_CACHE``, else the user's cache folder."""
    given = os.environ.get("DICOMNODE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dicomnode"


def label_map(subject: str, root: Path | None = None) -> NDArray[np.int16]:
    """FreeSurfer and extra-cerebral labels of one subject: int16 (k, j, i) at 1 mm, LPS.

    ``root``: the data kit's folder, by default ``data_root()``. Raises FileNotFoundError where the map is not there.
    """
    import nibabel

    path = (root or data_root()) / "anatomy" / "synthseg-label-maps" / f"training_seg_{subject}.nii.gz"
    canonical = nibabel.as_closest_canonical(nibabel.load(path))  # R, A, S
    labels = np.asarray(canonical.dataobj).astype(np.int16)
    return np.ascontiguousarray(labels[::-1, ::-1].transpose(2, 1, 0))


@lru_cache(maxsize=16)
def tissue_map(subject: str, root: Path | None = None) -> torch.Tensor:
    """Tissue classes of one subject: uint8 (k, j, i) at 1 mm, axes towards superior, posterior and left (LPS).

    ``root``: the data kit's folder, by default ``data_root()``. Raises FileNotFoundError where the map is not there.
    """
    labels = label_map(subject, root)
    lookup = np.full(int(labels.max()) + 1, list(TISSUES).index("muscle"), dtype=np.uint8)
    for index, numbers in enumerate(TISSUES.values()):
        for number in numbers:
            if number < len(lookup):
                lookup[number] = index
    return torch.from_numpy(lookup[labels])
