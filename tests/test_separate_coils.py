"""Coils without maps: each coil by itself, then the root sum of squares."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from dicomnode.mrd.calibration import find_calibration_block
from dicomnode.report.kspace import reconstruct_zero_filled
from dicomnode.report.planes import choose_planes
from model_zoo import adaptation, classical, masks, uncertainty
from model_zoo.operators import Fourier, centred_fft, centred_ifft
from pipelines import encoding, inversion, separate_coils
from pipelines.contract import Case, Finding, Image, KSpace, Measurement, Note, ParametricMap, Refused
from pipelines.encoding import Problem
from pipelines.mri_reconstruction import run
from pipelines.spread import compare_samples
from tests.test_mri_reconstruction import (
    LEAST,
    QUICK,
    SHAPE,
    acquire,
    grid,
    image,
    number,
    prior,
    randn,
    receive_maps,
    reconstruct,
    truth,
)

pytestmark = pytest.mark.training

WITHOUT = LEAST.model_copy(update={"coils": "without maps"})
AUTO = QUICK.model_copy(update={"coils": "auto"})


def scatter(coils: int = 4, slices: int = 1, noise_sd: float = 3.0, acceleration: float = 3.0) -> KSpace:
    """Return the phantom sampled at random, with a complete centre of 4 x 4 samples, too small for a calibration."""
    y = centred_fft(receive_maps(coils) * truth()[:slices, None])
    y = y + noise_sd * randn(*y.shape, seed=2)
    mask = np.stack([masks.gaussian_2d(SHAPE, acceleration, 4, np.random.default_rng(3))] * slices)
    return KSpace(
        (y.numpy() * mask[:, None]).astype(np.complex64), mask, (192.0, 180.0), grid((slices, *SHAPE)), 4.0,
        noise=(noise_sd * randn(coils, 2000, seed=4)).numpy(),
    )  # fmt: skip


@cache
def reconstruct_one_slice() -> list[Finding]:
    """Return the findings of one slice for all tests that only look at them."""
    return reconstruct(scatter(), AUTO)


def error(x: np.ndarray | Tensor) -> float:
    reference = truth()[: len(x)].abs().numpy()
    return float(np.linalg.norm(np.asarray(x) - reference) / np.linalg.norm(reference))


def test_the_pattern_has_no_calibration_lines_that_the_node_would_find() -> None:
    k = scatter()
    assert find_calibration_block(k.samples, k.mask) is None


def test_the_default_refuses_and_names_the_option() -> None:
    with pytest.raises(Refused, match='coils = "auto"'):
        reconstruct(scatter())


def test_each_coil_by_itself_is_nearer_to_the_truth_than_zero_filling_and_total_variation_tuned_on_it() -> None:
    k = scatter()
    problem = separate_coils.prepare_separate_coils(k)
    tuned = min(
        error(problem.in_units(classical.total_variation(problem.A, problem.y, w)).abs().square().sum(0).sqrt()[None])
        for w in (0.004, 0.016, 0.064)
    )
    zero_filled = error(centred_ifft(torch.from_numpy(k.samples)).abs().square().sum(1).sqrt())
    found = error(image(reconstruct(k, inversion.Options(samples=2, steps=2, coils="auto"))))
    assert tuned < zero_filled
    assert found < tuned


def test_the_result_is_held_and_says_that_it_has_no_maps() -> None:
    found = reconstruct_one_slice()
    (note,) = (f for f in found if isinstance(f, Note))
    assert note.name == "without coil maps"
    assert note.holds_result
    assert "the acquisition has no calibration lines" in note.text
    (picture,) = (f for f in found if isinstance(f, Image))
    assert picture.description.startswith("MR without coil maps")
    (used,) = (f for f in found if isinstance(f, Measurement) and f.name == "coils used")
    assert used.description == "Maps: none, each coil by itself"
    assert used.value == 4
    assert number(found, "denoiser evaluations") == 4 * (4 + 3 * 4 + 4 + 4 * 4)


def test_several_slices_give_one_image_each() -> None:
    found = reconstruct(scatter(slices=2), AUTO)
    (sd,) = (f for f in found if isinstance(f, ParametricMap))
    assert image(found).shape == sd.volume.data.shape == (2, *SHAPE)
    assert error(image(found)) < 0.3
    alone = reconstruct_one_slice()
    np.testing.assert_allclose(image(alone)[0], image(found)[0], rtol=0.02, atol=2.0)


def test_one_coil_is_the_same_by_itself_and_as_before() -> None:
    k = replace(acquire(1), calibration=None)
    before, after = encoding.prepare_image(k), separate_coils.prepare_separate_coils(k)
    torch.testing.assert_close(after.y, before.y)
    torch.testing.assert_close(after.sigma_y, before.sigma_y)
    x = before.A.H(before.y)
    combined = separate_coils.combine_coil_images(after.in_units(x), after, x)
    torch.testing.assert_close(combined, before.in_units(x).abs())
    np.testing.assert_array_equal(image(reconstruct(k, WITHOUT)), image(reconstruct(k, LEAST)))


def test_auto_takes_maps_where_there_are_calibration_lines_and_borrows_them_between_contrasts() -> None:
    first = replace(acquire(4), label="contrast 1 of 2")
    second = replace(first, calibration=None, label="contrast 2 of 2")
    assert encoding.find_separate([first, second], "auto") == [False, False]
    assert encoding.find_separate([first, second], "without maps") == [True, True]
    moved = replace(second, encoded_fov_mm=(150.0, 150.0))
    assert encoding.find_separate([first, moved], "auto") == [False, True]
    assert encoding.find_separate([replace(acquire(1), calibration=None)], "without maps") == [False]


def test_an_acquisition_with_and_one_without_lines_stand_side_by_side() -> None:
    first = replace(acquire(4), label="contrast 1 of 2")
    second = replace(scatter(slices=2), encoded_fov_mm=(150.0, 150.0), label="contrast 2 of 2")
    options = LEAST.model_copy(update={"coils": "auto"})
    found: list[Finding] = run(Case({"kspace": first, "kspace 2": second}), prior(), options, 5, lambda *_: None)
    assert [f.name for f in found if isinstance(f, Note)] == ["without coil maps, contrast 2 of 2"]
    assert len([f for f in found if isinstance(f, Image)]) == 2


def test_a_centre_with_a_hole_is_refused_by_its_slice() -> None:
    k = scatter(slices=2)
    k.mask[1, SHAPE[0] // 2, SHAPE[1] // 2] = False
    samples = k.samples * k.mask[:, None]
    with pytest.raises(Refused, match=r"3 x 3 samples about the centre.*slice 2 of 2"):
        reconstruct(replace(k, samples=samples), AUTO)


def test_more_evaluations_than_allowed_are_refused_before_the_first() -> None:
    with pytest.raises(Refused, match=r"need 144 evaluations.*most_evaluations = 100"):
        reconstruct(scatter(), AUTO.model_copy(update={"most_evaluations": 100}))


def test_slices_without_maps_are_not_coupled() -> None:
    k = replace(scatter(slices=2), grid=grid((2, *SHAPE), (1.0, 3.0, 3.0)), slice_thickness_mm=1.0)
    with pytest.raises(Refused, match="across_slices = 0"):
        reconstruct(k, AUTO.model_copy(update={"across_slices": 3.0}))


def test_coils_that_repeat_others_are_compressed_and_lose_nothing() -> None:
    k = scatter(4)
    mixed = np.concatenate([k.samples, 0.5 * k.samples[:, :2] + 0.5 * k.samples[:, 2:]], axis=1)
    problem = separate_coils.prepare_separate_coils(replace(k, samples=mixed.astype(np.complex64), noise=None))
    assert problem.separate_coils == 4
    assert problem.coil_loss <= encoding.COIL_LOSS
    energy = (problem.gain[:, None] * problem.y).abs().square().sum()
    assert float(energy) == pytest.approx(float(np.square(np.abs(mixed)).sum()), rel=1e-3)


def noise_alone(coils: int, fraction: float, noise_from: str = encoding.PRESCAN) -> tuple[Problem, Tensor]:
    """Return a problem of coils that received a flat object and noise, and its zero-filled images, which keep both."""
    mask = torch.rand(1, 96, 96, generator=torch.Generator().manual_seed(1)) < fraction
    A = Fourier(torch.ones(coils, 1, 96, 96, dtype=torch.complex64), mask.expand(coils, -1, -1))
    y = A.mask[:, None] * 0.5 * randn(coils, 1, 96, 96, seed=2)
    problem = Problem(
        A, y, torch.full((coils,), 0.5), torch.full((coils, 96, 96), 2.0), 1.0, "", noise_from, separate_coils=coils
    )
    return problem, A.H(y)


@pytest.mark.parametrize("coils", [1, 4, 8])
def test_the_noise_bias_of_all_coils_but_one_is_taken_off(coils: int) -> None:
    problem, noise = noise_alone(coils, 0.4)
    signal = torch.full_like(noise, 10.0)
    found = separate_coils.combine_coil_images(problem.in_units(signal + noise), problem, noise)
    one_image = (20.0**2 * coils + 2 * 0.4) ** 0.5  # the signal of all coils and the noise of one, 2 (2 * 0.5)^2 0.4
    assert float(found.square().mean().sqrt()) == pytest.approx(one_image, rel=2e-4)


def test_nothing_is_taken_off_and_no_error_is_put_down_to_noise_where_its_level_is_a_guess() -> None:
    problem, noise = noise_alone(4, 0.4, "outer k-space")
    found = separate_coils.combine_coil_images(problem.in_units(noise), problem, noise)
    torch.testing.assert_close(found[0], problem.in_units(noise).abs().square().sum(0).sqrt())
    split = adaptation.Split(~problem.A.mask, problem.A.mask)
    for one, is_known in ((problem, False), (noise_alone(4, 0.4)[0], True)):
        assert (separate_coils.compare_combined(one, noise, [noise, 2 * noise], split).noise > 0) is is_known


def test_errors_that_coils_share_are_seen_in_the_combined_image_only() -> None:
    """Eight coils with one error, samples drawn independently: each coil's spread is right, that of the sum is not."""
    coils, n = 8, 64
    mask = torch.ones(coils, n, n, dtype=torch.bool)
    A = Fourier(torch.ones(coils, 1, n, n, dtype=torch.complex64), mask)
    x = torch.ones(coils, n, n, dtype=torch.complex64)
    shared = randn(1, n, n, seed=1).expand(coils, -1, -1)
    problem = Problem(
        A, A(x + 0.1 * shared), torch.full((coils,), 1e-6), torch.ones(coils, n, n), 1e-6, "", "", separate_coils=coils
    )
    split = adaptation.Split(~mask, mask)
    samples = [x + 0.1 * randn(coils, n, n, seed=10 + s) for s in range(40)]
    alone = compare_samples(problem, x, iter(samples), split)
    together = separate_coils.compare_combined(problem, x, iter(samples), split)
    assert alone.residual / alone.variance == pytest.approx(1.0, rel=0.05)
    assert together.residual / together.variance == pytest.approx(coils, rel=0.05)
    assert together.factor(together.share) == pytest.approx(uncertainty.BEYOND * coils**0.5, rel=0.05)


def test_the_report_shows_the_zero_filled_root_sum_of_squares() -> None:
    k = scatter(slices=2)
    plane = choose_planes(k.grid, truth().abs().numpy(), 1)[0]
    shown = reconstruct_zero_filled(k, k.grid, plane)
    assert shown is not None
    expected = centred_ifft(torch.from_numpy(k.samples[plane.index])).abs().square().sum(0).sqrt().numpy()
    np.testing.assert_allclose(shown, expected, atol=1e-3 * float(expected.max()))
