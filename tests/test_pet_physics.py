"""PET physics against closed forms and dense computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model_zoo.imaging import FWHM, blur
from model_zoo.simulate.pet.counts import Scan, draw_counts, simulate_prompts, thin_counts
from model_zoo.simulate.pet.osem import osem
from model_zoo.simulate.pet.projector import Geometry, Projector, make_projector
from model_zoo.simulate.pet.surrogate import draw_low_and_standard, draw_low_dose
from model_zoo.simulate.pet.torso import ORGANS, draw_torso

TINY = Geometry((7, 6), 3.0, bins=8, bin_mm=3.0, angles=5)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _make_disc(n: int, radius: float, centre: tuple[float, float] = (0.0, 0.0), finer: int = 4) -> Tensor:
    """Return the fraction of each of n x n unit pixels inside a disc about the middle."""
    c = (torch.arange(n * finer) - (n * finer - 1) / 2) / finer
    inside = ((c[:, None] - centre[0]) ** 2 + (c[None, :] - centre[1]) ** 2 <= radius**2).float()
    return torch.nn.functional.avg_pool2d(inside[None], finer)[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rays", [1, 3])
def test_the_projector_and_its_transpose_are_adjoint(dtype: torch.dtype, tolerance: float, rays: int) -> None:
    A = make_projector(Geometry((40, 33), 2.0, bins=44, bin_mm=2.1, angles=30, rays=rays), dtype=dtype)
    x = torch.rand(5, 40, 33, generator=_generator(1), dtype=dtype)
    y = torch.rand(30, 44, 5, generator=_generator(2), dtype=dtype)
    left, right = float((A(x) * y).sum()), float((x * A.T(y)).sum())
    assert abs(left - right) <= tolerance * abs(left)


def test_attenuated_blurred_projection_is_adjoint_too() -> None:
    A = make_projector(TINY, dtype=torch.float64)
    f = torch.rand(5, 8, 4, generator=_generator(0), dtype=torch.float64)
    x = torch.randn(4, 7, 6, generator=_generator(1), dtype=torch.float64)
    y = torch.randn(5, 8, 4, generator=_generator(2), dtype=torch.float64)
    spacing = (2.0, 3.0, 3.0)
    left = (f * A(blur(x, 5.0, spacing)) * y).sum()
    right = (x * blur(A.T(f * y), 5.0, spacing)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-10)


def test_the_projector_is_the_rotate_and_sum_of_grid_sample() -> None:
    A = make_projector(TINY, dtype=torch.float64)
    x = torch.rand(3, 7, 6, generator=_generator(), dtype=torch.float64)
    rays = (torch.arange(8, dtype=torch.float64) - 3.5) * 3
    depth = math.ceil(math.hypot(7, 6))
    u = (torch.arange(depth, dtype=torch.float64) - (depth - 1) / 2) * 3
    for m, y in enumerate(A(x)):
        theta = math.pi * m / 5
        px = rays[None, :] * math.cos(theta) - u[:, None] * math.sin(theta)
        py = rays[None, :] * math.sin(theta) + u[:, None] * math.cos(theta)
        grid = torch.stack([px / (3 * 6 / 2), py / (3 * 7 / 2)], dim=-1)[None]
        rotated = torch.nn.functional.grid_sample(x[None], grid, align_corners=False)
        assert torch.allclose(rotated[0].sum(dim=1).T * 3, y, atol=1e-12)


def test_each_column_of_the_matrix_is_a_pixel_and_the_transpose_its_dense_transpose() -> None:
    A = make_projector(TINY, dtype=torch.float64)
    units = torch.eye(42, dtype=torch.float64).reshape(42, 7, 6)
    dense = A(units).reshape(40, 42)
    rows = torch.eye(40, dtype=torch.float64).reshape(5, 8, 40)
    assert torch.equal(A.T(rows).reshape(40, 42), dense)
    assert float(dense.min()) >= 0


def test_subsets_are_the_angles_of_the_whole() -> None:
    x = torch.rand(2, 7, 6, generator=_generator())
    full = make_projector(TINY)(x)
    for s in range(3):
        assert torch.allclose(make_projector(TINY, subset=s, subsets=3)(x), full[s::3])
    with pytest.raises(ValueError, match="subset 3 of 3"):
        make_projector(TINY, subset=3, subsets=3)


def test_a_disc_projects_to_its_chord() -> None:
    pixel_mm, radius_mm = 2.0, 50.0
    g = Geometry((64, 64), pixel_mm, bins=64, bin_mm=pixel_mm, angles=12)
    y = make_projector(g)(_make_disc(64, radius_mm / pixel_mm)[None])[..., 0]
    t = (torch.arange(64) - 31.5) * pixel_mm
    chord = 2 * (radius_mm**2 - t**2).clamp_min(0).sqrt()
    assert float((y - chord).abs()[:, 10:54].max()) < 0.04 * 2 * radius_mm
    assert torch.allclose(y.sum(dim=1) * pixel_mm, torch.tensor(math.pi * radius_mm**2), rtol=0.005)


def test_the_blur_has_the_width_it_says_and_is_symmetric() -> None:
    x = torch.zeros(1, 1, 101, dtype=torch.float64)
    x[0, 0, 50] = 1
    y = blur(x, 8.0, (1e3, 1e3, 1.0))[0, 0]
    position = torch.arange(101) - 50
    variance = float((y * position**2).sum() / y.sum())
    assert math.sqrt(variance - 1 / 12) * FWHM == pytest.approx(8.0, rel=1e-3)
    ones = torch.ones(9, 8, 7)
    assert torch.allclose(blur(ones, 6.0, (2.0, 2.0, 2.0), normalised=True), ones)


def _make_cylinder(n: int, slices: int, pixel_mm: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return activity, mu and eroded region masks of a 180 mm cylinder with a hot and a cold insert of 56 mm."""
    unit = 1 / pixel_mm
    body, hot, cold = (_make_disc(n, r * unit, (y * unit, 0.0)) for r, y in ((90.0, 0.0), (28.0, -44.0), (28.0, 44.0)))
    activity = (body + 3 * hot - 0.75 * cold).expand(slices, -1, -1)
    inner = {
        "hot": _make_disc(n, 18 * unit, (-44.0 * unit, 0.0)) == 1,
        "cold": _make_disc(n, 18 * unit, (44.0 * unit, 0.0)) == 1,
    }
    inner["body"] = (_make_disc(n, 80 * unit) == 1) & (_make_disc(n, 40 * unit, (-44.0 * unit, 0.0)) == 0)
    inner["body"] &= _make_disc(n, 40 * unit, (44.0 * unit, 0.0)) == 0
    return activity, (0.096 * body).expand(slices, -1, -1), inner


