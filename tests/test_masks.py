"""Sampling masks: exact counts, no position twice, calibration kept."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from model_zoo import masks

Draw = Callable[[tuple[int, int], float, int, np.random.Generator], NDArray[np.bool_]]
ONE_D: list[Draw] = [masks.uniform_1d, masks.random_1d, masks.gaussian_1d]
TWO_D: list[Draw] = [masks.gaussian_2d, masks.poisson_2d]


@pytest.mark.parametrize("draw", ONE_D)
@pytest.mark.parametrize("acceleration", [2.0, 3.0, 4.0])
def test_lines_meet_the_acceleration_and_keep_the_calibration(draw: Draw, acceleration: float) -> None:
    mask = draw((128, 126), acceleration, 10, np.random.default_rng(1))
    assert mask.any(axis=0).sum() == round(126 / acceleration)
    assert np.array_equal(mask.any(axis=0), mask.all(axis=0))
    assert mask[:, 58:68].all()


@pytest.mark.slow
@pytest.mark.parametrize("draw", TWO_D)
@pytest.mark.parametrize("acceleration", [4.0, 8.0])
def test_points_meet_the_acceleration_and_keep_the_calibration(draw: Draw, acceleration: float) -> None:
    mask = draw((96, 80), acceleration, 16, np.random.default_rng(1))
    assert masks.actual_acceleration(mask) == pytest.approx(acceleration, rel=0.01)
    assert mask[40:56, 32:48].all()


@pytest.mark.slow
@pytest.mark.parametrize("draw", [*ONE_D, *TWO_D])
def test_the_same_seed_gives_the_same_mask(draw: Draw) -> None:
    first, second = (draw((64, 60), 3.0, 8, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)


def test_density_falls_from_the_centre() -> None:
    for draw in (masks.gaussian_2d, masks.poisson_2d):
        mask = draw((96, 96), 6.0, 8, np.random.default_rng(3))
        assert mask[32:64, 32:64].mean() > 1.5 * mask.mean()


def test_poisson_points_keep_their_distance() -> None:
    mask = masks.poisson_2d((96, 96), 8.0, 8, np.random.default_rng(2))
    outer = mask & ~masks.calibration_block((96, 96), 60)
    pairs = (outer[:, 1:] & outer[:, :-1]).sum() + (outer[1:] & outer[:-1]).sum()
    assert pairs == 0


def test_more_calibration_than_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration"):
        masks.random_1d((32, 32), 4.0, 16, np.random.default_rng(0))
