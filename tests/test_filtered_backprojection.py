"""Filtered backprojection, conjugate gradients and total variation give the CT numbers of ellipses that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo import classical
from model_zoo.filtered_backprojection import Window, filtered_backprojection, redundancy_weights
from model_zoo.radon import WATER_PER_MM, CtGeometry, Radon, make_ray_matrix, take_logarithm, to_hounsfield
from tests.ellipses import Ellipse, draw_image, integrate

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

BODY = [
    Ellipse(WATER_PER_MM, (2.0, -3.0), (100.0, 80.0)),  # water
    Ellipse(-0.8 * WATER_PER_MM, (-45.0, 0.0), (30.0, 40.0), 0.3),  # lung, -800 HU
    Ellipse(0.5 * WATER_PER_MM, (50.0, -10.0), (25.0, 25.0)),  # bone, 500 HU
]
PARALLEL = CtGeometry((64, 64), 4.0, views=120, bins=101, bin_mm=2.8)
FAN = CtGeometry((64, 64), 4.0, views=240, bins=101, bin_mm=2.8, arc_deg=360.0, source_mm=500.0, offset_bins=0.25)
SHORT = replace(FAN, arc_deg=220.0, views=150, first_deg=17.0, offset_bins=0.0)
REGIONS = {"water": ((5.0, 45.0), 0.0), "lung": ((-45.0, 0.0), -800.0), "bone": ((50.0, -10.0), 500.0)}


def mean_hu(image: Tensor, centre_mm: tuple[float, float], radius_mm: float = 14.0) -> float:
    y, x = ((torch.arange(n) - (n - 1) / 2) * 4.0 for n in image.shape[-2:])
    inside = torch.hypot(x[None] - centre_mm[0], y[:, None] - centre_mm[1]) < radius_mm
    return float(to_hounsfield(image)[0][inside].mean())


@pytest.mark.parametrize("window", ["ramp", "hann"])
@pytest.mark.parametrize("geometry", [PARALLEL, replace(PARALLEL, arc_deg=360.0, views=240), FAN, SHORT])
def test_regions_have_their_ct_number_within_four_units(geometry: CtGeometry, window: Window) -> None:
    image = filtered_backprojection(geometry, integrate(BODY, geometry), window=window)
    for centre, hu in REGIONS.values():
        assert mean_hu(image, centre) == pytest.approx(hu, abs=4.0)
    assert mean_hu(image, (0.0, 110.0), 8.0) == pytest.approx(-1000.0, abs=6.0)


def test_the_fan_the_short_scan_and_the_parallel_beam_give_one_image() -> None:
    images = [filtered_backprojection(g, integrate(BODY, g), window="hann") for g in (PARALLEL, FAN, SHORT)]
    reference = draw_image(BODY, PARALLEL)
    for image in images[1:]:
        assert float((image - images[0]).abs().mean()) < 0.004 * float(reference.max())


def test_finer_bins_and_more_views_converge_to_the_image() -> None:
    errors = []
    smooth = [Ellipse(0.02, (5.0, -10.0), (80.0, 70.0), 0.3, 2)]
    for factor in (1, 2):
        g = replace(FAN, bins=51 * factor, bin_mm=5.6 / factor, views=90 * factor)
        image = filtered_backprojection(g, integrate(smooth, g))
        truth = draw_image(smooth, g)
        errors.append(float((image - truth).square().mean().sqrt() / truth.square().mean().sqrt()))
    assert errors[1] < min(0.005, errors[0] / 2.5)


def test_weights_of_the_rays_along_a_line_sum_to_one() -> None:
    """The ray (beta, gamma) of a short scan is also (beta + pi + 2 gamma, -gamma)."""
    g = CtGeometry((32, 32), 4.0, views=240, bins=41, bin_mm=500 * np.deg2rad(0.5), arc_deg=240.0, source_mm=500.0)
    w = redundancy_weights(g)
    view, ray = np.meshgrid(np.arange(240), np.arange(41), indexing="ij")
    opposite = view + 180 + (ray - 20)  # 2 gamma in views of one degree
    is_twice = opposite < 240
    np.testing.assert_allclose((w[view, ray] + w[opposite % 240, 40 - ray])[is_twice], 1.0, atol=1e-9)
    has_opposite = is_twice | (view - 180 + (ray - 20) >= 0)
    np.testing.assert_allclose(w[~has_opposite], 1.0, atol=1e-9)
    assert is_twice.sum() > 1000


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        (replace(FAN, arc_deg=180.0), "at least"),
        (replace(PARALLEL, arc_deg=270.0), "parallel beams over 270"),
        (replace(PARALLEL, bins=80), "covers 112 mm"),
        (replace(FAN, offset_bins=20.0), "covers"),
    ],
)
def test_scans_whose_filtered_rays_would_give_false_numbers_are_refused(geometry: CtGeometry, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        filtered_backprojection(geometry, torch.zeros((1, geometry.views, geometry.bins)))


def test_pixels_outside_the_covered_circle_are_air() -> None:
    image = filtered_backprojection(PARALLEL, torch.ones((1, 120, 101)))
    assert float(image[0, 0, 0]) == 0
    assert float(image[0, 32, 32]) != 0


@pytest.mark.parametrize("geometry", [replace(PARALLEL, views=60), replace(FAN, views=90)])
def test_conjugate_gradients_and_total_variation_find_the_ct_numbers(geometry: CtGeometry) -> None:
    p = integrate(BODY, geometry)
    A = Radon(make_ray_matrix(geometry), torch.ones_like(p))
    y = A.whiten(p)
    start = filtered_backprojection(geometry, p, window="hann")
    for image in (
        classical.cgls(A, y, iterations=25),
        classical.split_total_variation(A, y, 1e-6, edge=1e-3, sweeps=10, start=start),
    ):
        for centre, hu in REGIONS.values():
            assert mean_hu(image, centre) == pytest.approx(hu, abs=8.0)


def test_total_variation_of_few_noisy_views_is_nearer_to_the_truth_than_the_others() -> None:
    geometry = replace(PARALLEL, views=20)
    mean = 1e5 * torch.exp(-integrate(BODY, geometry))
    counts = torch.poisson(mean, generator=torch.Generator().manual_seed(1))
    A, p, _ = take_logarithm(geometry, counts, 1e5)
    truth = draw_image(BODY, geometry)

    def error(image: Tensor) -> float:
        return float((image - truth).square().mean().sqrt())

    fbp = filtered_backprojection(geometry, p, window="hann")
    cgls = min(error(classical.cgls(A, A.whiten(p), iterations=n)) for n in (10, 20, 40))
    tv = classical.split_total_variation(A, A.whiten(p), 4e-6, edge=2e-3, sweeps=25, start=fbp)
    assert error(tv) < 0.7 * min(cgls, error(fbp))
