"""The standard deviation of samples is scaled so that it holds for k-space that the samples were not made from."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import reconstruction
from model_zoo import uncertainty
from model_zoo.bundle import Model
from model_zoo.operators import Fourier, centred_fft
from pipelines import inversion, spread
from pipelines.contract import Refused
from pipelines.encoding import PRESCAN, Problem

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

N, SIGMA_Y, PRIOR_SD = 64, 0.02, 0.27


def randn(*shape: int, seed: int) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)))


class WhitePrior(nn.Module):
    """F of the EDM denoiser of a white Gaussian prior of the assumed sd, for which it is zero: D = c_skip x."""

    stride = 1

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.zeros_like(x)


def white_model() -> Model:
    return Model("white", "1", "", {}, WhitePrior(), {"sigma_data": PRIOR_SD}, "cpu", False)


def acquire(truth_sd: float) -> Problem:
    """Return half of the samples of two white images of ``truth_sd``, one coil."""
    x = truth_sd * randn(2, N, N, seed=1)
    mask = torch.rand(2, N, N, generator=torch.Generator().manual_seed(2)) < 0.5
    A = Fourier(torch.ones(2, 1, N, N, dtype=torch.complex64), mask)
    y = mask[:, None] * (centred_fft(x)[:, None] + SIGMA_Y * randn(2, 1, N, N, seed=3))
    return Problem(A, y, torch.full((2,), SIGMA_Y), torch.ones(2, N, N), SIGMA_Y, "one coil", PRESCAN)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1.5, 3.0])
def test_a_prior_that_is_too_sure_by_a_factor_gets_its_sd_multiplied_by_it(times: float) -> None:
    options = inversion.Options(steps=120, mean_steps=10, dds_sigma_max=20.0, momentum=0.0)
    found = spread.measure_spread(acquire(times * PRIOR_SD), white_model(), white_model(), options, 1)
    assert found.factor / uncertainty.BEYOND == pytest.approx(times, rel=0.12)
    assert found.evaluations == 2 * (10 + 4 * 120)


def test_the_shipped_sampler_is_too_sure_of_a_perfect_prior_and_held_out_data_correct_it() -> None:
    p, model, options = acquire(PRIOR_SD), white_model(), inversion.Options()
    found = spread.measure_spread(p, model, model, options, 1)
    x = inversion.estimate_slices(p, model, options)
    samples = [inversion.draw_samples(p, model, options, [2 * n, 2 * n + 1], x) for n in range(8)]
    unmeasured = Fourier(p.A.maps, ~p.A.mask)
    _, sd = uncertainty.mean_and_sd(map(unmeasured, samples))
    measured_sd = float((sd.square().sum() / (2 * unmeasured.measured.sum())).sqrt())
    assert 0.55 < measured_sd / PRIOR_SD < 0.75
    assert measured_sd * found.factor / uncertainty.BEYOND == pytest.approx(PRIOR_SD, rel=0.1)


def test_nothing_held_out_gives_the_usual_factor_without_an_evaluation() -> None:
    options = inversion.Options(held_out=0.0)
    found = spread.measure_spread(acquire(1.0), white_model(), white_model(), options, 1)
    assert found == spread.Spread(uncertainty.spread_factor(0.0, 0.0, 0.0), uncertainty.USUAL_SHARE, 0)


@pytest.mark.parametrize("changes", [{"solver": "adadiff"}, {"solver": "dps", "held_out": 0.0}])
def test_the_image_is_the_estimate_where_held_out_samples_cannot_judge_it(changes: dict[str, Any]) -> None:
    options = inversion.Options(**changes)
    assert spread.measure_spread(acquire(1.0), white_model(), white_model(), options, 1).share == 1.0


def test_an_estimate_that_is_not_finite_is_refused_by_name() -> None:
    p = acquire(1.0)
    p.y[0, 0, N // 2, N // 2 - 5 : N // 2 + 5] = float("nan")
    with pytest.raises(Refused, match="solver dds: the estimate or a sample of slice 1 is not finite"):
        spread.measure_spread(p, white_model(), white_model(), inversion.Options(), 1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_the_estimate_is_that_which_comes_nearest_to_what_was_held_out(share: float) -> None:
    estimate, mean = randn(N, N, seed=1), randn(N, N, seed=2)
    y = share * estimate + (1 - share) * mean + 0.1 * randn(N, N, seed=3)
    halves = [
        uncertainty.compare_held_out(y[part], estimate[part], mean[part], torch.full((N // 2, N), 0.1), 0.0)
        for part in (slice(0, N // 2), slice(N // 2, N))
    ]
    found = halves[0] + halves[1]
    assert found.share == pytest.approx(share, abs=0.01)
    residual = float((y - found.share * estimate - (1 - found.share) * mean).abs().square().sum())
    assert found.factor(found.share) == pytest.approx(
        uncertainty.spread_factor(residual, 0.0, found.variance), rel=1e-3
    )


def test_the_benchmark_mixes_estimate_and_samples_as_the_node_does() -> None:
    p, model = acquire(PRIOR_SD), white_model()
    options = inversion.Options(steps=2, mean_steps=2, samples=2)
    image = reconstruction.deliver(p, model, options).image
    estimate = inversion.estimate_slices(p, model, options)
    seeds = [[1000 * n, 1000 * n + 1] for n in range(2)]
    mean = sum(inversion.draw_samples(p, model, options, each, estimate) for each in seeds) / 2
    share = spread.measure_spread(p, model, model, options, 1).share
    torch.testing.assert_close(image, share * estimate + (1 - share) * mean)


def test_an_estimate_is_not_mixed_with_samples_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"differ in shape"):
        spread.mix_images(torch.zeros(1, 4, 4), torch.zeros(1, 2, 4, 4), 0.5)


def test_a_share_beyond_either_image_is_not_taken() -> None:
    one, none = torch.ones(4, 4), torch.zeros(4, 4)
    assert uncertainty.compare_held_out(2 * one, one, none, one, 0.0).share == 1.0
    assert uncertainty.compare_held_out(-one, one, none, one, 0.0).share == 0.0
    assert uncertainty.compare_held_out(one, none, none, one, 0.0).share == uncertainty.USUAL_SHARE


factor: Callable[[float, float, float], float] = uncertainty.spread_factor


def test_without_noise_the_factor_is_the_root_of_error_over_variance() -> None:
    assert factor(9.0, 0.0, 1.0) == pytest.approx(3 * uncertainty.BEYOND)
    assert factor(9.0, 5.0, 1.0) < factor(9.0, 0.0, 1.0)


def test_noise_that_hides_the_error_leaves_the_usual_factor_and_never_less_than_the_samples() -> None:
    usual = factor(0.0, 0.0, 0.0)
    assert factor(1000.1, 1000.0, 0.06) == pytest.approx(usual, rel=0.02)
    assert factor(500.0, 1000.0, 0.06) == uncertainty.BEYOND


def test_a_calibrated_sd_keeps_its_order_and_its_mean_and_varies_by_half() -> None:
    rng = np.random.default_rng(0)
    sd = np.exp(rng.normal(0, 0.5, (2, 40, 40))).astype(np.float32) * np.array([1, 10], np.float32)[:, None, None]
    image = np.ones_like(sd)
    found = uncertainty.calibrate_sd(sd, image, 2.0)
    for before, after in zip(sd, found, strict=True):
        np.testing.assert_array_equal(np.argsort(before, axis=None), np.argsort(after, axis=None))
        assert np.log(after).std() == pytest.approx(0.5 * np.log(before).std(), rel=1e-3)
    uniform = np.full((1, 8, 8), 0.3, np.float32)
    np.testing.assert_allclose(uncertainty.calibrate_sd(uniform, np.ones_like(uniform), 2.0), 0.6, rtol=1e-6)
    per_unit = partial(uncertainty.calibrate_sd, factor=2.0)
    np.testing.assert_allclose(per_unit(7 * sd, 7 * image), 7 * found, rtol=1e-5)


def test_a_slice_without_an_object_has_no_sd_and_spoils_no_other() -> None:
    image, sd = np.zeros((2, 8, 8), np.float32), np.full((2, 8, 8), 0.3, np.float32)
    image[0] = 1.0
    found = uncertainty.calibrate_sd(sd, image, 2.0)
    np.testing.assert_allclose(found[0], 0.6, rtol=1e-6)
    assert (found[1] == 0).all()


def test_held_out_slices_are_those_in_which_the_coils_see_an_object() -> None:
    p = acquire(PRIOR_SD)
    maps = p.A.maps.clone()
    maps[0] = 0
    blind = replace(p, A=Fourier(maps, p.A.mask))
    options = inversion.Options(steps=2, mean_steps=2)
    found = spread.measure_spread(blind, white_model(), white_model(), options, 1)
    assert found.evaluations == 2 + 4 * 2  # of one slice


def test_air_does_not_set_the_level_of_the_sd() -> None:
    sd = np.full((1, 20, 20), 0.3, np.float32)
    image = np.ones_like(sd)
    image[:, :, 10:] = 0
    sd[:, :, 10:] = 1e-3
    np.testing.assert_allclose(uncertainty.calibrate_sd(sd, image, 1.0)[:, :, :10], 0.3, rtol=1e-6)
