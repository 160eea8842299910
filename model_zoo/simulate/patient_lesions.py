"""Lesion masks of real patients in MNI space (Lesjak et al. 2017), laid into a simulated head.

The box that holds 98 % of the template's brain along each axis is laid on the head's own: good to some millimetres,
which is why ``lesions.draw_lesions_from_mask`` keeps only what falls into white matter.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo.data_kit import data_root
from model_zoo.structures import number

if TYPE_CHECKING:
    from model_zoo.simulate.heads import Head

__all__ = ["HELD_OUT", "list_patients", "place_patient_mask"]

HELD_OUT = ("07", "19")
"""Patients whose images the kit holds: their masks are for testing on those and are laid into no training head."""

Box = tuple[NDArray[np.float64], NDArray[np.float64]]


def list_patients(root: Path | None = None) -> tuple[str, ...]:
    """Return the numbers of the patients whose masks the data kit holds, such as "01".

    Raises FileNotFoundError without it.
    """
    folder = _find_folder(root)
    return tuple(sorted(p.name[7:9] for p in folder.glob("patient*_lesions_mni.nii.gz")))


def place_patient_mask(head: Head, patient: str, root: Path | None = None) -> Tensor:
    """Return the patient's lesions on the head's grid: bool (k, j, i)."""
    mask, first_mm = _read_mask(patient, root)
    low_mni, high_mni = _read_template_box(root)
    low, high = _brain_box((head.structure > 0) & (head.structure != number("csf")))
    index = []
    for axis in range(3):
        share = (np.arange(head.structure.shape[axis]) - low[axis]) / (high[axis] - low[axis])
        mm = low_mni[axis] + share * (high_mni[axis] - low_mni[axis])
        index.append(np.clip(np.round(mm - first_mm[axis]), 0, mask.shape[axis] - 1).astype(int))
    return torch.from_numpy(np.ascontiguousarray(mask[np.ix_(*index)]))


@lru_cache(maxsize=32)
def _read_mask(patient: str, root: Path | None) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return _read_lps(_find_folder(root) / f"patient{patient}_lesions_mni.nii.gz")


@lru_cache(maxsize=2)
def _read_template_box(root: Path | None) -> Box:
    folder = (root or data_root()) / "anatomy" / "mni152-2009a"
    grey, first_mm = _read_lps(folder / "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz")
    white, _ = _read_lps(folder / "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz")
    low, high = _brain_box(torch.from_numpy(grey | white))
    return low + first_mm, high + first_mm


def _brain_box(brain: Tensor) -> Box:
    """Return the first and last percentile of the brain's voxels along each axis (k, j, i), in voxels."""
    mask = brain.cpu().numpy()
    ends = []
    for axis in range(3):
        counts = np.cumsum(mask.sum(tuple(a for a in range(3) if a != axis)))
        ends.append(np.interp([0.01 * counts[-1], 0.99 * counts[-1]], counts, np.arange(len(counts))))
    low, high = np.array(ends).T
    return low, high


def _read_lps(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return a 1 mm NIfTI volume over half of its maximum: bool (k, j, i), LPS, and the position of its first voxel in
    mm.
    """
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.load(path))
    data = np.asarray(image.dataobj, dtype=np.float32)[::-1, ::-1].transpose(2, 1, 0)
    right, back, low = (float(v) for v in image.affine[:3, 3])
    first = np.array([low, -(back + data.shape[1] - 1), -(right + data.shape[2] - 1)])
    return np.ascontiguousarray(data > 0.5 * data.max()), first


def _find_folder(root: Path | None) -> Path:
    folder = (root or data_root()) / "anatomy" / "ms-lesion-masks-mni"
    if not folder.is_dir():
        raise FileNotFoundError(f"no lesion masks at {folder}")
    return folder