def _simulate_scan(counts: float, slices: int = 6) -> tuple[Scan, dict[str, Tensor]]:
    g = Geometry((56, 56), 4.0, bins=56, bin_mm=4.0, angles=72)
    activity, mu, _ = _make_cylinder(112, 2 * slices, 2.0)
    return simulate_prompts(activity, mu, g, _generator(), slice_mm=4.0, counts=counts, finer=2), _make_cylinder(
        56, 1, 4.0
    )[2]


def test_the_expected_prompts_have_the_asked_total_and_fractions() -> None:
    g = Geometry((56, 56), 4.0, bins=56, bin_mm=4.0, angles=24)
    activity, mu, _ = _make_cylinder(56, 4, 4.0)
    scan = simulate_prompts(
        activity, mu, g, _generator(), slice_mm=4.0, counts=1e6, scatter_fraction=0.3, randoms_fraction=0.2
    )
    trues = (scan.expected - scan.background).sum()
    assert float(scan.expected.sum()) == pytest.approx(1e6, rel=1e-5)
    assert float(trues) == pytest.approx(1e6 * 0.8 * 0.7, rel=1e-4)
    centre, edge = scan.factors[:, 28].mean(), scan.factors[:, 1].mean()
    assert float(centre / edge) == pytest.approx(math.exp(-0.096 * 18), rel=0.05)
    with pytest.raises(ValueError, match="activity"):
        simulate_prompts(activity, mu, g, _generator(), slice_mm=4.0, counts=1e6, finer=2)


def test_counts_have_the_variance_of_their_mean() -> None:
    y = draw_counts(torch.full((400_000,), 7.3), _generator())
    assert float(y.mean()) == pytest.approx(7.3, rel=0.005)
    assert float(y.var()) == pytest.approx(7.3, rel=0.01)


def test_a_tenth_of_the_dose_has_ten_times_the_relative_variance() -> None:
    y = draw_counts(torch.full((400_000,), 30.0), _generator(1))
    low, rest = thin_counts(y, 0.1, _generator(2))

    def relative_variance(z: Tensor) -> float:
        return float(z.var() / z.mean() ** 2)

    assert relative_variance(low) / relative_variance(y) == pytest.approx(10, rel=0.02)
    assert torch.equal(low + rest, y)
    with pytest.raises(ValueError, match="dose fraction"):
        thin_counts(y, 1.5, _generator())


