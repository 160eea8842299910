"""Simulated torsos and heads in HU, and the counts of their scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_zoo import ct_tissues
from model_zoo.radon import CtGeometry, build_matrix, to_attenuation
from model_zoo.simulate import ct

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

GEOMETRY = CtGeometry((32, 32), 12.8, views=64, bins=48, bin_mm=12.8)


def torso(seed: int, height_mm: float = 380.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ct.draw_torso_slice(generator, size=64, pixel_mm=6.4, height_mm=height_mm)


def test_a_chest_has_air_lung_fat_soft_tissue_and_bone_in_usual_shares() -> None:
    labels = ct_tissues.classify(torso(1).numpy())
    share = {name: float((labels == n + 1).sum() / (labels > 0).sum()) for n, name in enumerate(ct_tissues.NAMES)}
    assert labels[0, 0] == 0
    assert 0.15 < share["lung by CT"] < 0.6
    assert min(share["fat by CT"], share["soft tissue by CT"]) > 0.05
    assert 0.005 < share["bone by CT"] < 0.2


def test_a_torso_follows_its_seed() -> None:
    assert torch.equal(torso(1), torso(1))
    assert not torch.equal(torso(1), torso(2))


def test_counts_have_the_mean_and_the_variance_of_their_rays() -> None:
    """A square of water, whose ray through the middle is known: 24 pixels of 6.4 mm."""
    hu = torch.full((1, 64, 64), -1000.0)
    hu[:, 20:44, 20:44] = 0.0
    many = hu.expand(400, -1, -1)
    short = CtGeometry((32, 32), 12.8, views=1, bins=48, bin_mm=12.8)
    counts = ct.simulate_counts(many, short, 1e4, torch.Generator().manual_seed(1))
    middle = counts[:, 0, 23:25]
    expected = 1e4 * np.exp(-0.0193 * 24 * 6.4)
    assert float(middle.mean()) == pytest.approx(expected, rel=0.01)
    assert float(middle.var()) == pytest.approx(expected, rel=0.15)
    assert float(counts[:, 0, 0].mean()) == pytest.approx(1e4, rel=0.01)


def test_a_bin_averages_intensity_not_line_integrals() -> None:
    """One of the two rays in a bin passes bone: the mean of exp(-p) exceeds exp of the mean."""
    hu = torch.full((1, 64, 64), -1000.0)
    hu[:, :, 32] = 1000.0  # parallel to the rays of view 0, in the left half of bin 24
    short = CtGeometry((32, 32), 12.8, views=1, bins=48, bin_mm=12.8)
    counts = ct.simulate_counts(hu, short, 1e8, torch.Generator().manual_seed(1))
    p = 0.0386 * 64 * 6.4
    assert float(counts[0, 0, 24]) / 1e8 == pytest.approx((1 + np.exp(-p)) / 2, rel=1e-3)


def test_views_projected_in_blocks_are_those_of_the_whole_scan() -> None:
    hu = torso(1)[None]
    counts = ct.simulate_counts(hu, GEOMETRY, 1e10, torch.Generator().manual_seed(1))
    p = build_matrix(GEOMETRY.finer(2)) @ to_attenuation(hu).flatten().numpy()
    expected = np.exp(-p.reshape(64, 48, 2)).mean(axis=2)
    np.testing.assert_allclose(counts[0].numpy() / 1e10, expected, rtol=1e-3)


def test_images_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="pixels"):
        ct.simulate_counts(torch.zeros(1, 32, 32), GEOMETRY, 1e4, torch.Generator())


def test_a_head_has_brain_within_bone(kit: Path) -> None:
    hu = ct.make_head_slice("09", row_mm=140, size=256, pixel_mm=1.0, root=kit)
    assert hu.shape == (256, 256)
    labels = ct_tissues.classify(hu.numpy())
    assert labels[0, 0] == 0
    assert (labels == ct_tissues.BONE).sum() > 2000
    assert ((hu > 20) & (hu < 45)).sum() > 8000
    larger = ct.make_head_slice("09", row_mm=140, size=200, pixel_mm=2.0, root=kit)
    assert larger[0, 0] == -1000
    assert float((larger > -500).sum() * 4) == pytest.approx(float((hu > -500).sum()), rel=0.03)
