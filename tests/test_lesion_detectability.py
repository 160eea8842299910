"""The observer of the lesion benchmark measures what it says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.lesion_detectability import (
    MIDDLE,
    PIXEL_MM,
    SHAPE,
    Pair,
    Place,
    auc,
    choose_places,
    count_false_spots,
    observe,
)

pytestmark = pytest.mark.fast

DEPTH_MM: NDArray[np.float32] = np.zeros((256, 256), np.float32)
DEPTH_MM[100:180, 100:170] = 20.0
"""White matter about the middle."""
PLACE = Place(MIDDLE, MIDDLE, 6.0)


def draw(*places: Place, contrast: float = 0.3) -> NDArray[np.float32]:
    """Return a flat image of 1 with discs that are brighter by ``contrast``."""
    rows, columns = (MIDDLE + (np.arange(n) - n // 2) * PIXEL_MM for n in SHAPE)
    image = np.ones(SHAPE, np.float32)
    for p in places:
        image[np.hypot(rows[:, None] - p.row_mm, columns[None, :] - p.column_mm) <= p.size_mm / 2] += contrast
    return image


def make_pair(with_lesions: NDArray[np.float32], places: list[Place]) -> Pair:
    empty = np.zeros((1, 1, *SHAPE), np.complex64)
    return Pair((empty, empty), empty[0, :, 0], (draw(), with_lesions), places, DEPTH_MM)


def test_the_observer_reads_the_contrast_of_a_lesion_and_none_of_a_flat_image() -> None:
    assert observe(draw(PLACE), [PLACE], DEPTH_MM) == pytest.approx([0.3])
    assert observe(draw(), [PLACE], DEPTH_MM) == pytest.approx([0.0])


def test_the_observer_leaves_out_of_the_ring_what_is_no_white_matter() -> None:
    image, depth = draw(PLACE), DEPTH_MM.copy()
    image[SHAPE[0] // 2 + 3 :] = 5.0
    depth[MIDDLE + 4 :] = 0.0
    assert observe(image, [PLACE], depth) == pytest.approx([0.3])


def test_a_bright_spot_where_no_lesion_is_counts_once_and_a_dim_one_does_not() -> None:
    lesion, spot = Place(MIDDLE, MIDDLE, 4.5), Place(MIDDLE + 30, MIDDLE + 20, 4.5)
    pair = make_pair(draw(lesion), [lesion])
    assert count_false_spots(draw(), pair) == 0
    assert count_false_spots(draw(spot), pair) == 1
    assert count_false_spots(draw(spot, contrast=0.1), pair) == 0


def test_auc_is_half_for_equal_numbers_and_one_for_separate_ones() -> None:
    assert auc(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert auc(np.array([1.0, 3.0]), np.array([2.0, 4.0])) == 0.75


def test_lesions_lie_inside_white_matter_and_apart() -> None:
    depth = np.zeros((256, 256), np.float32)
    depth[100:130, 100:130] = 3.0
    places = choose_places(depth, np.random.default_rng(1))
    assert {p.size_mm for p in places} == {3.0}  # 4.5 mm would need 3.25 mm of white matter around its middle
    gaps = [np.hypot(p.row_mm - q.row_mm, p.column_mm - q.column_mm) for p in places for q in places if p != q]
    assert min(gaps) >= 9.0
