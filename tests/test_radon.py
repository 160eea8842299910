"""The projection against its definition, its adjoint, dense matrices, and line integrals of ellipses in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo import samplers, uncertainty
from model_zoo.operators import LinearOperator, cg, inner
from model_zoo.radon import (
    WATER_PER_MM,
    CtGeometry,
    Radon,
    make_ray_matrix,
    take_logarithm,
    to_attenuation,
    to_hounsfield,
)
from tests.ellipses import Ellipse, draw_image, integrate

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

PARALLEL = CtGeometry((24, 20), 1.5, views=15, bins=27, bin_mm=1.4)
FAN = replace(PARALLEL, arc_deg=360.0, source_mm=60.0, offset_bins=0.25)
GEOMETRIES = [PARALLEL, FAN, replace(FAN, arc_deg=215.0, first_deg=30.0, offset_bins=3.0)]
SMOOTH = [Ellipse(0.02, (3.0, -4.0), (11.0, 7.0), 0.5, 2), Ellipse(0.01, (-4.0, 3.0), (6.0, 8.0), 0.0, 2)]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_radon(geometry: CtGeometry, batch: int = 1) -> Radon:
    weight = torch.rand((batch, geometry.views, geometry.bins), generator=torch.Generator().manual_seed(1))
    return Radon(make_ray_matrix(geometry), torch.where(weight < 0.1, 0.0, weight))


def enlarge(geometry: CtGeometry, factor: int) -> CtGeometry:
    """Return the same rays over an image of ``factor`` times as many pixels along each axis."""
    shape = (geometry.shape[0] * factor, geometry.shape[1] * factor)
    return replace(geometry, shape=shape, pixel_mm=geometry.pixel_mm / factor)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_adjoint_holds_to_a_millionth_in_single_precision(geometry: CtGeometry) -> None:
    A = make_radon(geometry, 2)
    x, y = randn(2, *geometry.shape, seed=2), randn(2, geometry.views, geometry.bins, seed=3)
    Ax, AHy = A(x).double(), A.H(y).double()
    error = (inner(Ax, y.double()) - inner(x.double(), AHy)).abs()
    scale = torch.linalg.vector_norm(Ax.flatten(1), dim=1) * torch.linalg.vector_norm(y.flatten(1), dim=1)
    assert torch.all(error / scale < 1e-6)
    torch.testing.assert_close(A.normal(x), A.H(A(x)))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_entry_is_the_weight_of_a_pixel_along_the_ray(geometry: CtGeometry) -> None:
    """The dense matrix is built pixel by pixel from the definition: a hat about the pixel along one axis."""
    small = replace(geometry, shape=(6, 5), pixel_mm=5.0, views=7, bins=9, bin_mm=4.0)
    rays = make_ray_matrix(small)
    theta, t = small.rays
    expected = np.zeros((7, 9, 6, 5))
    for (view, ray), angle in np.ndenumerate(theta):
        c, s = np.cos(angle), np.sin(angle)
        for j, i in np.ndindex(6, 5):
            distance = t[view, ray] - (i - 2) * 5.0 * c - (j - 2.5) * 5.0 * s
            major = max(abs(c), abs(s))
            expected[view, ray, j, i] = max(0.0, 1 - abs(distance) / major / 5.0) * 5.0 / major
    basis = torch.eye(30).reshape(30, 6, 5)
    np.testing.assert_allclose(rays.project(basis).flatten(1).T.numpy(), expected.reshape(63, 30), atol=1e-5)
    dense = torch.from_numpy(expected.reshape(63, 30)).float()
    y = randn(1, 7, 9, seed=4)
    torch.testing.assert_close(rays.backproject(y).flatten(), dense.T @ y.flatten(), atol=1e-4, rtol=1e-4)
    assert rays.matrix.data.itemsize + rays.matrix.indices.itemsize == 8
    norm = float(torch.linalg.matrix_norm(dense, 2))
    assert norm <= rays.norm < 1.02 * norm


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_projections_of_smooth_ellipses_converge_with_the_square_of_the_pixel(geometry: CtGeometry) -> None:
    errors = []
    for factor in (1, 2, 4):
        finer = enlarge(geometry, factor)
        exact = integrate(SMOOTH, finer)
        found = make_ray_matrix(finer).project(draw_image(SMOOTH, finer))
        errors.append(float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt()))
    assert errors[2] < 2e-3
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_projections_of_an_ellipse_with_an_edge_converge() -> None:
    disc = [Ellipse(0.02, (3.0, -4.0), (11.0, 7.0), 0.5)]
    errors = []
    for factor in (1, 4):
        finer = enlarge(FAN, factor)
        exact = integrate(disc, finer)
        errors.append(
            float((make_ray_matrix(finer).project(draw_image(disc, finer)) - exact).abs().mean() / exact.mean())
        )
    assert errors[1] < min(0.01, errors[0] / 4)


def test_rays_of_a_fan_pass_through_their_source_and_their_detector() -> None:
    theta, t = FAN.rays
    beta = FAN.view_angles[:, None]
    source = (-60.0 * np.sin(beta), 60.0 * np.cos(beta))
    np.testing.assert_allclose(source[0] * np.cos(theta) + source[1] * np.sin(theta), t, atol=1e-9)
    gaps = np.diff(theta, axis=1)
    np.testing.assert_allclose(gaps, 1.4 / 60.0)
    middle = 13 - 0.25  # the bin, counted in bins, at which the detector's middle lies
    np.testing.assert_allclose(np.interp(middle, np.arange(27), FAN.fan_angles), 0.0, atol=1e-9)


def test_a_fan_of_a_far_source_is_parallel() -> None:
    far = replace(PARALLEL, source_mm=1e7)
    x = draw_image(SMOOTH, PARALLEL)
    torch.testing.assert_close(
        make_ray_matrix(far).project(x), make_ray_matrix(PARALLEL).project(x), atol=1e-4, rtol=1e-3
    )


def test_a_ray_of_a_fan_and_the_same_ray_of_a_parallel_beam_have_the_same_integral() -> None:
    """Opposite rays of a full fan lie on one line: (beta, gamma) and (beta + pi + 2 gamma, -gamma)."""
    full = CtGeometry((24, 24), 1.5, views=90, bins=21, bin_mm=60 * np.deg2rad(2.0), arc_deg=360.0, source_mm=60.0)
    p = make_ray_matrix(full).project(draw_image(SMOOTH, full))[0]
    view, ray = np.meshgrid(np.arange(90), np.arange(21), indexing="ij")
    opposite = (view + 45 + (ray - 10)) % 90  # 2 gamma is a multiple of the 4 degrees between views
    torch.testing.assert_close(p[opposite, 20 - ray], p, atol=1e-5, rtol=1e-4)
    parallel = replace(full, source_mm=None, arc_deg=180.0, views=45)
    q = make_ray_matrix(replace(parallel, bins=1, offset_bins=0.0)).project(draw_image(SMOOTH, full))[0]
    torch.testing.assert_close(p[:45, 10], q[:, 0], atol=1e-5, rtol=1e-4)


def test_finer_bins_average_to_the_bins_of_the_same_scan() -> None:
    finer = FAN.finer(3)
    np.testing.assert_allclose(finer.bin_places.reshape(27, 3).mean(axis=1), FAN.bin_places, atol=1e-9)
    np.testing.assert_allclose(finer.view_angles, FAN.view_angles)
    assert finer.shape == (72, 60)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"views": 0}, "above 0"),
        ({"arc_deg": 400.0}, "360"),
        ({"source_mm": 20.0}, "within the image"),
        ({"source_mm": 24.0, "bins": 60}, "half a turn"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(change: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(PARALLEL, **change)  # type: ignore[arg-type]  # fields of several types


def test_units_convert_there_and_back() -> None:
    hu = torch.tensor([-1000.0, 0.0, 1000.0])
    torch.testing.assert_close(to_attenuation(hu), torch.tensor([0.0, WATER_PER_MM, 2 * WATER_PER_MM]))
    torch.testing.assert_close(to_hounsfield(to_attenuation(hu)), hu)


def test_weighted_data_of_counts_have_noise_of_one_sd() -> None:
    p = integrate([Ellipse(0.15, (0.0, 0.0), (13.0, 11.0))], PARALLEL)
    mean = 2e4 * torch.exp(-p)
    counts = torch.poisson(mean.expand(300, -1, -1), generator=torch.Generator().manual_seed(5))
    A, found, sigma_y = take_logarithm(PARALLEL, counts, 2e4)
    z = (A.whiten(found) - A.whiten(p)) / sigma_y[:, None, None]
    assert float(z.std()) == pytest.approx(1.0, abs=0.02)
    by_ray = z.std(dim=0)
    assert float(mean.max() / mean.min()) > 20
    assert float(by_ray[mean[0] < 2e3].mean()) == pytest.approx(1.0, abs=0.05)
    assert float(by_ray[mean[0] > 1e4].mean()) == pytest.approx(1.0, abs=0.05)
    assert A.measured.tolist() == [15 * 27] * 300


def test_chi_square_of_the_truth_is_one() -> None:
    x = 5 * draw_image(SMOOTH, PARALLEL)
    mean = 3e4 * torch.exp(-make_ray_matrix(PARALLEL).project(x))
    A, p, sigma_y = take_logarithm(PARALLEL, torch.poisson(mean, generator=torch.Generator().manual_seed(6)), 3e4)
    assert float(uncertainty.chi_square(A, x, A.whiten(p), sigma_y)) == pytest.approx(1.0, abs=0.2)


def test_a_ray_without_a_photon_is_not_measured() -> None:
    counts = torch.full((1, 15, 27), 100.0)
    counts[0, 3, 4] = 0
    A, p, _ = take_logarithm(PARALLEL, counts, 100.0)
    assert A.measured.tolist() == [15 * 27 - 1]
    assert float(p[0, 3, 4]) == pytest.approx(np.log(200))
    assert float(p.abs().sum()) == pytest.approx(np.log(200))
    assert float(A.whiten(p).abs().max()) == 0
    assert float(A(torch.ones(1, 24, 20))[0, 3, 4]) == 0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_counts_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="photon"):
        take_logarithm(PARALLEL, torch.full((1, 15, 27), value), 1e4)


def test_parts_and_repetitions_of_a_batch_have_their_own_weights() -> None:
    A: LinearOperator = make_radon(PARALLEL, 3)
    x = randn(3, 24, 20, seed=7)
    torch.testing.assert_close(A.select(slice(1, 3))(x[1:]), A(x)[1:])
    torch.testing.assert_close(A.repeat(2)(x.repeat_interleave(2, 0)), A(x).repeat_interleave(2, 0))


def test_gradients_pass_through_the_projection() -> None:
    A = make_radon(PARALLEL)
    x, y = randn(1, 24, 20, seed=8).requires_grad_(True), randn(1, 15, 27, seed=9)
    (gradient,) = torch.autograd.grad((A(x) - y).square().sum() / 2, x)
    torch.testing.assert_close(gradient, A.H(A(x.detach()) - y))


def strongly_attenuating(geometry: CtGeometry) -> tuple[Radon, Tensor, float]:
    """Return A, the truth and sigma_y of counts that differ 20-fold between rays."""
    x = draw_image([Ellipse(0.12, (1.0, 0.0), (13.0, 11.0)), Ellipse(0.1, (4.0, 3.0), (3.0, 4.0))], geometry)
    A, _, sigma_y = take_logarithm(geometry, 1e5 * torch.exp(-make_ray_matrix(geometry).project(x)), 1e5)
    return A, x, float(sigma_y)


@pytest.mark.parametrize("geometry", [replace(PARALLEL, views=40), replace(FAN, views=80)])
def test_the_preconditioner_saves_iterations(geometry: CtGeometry) -> None:
    A, x, sigma_y = strongly_attenuating(geometry)
    gamma = torch.tensor([0.03**2 / sigma_y**2])
    b = x + gamma * A.normal(x)

    def error(iterations: int, is_preconditioned: bool) -> float:
        M = A.precondition(gamma) if is_preconditioned else None
        found = cg(lambda v: v + gamma * A.normal(v), b, torch.zeros_like(x), iterations=iterations, precondition=M)
        return float(torch.linalg.vector_norm(found - x) / torch.linalg.vector_norm(x))

    assert error(12, True) < 0.75 * error(12, False)
    assert error(200, True) < 2e-3


def test_the_preconditioner_is_symmetric_and_positive() -> None:
    A = make_radon(FAN, 2)
    M = A.precondition(torch.tensor([3.0, 1e4]))
    u, v = randn(2, 24, 20, seed=10), randn(2, 24, 20, seed=11)
    torch.testing.assert_close(inner(u, M(v)), inner(M(u), v), atol=1e-3, rtol=1e-3)
    assert bool((inner(u, M(u)) > 0).all())


def test_a_sampler_reproduces_the_posterior_of_a_gaussian_prior_from_a_fan() -> None:
    """The mean is that of the dense posterior; the sd that of its diagonal."""
    geometry = CtGeometry((6, 6), 3.0, views=5, bins=7, bin_mm=3.0, arc_deg=120.0, source_mm=40.0)
    A, sd, sigma_y, samples = make_radon(geometry), 0.3, 0.05, 400
    truth = sd * randn(1, 6, 6, seed=12)
    y = A(truth) + sigma_y * (A.weight > 0) * randn(1, 5, 7, seed=13)
    M = A(torch.eye(36).reshape(36, 6, 6)).flatten(1).T
    covariance = torch.linalg.inv(torch.eye(36) / sd**2 + M.T @ M / sigma_y**2)
    mean = covariance @ (M.T @ y.flatten() / sigma_y**2)
    x = samplers.dds(
        lambda x, sigma: sd**2 / (sd**2 + sigma**2) * x,
        A.repeat(samples),
        y.repeat(samples, 1, 1),
        samplers.karras_schedule(10.0, 0.005, 100),
        sigma_y=sigma_y,
        sigma_data=sd,
        noise=samplers.noise_source(range(samples)),
        iterations=10,
    ).flatten(1)
    expected = covariance.diagonal().sqrt()
    assert float(((x.mean(0) - mean) / expected).square().mean().sqrt()) < 0.1
    assert float((x.std(0) / expected - 1).abs().mean()) < 0.08
