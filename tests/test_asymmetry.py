"""Regions unlike their mirror image, on a head of ellipsoids: contrast, tilt and a bias field do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from model_zoo.asymmetry import measure_asymmetric_region, mirror
from model_zoo.out_of_distribution import HOLD_ABOVE
from model_zoo.structures import number

SHAPE = (136, 160, 136)
LEVELS = {"t1w": (0.7, 1.0, 0.2), "flair": (1.0, 0.8, 0.1), "t2w": (0.6, 0.4, 1.0)}
"""Grey matter, white matter, fluid."""


def _make_head(contrast: str, radius: float = 0.0, tilt: float = 0.0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return labels and image of a tilted head; ``radius`` mm of a ball in the left white matter with other values."""
    k, j, i = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    i, j = np.cos(tilt) * i + np.sin(tilt) * j, np.cos(tilt) * j - np.sin(tilt) * i
    depth = np.sqrt((k / 60) ** 2 + (j / 75) ** 2 + (i / 60) ** 2)
    labels = np.zeros(SHAPE, np.uint8)
    grey, white, fluid = LEVELS[contrast]
    image = np.zeros(SHAPE, np.float32)
    for name, level, outer in (
        ("csf", fluid, 1.0), ("frontal cortex", grey, 0.93), ("cerebral white matter", white, 0.8),
        ("lateral ventricles", fluid, 0.25),
    ):  # fmt: skip
        labels[depth < outer], image[depth < outer] = number(name), level
    image[np.sqrt(k**2 + j**2 + (i - 28) ** 2) < radius] = (white + 2 * fluid) / 3
    image += 0.05 * np.random.default_rng(0).standard_normal(SHAPE)
    return labels, (100 * image * (1 + 0.3 * (i / 60) + 0.2 * (j / 75) ** 2)).astype(np.float32)


@pytest.mark.parametrize("contrast", ["t1w", "flair"])
def test_a_symmetric_head_has_no_asymmetric_region(contrast: str) -> None:
    assert measure_asymmetric_region(*_make_head(contrast, tilt=0.1)) < 0.2 * HOLD_ABOVE["asymmetric region"]


@pytest.mark.parametrize("contrast", ["flair", "t2w"])
def test_a_lesion_of_one_side_is_found(contrast: str) -> None:
    found = measure_asymmetric_region(*_make_head(contrast, radius=20.0, tilt=0.1))
    assert found == pytest.approx(33.5, rel=0.25)  # the volume of the ball
    assert found > HOLD_ABOVE["asymmetric region"]


@pytest.mark.parametrize("size", [6, 2])
def test_a_head_that_is_too_thin_cannot_be_compared(size: int) -> None:
    labels = np.zeros((80, 160, 160), np.uint8)
    if size == 6:
        labels[40:46, 40:120, 40:120] = number("cerebral white matter")
    else:
        k, j, i = np.indices(labels.shape) % 8
        labels[(k < 2) & (j < 2) & (i < 2)] = number("cerebral white matter")
    found = measure_asymmetric_region(labels, np.ones(labels.shape, np.float32))
    assert np.isnan(found)


def test_an_image_without_a_head_cannot_be_compared() -> None:
    found = measure_asymmetric_region(np.zeros((40, 40, 40), np.uint8), np.ones((40, 40, 40), np.float32))
    assert np.isnan(found)


def test_the_mirror_image_agrees_with_scipy() -> None:
    x = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((24, 30, 28)), 2).astype(np.float32)
    x = np.pad(x, 8)
    slope_j, slope_k, offset = 0.04, -0.07, 1.3
    normal = np.array([np.sin(slope_k), np.sin(slope_j), 1.0])
    normal /= np.linalg.norm(normal)
    turn = -Rotation.from_rotvec(np.pi * normal).as_matrix()  # a reflection is minus half a turn about the normal
    middle = (np.array(x.shape) - 1) / 2 + np.array([0, 0, offset])
    expected = ndimage.affine_transform(x, turn, offset=middle - turn @ middle, order=1)
    found = mirror(torch.from_numpy(x)[None], np.array([offset, slope_j, slope_k]))[0].numpy()
    assert np.abs(found - expected).max() < 1e-5
