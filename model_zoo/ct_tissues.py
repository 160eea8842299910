"""Four tissues by CT number, the same for a CT and for the attenuation map of a simulated body.

Bounds in HU: lung from -950 (below it is air: Gevenois et al. 1996, the threshold of emphysema) to -190, adipose tissue
-190 to -30 and soft tissue to 150 (the ranges of body composition, Mitsiopoulos et al. 1998), bone above. Vessels with
contrast agent, metal and calcium count as bone, gas as nothing; no bounds distinguish one organ from another.

Attenuation at 511 keV to CT number at 120 kV, two lines that meet at 47 HU (Carney et al. 2006, Med Phys 33:976):

    mu = 9.6e-5 (HU + 1000) / cm below,    mu = 5.10e-5 (HU + 1000) + 4.71e-2 / cm above
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "BONE",
    "CT_TISSUES",
    "LUNG",
    "NAMES",
    "CtTissue",
    "attenuation_to_hounsfield",
    "classify",
    "remove_thin_lung",
]

LUNG, BONE = 1, 4


@dataclass(frozen=True)
class CtTissue:
    """A tissue: number in label arrays (0 is air), name in a bundle's ``regions``, least CT number, SNOMED code."""

    number: int
    name: str
    least_hu: float
    code_value: str
    code_meaning: str


CT_TISSUES = (
    CtTissue(LUNG, "lung by CT", -950.0, "39607008", "Lung"),
    CtTissue(2, "fat by CT", -190.0, "55603005", "Fat"),
    CtTissue(3, "soft tissue by CT", -30.0, "87784001", "Soft tissue"),
    CtTissue(BONE, "bone by CT", 150.0, "272673000", "Bone"),
)
"""Tissues in the order of their numbers, from 1."""

NAMES = tuple(tissue.name for tissue in CT_TISSUES)


def classify(hu: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the number of each voxel's tissue, 0 for air."""
    return np.asarray(np.digitize(hu, [tissue.least_hu for tissue in CT_TISSUES]), np.uint8)


def attenuation_to_hounsfield(mu_per_cm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the CT number for an attenuation at 511 keV: the inverse of the two lines above."""
    below, above = mu_per_cm / 9.6e-5 - 1000, (mu_per_cm - 4.71e-2) / 5.10e-5 - 1000
    return np.where(below < 47, below, above)


def remove_thin_lung(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the labels without lung thinner than three voxels.

    The border of air and tissue has the CT number of lung.
    """
    lung = labels == LUNG
    thick = ndimage.binary_opening(lung, np.ones((3, 3, 3), bool))
    return np.where(lung & ~thick, 0, labels).astype(np.uint8)
