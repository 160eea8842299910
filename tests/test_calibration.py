"""The calibration block by kind of sampling and place of the echo, and the maps that it gives."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dicomnode.mrd.calibration import Block, find_calibration_block
from model_zoo import classical, masks
from model_zoo.data_kit import data_root
from model_zoo.operators import centred_fft
from model_zoo.simulate.kspace import simulate_scan
from pipelines import encoding
from pipelines.coil_maps import find_block
from pipelines.contract import Grid, KSpace, Refused
from tests.test_mri_reconstruction import acquire, receive_maps, truth

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

NA, NB = 96, 80
Mask = NDArray[np.bool_]


def echo(at: tuple[int, int] = (NA // 2, NB // 2)) -> NDArray[np.complex64]:
    """Return samples (1, 2, a, b) whose energy falls with the distance from ``at``."""
    a, b = np.mgrid[:NA, :NB]
    peak = np.exp(-np.hypot(a - at[0], b - at[1]) / 4)
    return np.stack([peak, 0.5j * peak])[None].astype(np.complex64)


def find(mask: Mask, at: tuple[int, int] = (NA // 2, NB // 2)) -> Block | None:
    return find_calibration_block(echo(at) * mask, mask[None])


def lines(first: int, stop: int) -> Mask:
    """Return every fourth column and those from ``first`` to ``stop``."""
    columns = np.arange(NB)
    return np.broadcast_to((columns % 4 == 0) | ((columns >= first) & (columns < stop)), (NA, NB)).copy()


def points(radius_a: float, radius_b: float) -> Mask:
    """Return every third point of every second row, and an ellipse about the middle."""
    a, b = np.mgrid[:NA, :NB]
    scattered = (a % 2 == 1) & (b % 3 == 1)
    return np.asarray(scattered | (((a - NA // 2) / radius_a) ** 2 + ((b - NB // 2) / radius_b) ** 2 < 1))


def test_lines_give_a_block_over_the_whole_readout() -> None:
    assert find(lines(29, 52)) == ((0, NA), (28, 53))


@pytest.mark.parametrize("radii", [(16, 16), (12, 20), (28, 9)])
def test_an_ellipse_gives_a_large_rectangle_inside_it(radii: tuple[int, int]) -> None:
    mask = points(*radii)
    block = find(mask)
    assert block is not None
    (a0, a1), (b0, b1) = block
    assert mask[a0:a1, b0:b1].all()
    assert a0 <= NA // 2 < a1
    assert b0 <= NB // 2 < b1
    assert min(a1 - a0, b1 - b0) >= 12
    assert (a1 - a0) * (b1 - b0) > 0.5 * np.pi * radii[0] * radii[1]


def test_long_thin_blocks_do_not_win_over_one_that_maps_can_be_estimated_from() -> None:
    mask = points(1, 1)
    mask[NA // 2 - 10 : NA // 2 + 10, NB // 2 - 10 : NB // 2 + 10] = True
    mask[NA // 2 - 3 : NA // 2 + 3] = True
    assert find(mask) == ((NA // 2 - 10, NA // 2 + 10), (NB // 2 - 10, NB // 2 + 10))
    mask[NA // 2 - 1 : NA // 2 + 2] = True
    assert find(mask) is not None


def test_a_thin_cross_does_not_hide_the_block() -> None:
    """Three rows of full length hold more samples than the block, and are too few for maps."""
    mask = np.zeros((NA, NB), np.bool_)
    mask[NA // 2 - 1 : NA // 2 + 2] = True
    mask[NA // 2 - 6 : NA // 2 + 7, NB // 2 - 6 : NB // 2 + 7] = True
    assert find(mask) == ((NA // 2 - 6, NA // 2 + 7), (NB // 2 - 6, NB // 2 + 7))


@pytest.mark.parametrize("late", [True, False])
def test_partial_fourier_gives_the_part_that_was_sampled(late: bool) -> None:
    mask = lines(26, 54)
    mask[:, slice(0, 34) if late else slice(47, NB)] = False
    block = find(mask)
    assert block == ((0, NA), (34, 54) if late else (26, 47))


def test_a_partial_echo_bounds_the_readout() -> None:
    mask = lines(28, 53)
    mask[:38] = False
    assert find(mask) == ((38, NA), (28, 53))


def test_a_block_beside_the_middle_is_found_where_the_echo_is() -> None:
    assert find(lines(45, 60), (NA // 2, 52)) == ((0, NA), (44, 61))
    assert find(lines(5, 5)) is None


def test_slices_sampled_otherwise_share_what_all_sampled() -> None:
    both = np.stack([lines(20, 53), lines(28, 61)])
    assert find_calibration_block(echo() * both[:, None], both) == ((0, NA), (28, 53))


@pytest.mark.parametrize("offset", [-20, 0, 18])
def test_the_used_part_lies_about_the_echo(offset: int) -> None:
    mask = lines(28, 53)
    samples = echo((NA // 2 + offset, NB // 2)) * mask
    grid = Grid((1, NA, NB), np.eye(4))
    k = KSpace(samples, mask[None], (96.0, 80.0), grid, 4.0, find_calibration_block(samples, mask[None]))
    (a0, a1), (b0, b1) = find_block(k)
    assert (a1 - a0, b1 - b0) == (24, 24)
    assert abs((a0 + a1) / 2 - NA // 2 - offset) <= 1
    assert abs((b0 + b1) / 2 - NB // 2) <= 1


@pytest.mark.parametrize("coils", [1, 4])
def test_one_spike_moves_neither_the_block_nor_the_phase(coils: int) -> None:
    k = acquire(coils)
    samples, mask = k.samples.copy(), k.mask.copy()
    mask[0, 6, 30] = True
    samples[0, :, 6, 30] = 3 * np.abs(samples).max()
    spoilt = replace(k, samples=samples, mask=mask)
    assert find_calibration_block(samples, mask) == find_calibration_block(k.samples, k.mask)
    for calibration in (k.calibration, None)[: 2 if coils == 1 else 1]:
        there, found = (
            encoding.prepare_image(replace(each, calibration=calibration, noise=None)) for each in (k, spoilt)
        )
        turn = [(A.maps[1, 0, 1:] * A.maps[1, 0, :-1].conj()).sum().angle() for A in (there.A, found.A)]
        assert abs(float(turn[1] - turn[0])) < 0.11  # a row of 64 is 0.098 radians


@pytest.mark.parametrize("block", [((-2, 10), (0, 24)), ((5, 5), (0, 24)), ((70, 94), (0, 24))])
def test_a_block_outside_the_matrix_is_refused(block: Block) -> None:
    with pytest.raises(Refused, match="outside the matrix"):
        encoding.check_acquisition([replace(acquire(4), calibration=block)])


def test_samples_without_a_slice_axis_are_refused() -> None:
    k = acquire(4)
    with pytest.raises(Refused, match="contradict"):
        encoding.check_acquisition([replace(k, samples=k.samples[0])])


def move(k: KSpace, rows: int) -> KSpace:
    """Return the acquisition of the phantom moved by ``rows`` under the same coils, less bright."""
    y = centred_fft(receive_maps(4) * torch.roll(0.5 * truth(), rows, 1)[:, None]).numpy()
    return replace(k, samples=(y * k.mask[:, None]).astype(np.complex64))


def test_each_contrast_is_measured_against_the_maps_that_it_uses() -> None:
    first = acquire(4)
    still = replace(move(first, 0), label="still")
    without = replace(still, calibration=None, label="no lines")
    source, same, unmeasured = encoding.prepare_acquisition([first, still, without])
    assert source.unexplained_share is not None
    assert same.unexplained_share is not None
    assert same.unexplained_share != source.unexplained_share
    assert same.unexplained_share < 0.1
    assert unmeasured.unexplained_share is None
    assert [p.folded_share is None for p in (source, same, unmeasured)] == [False, True, True]
    with pytest.raises(Refused, match="the object moved since the maps were measured"):
        encoding.prepare_acquisition([first, move(first, 12)])


def test_the_search_needs_the_memory_of_one_slice() -> None:
    samples = np.ones((32, 4, 128, 128), np.complex64)
    mask = np.ones((32, 128, 128), np.bool_)
    tracemalloc.start()
    find_calibration_block(samples, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < samples.nbytes / 4


def test_an_object_inside_the_field_of_view_keeps_no_second_set() -> None:
    maps = encoding.prepare_image(acquire(4)).A.maps
    assert maps.untyped_storage().nbytes() == maps.numel() * maps.element_size()


@pytest.fixture
def anatomy() -> None:
    try:
        data_root()
    except FileNotFoundError:
        pytest.skip("no data kit")


def reconstruct(k: KSpace, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the CG-SENSE image and its magnitude in units of the samples, with the echo moved by ``offset`` rows."""
    samples = np.roll(k.samples, offset, axis=2)
    moved = replace(k, samples=samples, calibration=find_calibration_block(samples, k.mask))
    problem = encoding.prepare_image(moved)
    x = classical.cg_sense(problem.A, problem.y, ridge=0.01)
    return x[0], problem.in_units(x).abs()[0]


@pytest.mark.slow
@pytest.mark.usefixtures("anatomy")
def test_an_echo_off_the_middle_gives_the_same_image_without_a_ramp_of_phase() -> None:
    scan = simulate_scan("16", shape=(NA, NB), pixel_mm=2.5, coils=8, snr=60.0, contrast="t1w")
    mask = masks.gaussian_1d((NA, NB), 2.0, 24, np.random.default_rng(3))[None]
    grid = Grid((1, NA, NB), np.diag([2.5, 2.5, 5.0, 1.0]))
    k = KSpace((scan.samples * mask).astype(np.complex64), mask, (240.0, 200.0), grid, 4.0)
    (centred, there), (moved, found) = (reconstruct(k, offset) for offset in (0, 18))
    assert float(torch.linalg.vector_norm(found - there)) < 0.02 * float(torch.linalg.vector_norm(there))
    steps = [(x[1:] * x[:-1].conj()).sum().angle() for x in (centred, moved)]
    assert abs(float(steps[1] - steps[0])) < 0.05  # radians per row; the echo's place alone gives 1.18
