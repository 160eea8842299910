"""Simulated k-space with faults of real data: fat shift, sharp edges, an object larger than the field of view."""

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_zoo.data_kit import data_root
from model_zoo.operators import centred_ifft
from model_zoo.simulate.kspace import simulate_scan

pytestmark = pytest.mark.slow

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain


@cache
def scan(
    columns: int = 80, folds: int = 1, fat_shift: float = 0.0, edge_mm: float = 0.5
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the reference and the root sum of squares of the coil images, almost without noise, (96, columns)."""
    try:
        data_root()
    except FileNotFoundError:
        pytest.skip("no data kit")
    found = simulate_scan(
        "16", shape=(96, columns), pixel_mm=2.5, coils=2, snr=1e6, contrast="t1w", folds=folds, fat_shift=fat_shift,
        edge_mm=edge_mm,
    )  # fmt: skip
    images = centred_ifft(torch.from_numpy(found.samples))[0]
    return np.abs(found.reference[0]), images.abs().pow(2).sum(0).sqrt().numpy()


def test_fat_appears_shifted_along_the_readout_and_the_brain_does_not() -> None:
    (plain, _), (shifted, received) = scan(), scan(fat_shift=3.0)
    np.testing.assert_allclose(shifted, received, atol=1e-3 * plain.max())
    first = [int(np.argmax(image[:, 40] > 0.3 * plain.max())) for image in (plain, shifted)]
    assert first[1] - first[0] == 3
    brain = slice(38, 58), slice(30, 50)
    assert np.abs(shifted[brain] - plain[brain]).max() < 0.05 * plain.max()


def test_sharp_edges_ring_more() -> None:
    smooth, sharp = scan()[0], scan(edge_mm=0.05)[0]
    assert sharp[:6].mean() > 1.1 * smooth[:6].mean()


@pytest.mark.parametrize("columns", [40, 42])
def test_what_lies_beyond_the_field_of_view_folds_onto_its_other_side(columns: int) -> None:
    reference, received = scan(columns=columns, folds=2)
    np.testing.assert_allclose(reference, received, atol=1e-3 * reference.max())
    whole = scan(columns=2 * columns)[0]
    first = columns - columns // 2
    outside = np.concatenate([whole[:, first + columns :], whole[:, :first]], axis=1)
    inside = whole[:, first : first + columns]
    alone = outside < 0.01 * whole.max()
    np.testing.assert_allclose(reference[alone], inside[alone], atol=0.03 * whole.max())
    assert (~alone).sum() > 20