def test_thinned_parts_are_independent_and_share_events_with_the_whole_only() -> None:
    y = draw_counts(torch.full((400_000,), 30.0), _generator(3))
    low, rest = thin_counts(y, 0.25, _generator(4))

    def correlation(u: Tensor, v: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([u, v]))[0, 1])

    assert abs(correlation(low, rest)) < 0.006
    assert correlation(low, y) == pytest.approx(math.sqrt(0.25), abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("psf_fwhm_mm", [0.0, 4.5])
def test_osem_recovers_the_activity_of_large_regions_within_two_percent(psf_fwhm_mm: float) -> None:
    scan, inner = _simulate_scan(3e7)
    x = osem(draw_counts(scan.expected, _generator(5)), scan, iterations=16, subsets=8, psf_fwhm_mm=psf_fwhm_mm)
    for name, activity in (("body", 1.0), ("hot", 4.0)):
        assert float(x[1:-1, inner[name]].mean()) == pytest.approx(activity, rel=0.02)
    assert float(x[1:-1, inner["cold"]].mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.slow
def test_osem_of_a_thinned_scan_is_as_quantitative_and_noisier() -> None:
    scan, inner = _simulate_scan(1e7)
    y = draw_counts(scan.expected, _generator(6))
    low, _ = thin_counts(y, 0.1, _generator(7))
    full, thinned = (
        osem(counts, s, iterations=4, subsets=8, post_fwhm_mm=6.0)[1:-1, inner["body"]]
        for counts, s in ((y, scan), (low, scan.at_dose(0.1)))
    )
    assert float(thinned.mean()) == pytest.approx(float(full.mean()), rel=0.02)
    assert 2.5 < float(thinned.std() / full.std()) < 4.0


def test_a_projector_is_built_once() -> None:
    first: Projector = make_projector(TINY)
    assert make_projector(TINY) is first


def test_the_surrogate_has_the_mean_and_variance_of_its_formula() -> None:
    x = torch.tensor([0.5, 2.0, 8.0]).reshape(3, 1, 1).expand(3, 40, 40)
    draws = torch.stack(
        [draw_low_dose(x, 0.1, 0.02, _generator(s), fwhm_mm=6.0, spacing_mm=3.0, power=1.0) for s in range(60)]
    )
    assert torch.allclose(draws.mean(dim=(0, 2, 3)), x[:, 0, 0], rtol=0.03)
    assert torch.allclose(draws.var(dim=0).mean(dim=(1, 2)), 0.02 * x[:, 0, 0] / 0.1, rtol=0.08)
    assert float(draws.min()) >= 0


def test_the_surrogates_doses_share_events_unless_asked_not_to() -> None:
    x, d = torch.full((40, 40, 40), 2.0), 0.25

    def variances(independent: bool) -> tuple[float, float, float]:
        low, standard = draw_low_and_standard(
            x, d, 0.002, _generator(1), fwhm_mm=4.0, spacing_mm=4.0, power=1.0, independent=independent
        )
        covariance = torch.cov(torch.stack([low.flatten(), standard.flatten()]))
        return float(covariance[0, 0]), float(covariance[1, 1]), float(covariance[0, 1])

    low, standard, shared = variances(independent=False)
    assert low / standard == pytest.approx(1 / d, rel=0.05)
    assert shared == pytest.approx(standard, rel=0.1)
    assert abs(variances(independent=True)[2]) < 0.1 * standard


def test_the_surrogates_noise_is_that_of_osem_replicates() -> None:
    scan, inner = _simulate_scan(1e7)
    replicates = torch.stack(
        [osem(draw_counts(scan.expected, _generator(s)), scan, subsets=8, post_fwhm_mm=6.0) for s in range(10)]
    )[:, 1:-1]
    x = osem(scan.expected, scan, subsets=8, post_fwhm_mm=6.0)
    k = float((replicates.var(dim=0) / x[1:-1])[:, inner["body"]].mean())
    draws = torch.stack([draw_low_dose(x, 1.0, k, _generator(s), fwhm_mm=6.5, spacing_mm=4.0) for s in range(10)])[
        :, 1:-1
    ]
    for name in ("hot", "cold"):
        sd, expected = (y.std(dim=0)[:, inner[name]].mean() for y in (draws, replicates))
        assert float(sd / expected) == pytest.approx(1, abs=0.3), name

    def neighbours(y: Tensor) -> float:
        e = (y - y.mean(dim=0)) * inner["body"]
        return float((e[..., 1:] * e[..., :-1]).sum() / e.square().sum())

    assert neighbours(draws) == pytest.approx(neighbours(replicates), abs=0.15)


def test_a_torso_has_its_organs_and_repeats_by_seed() -> None:
    torso, again = (draw_torso(_generator(4), shape=(75, 32, 48), spacing_mm=8.0, lesions=3) for _ in range(2))
    assert torch.equal(torso.activity, again.activity)
    body = draw_torso(_generator(5), shape=(75, 40, 56), spacing_mm=8.0, middle_mm=(0, 0, 300), lesions=3)
    assert set(body.organ.flatten().tolist()) == set(range(len(ORGANS)))
    assert float(body.activity[body.organ == 0].abs().max()) < 2
    assert float(body.mu_per_cm[body.organ == ORGANS.index("lungs")].median()) == pytest.approx(0.026, rel=0.01)
    volume_ml = float((body.organ == ORGANS.index("liver")).sum()) * 0.8**3
    assert 900 < volume_ml < 2600
