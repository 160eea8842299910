"""Registration of one image to another: known motions are recovered on grids of any kind, others are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import COUNT
from pipelines import registration, resampling
from pipelines.contract import Grid, Refused, Volume
from tests.scanner import make_grid

pytestmark = pytest.mark.slow

SPACING_MM = 2.0
SHAPE = (96, 112, 96)
T1W_ORDER, FLAIR_ORDER = 1, 2


@pytest.fixture(scope="module")
def structure() -> NDArray[np.uint8]:
    """Return a head of ellipsoids with a piece missing on one side, so that every rotation changes its look."""
    found = make_phantom(SHAPE, SPACING_MM).structure.numpy().copy()
    found[60:, 30:50, 60:] = 0
    return found


def _make_upright_grid() -> Grid:
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = (-91, -105, -80)
    return Grid(SHAPE, affine)


def _simulate(structure: NDArray[np.uint8], contrast: int, onto: Grid, motion: NDArray[np.float64]) -> Volume:
    """Return the head after a motion, in a contrast of its own, on a grid, with a little noise."""
    level = np.random.default_rng(contrast).permutation(np.linspace(0.3, 1, COUNT + 1)).astype(np.float32)
    level[0] = 0
    head = _make_upright_grid()
    moved = Grid(head.shape, motion @ head.affine_mm)
    data = resampling.resample(torch.from_numpy(level[structure])[None], moved, onto)[0].numpy()
    noise = np.random.default_rng(7 + contrast).normal(0, 0.02, data.shape)
    return Volume((1000 * np.abs(data + noise)).astype(np.float32), onto)


def _make_centred_grid(orientation: str, spacing_mm: tuple[float, float, float]) -> Grid:
    """Return a grid of 240 mm each way about the middle of the head."""
    shape = [round(240 / mm) for mm in spacing_mm]
    grid = make_grid(orientation, (shape[0], shape[1], shape[2]), spacing_mm, (0, 0, 0))
    head = _make_upright_grid()
    middle = head.affine_mm @ [*((n - 1) / 2 for n in reversed(head.shape)), 1]
    grid.affine_mm[:3, 3] = middle[:3] - grid.affine_mm[:3, :3] @ [(n - 1) / 2 for n in reversed(shape)]
    return grid


def _make_motion(degrees: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    found = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (a, b) = np.eye(4), [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        found = turn @ found
    found[:3, 3] = shift_mm
    return found


def _measure_residual_motion(found: registration.Registration, motion: NDArray[np.float64]) -> tuple[float, float]:
    """Return the residual motion: at most so many millimetres within 50 mm of the middle, and degrees."""
    rest = found.correction_mm @ motion
    middle = (_make_upright_grid().affine_mm @ [48, 56, 48, 1])[:3]
    moved = [registration.measure_motion(rest, middle + step) for step in (0, [50, 0, 0], [0, 50, 0], [0, 0, 50])]
    return max(mm for mm, _ in moved), moved[0][1]


@pytest.mark.parametrize(
    ("orientation", "spacing_mm", "degrees", "shift_mm"),
    [
        ("axial", (2.0, 2.0, 2.0), (3, -2, 4), (4, -3, 6)),
        ("oblique", (2.0, 1.5, 1.5), (-5, 4, 2), (-7, 5, 3)),
        ("sagittal", (5.0, 1.2, 1.2), (2, 3, -3), (3, 6, -4)),
    ],
)
def test_a_known_motion_is_found_to_a_third_of_a_millimetre(
    structure: NDArray[np.uint8],
    orientation: str,
    spacing_mm: tuple[float, float, float],
    degrees: tuple[float, float, float],
    shift_mm: tuple[float, float, float],
) -> None:
    motion = _make_motion(degrees, shift_mm)
    fixed = _simulate(structure, FLAIR_ORDER, _make_centred_grid(orientation, spacing_mm), np.eye(4))
    moving = _simulate(structure, T1W_ORDER, _make_centred_grid("axial", (1.5, 2.0, 1.5)), motion)
    found = registration.register_rigid(fixed, moving, 1)
    off_mm, off_degrees = _measure_residual_motion(found, motion)
    assert off_mm < 0.3
    assert off_degrees < 0.3
    assert found.start == "the place that its header states"
    assert np.array_equal(found.volume.data, moving.data)


def test_headers_that_say_nothing_are_got_over(structure: NDArray[np.uint8]) -> None:
    """The head lies half a metre away in another frame of reference."""
    motion = _make_motion((4, -3, 5), (400, -300, 250))
    fixed = _simulate(structure, FLAIR_ORDER, _make_centred_grid("axial", (2.0, 2.0, 2.0)), np.eye(4))
    moving = _simulate(structure, T1W_ORDER, _make_centred_grid("axial", (2.0, 2.0, 2.0)), np.eye(4))
    away = Volume(moving.data, Grid(moving.grid.shape, motion @ moving.grid.affine_mm))
    found = registration.register_rigid(fixed, away, 1, registration.PlausibleMotion(shift_mm=1000))
    assert max(_measure_residual_motion(found, motion)) < 0.3
    assert found.start == "the centres of mass"
    with pytest.raises(Refused, match=r"it would move by 5\d\d mm .*; believed are 40 mm and 30 degrees"):
        registration.register_rigid(fixed, away, 1, name="the T1w")


def test_the_same_seed_gives_the_same_place(structure: NDArray[np.uint8]) -> None:
    fixed = _simulate(structure, FLAIR_ORDER, _make_centred_grid("axial", (4.0, 4.0, 4.0)), np.eye(4))
    moving = _simulate(
        structure, T1W_ORDER, _make_centred_grid("axial", (4.0, 4.0, 4.0)), _make_motion((2, 1, 0), (1, 2, 3))
    )
    one, same, other = (registration.register_rigid(fixed, moving, seed) for seed in (5, 5, 6))
    assert np.array_equal(one.correction_mm, same.correction_mm)
    assert not np.array_equal(one.correction_mm, other.correction_mm)


def test_noise_is_no_head(structure: NDArray[np.uint8]) -> None:
    fixed = _simulate(structure, FLAIR_ORDER, _make_centred_grid("axial", (6.0, 6.0, 6.0)), np.eye(4))
    noise = np.random.default_rng(3).normal(500, 100, fixed.data.shape).astype(np.float32)
    with pytest.raises(Refused, match=r"the T1w cannot be laid on the other one: .*not the same head, or no image"):
        registration.register_rigid(fixed, Volume(noise, fixed.grid), 1, name="the T1w")
    with pytest.raises(Refused, match="uniform"):
        registration.register_rigid(fixed, Volume(np.ones_like(noise), fixed.grid), 1)
