"""An object larger than the field of view: two sets of maps, their images, and what three places in a voxel do."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_zoo import adaptation, classical, masks, samplers, uncertainty
from model_zoo.data_kit import data_root
from model_zoo.denoisers import Denoiser
from model_zoo.operators import Fourier, magnitude
from model_zoo.simulate.kspace import simulate_scan
from pipelines import coil_maps, encoding
from pipelines.contract import Grid, KSpace, Refused

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

N, SD, SIGMA_Y = 5, 0.3, 0.1
SIGMAS = samplers.karras_schedule(20.0, 0.005, 100)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)))


class Small:
    """A problem of two sets on N x N voxels with a white Gaussian prior, whose posterior is known."""

    def __init__(self) -> None:
        Q, _ = torch.linalg.qr(randn(1, N, N, 4, 2, seed=1))
        mask = torch.rand(1, N, N, generator=torch.Generator().manual_seed(2)) < 0.5
        self.A = Fourier(Q.movedim((-1, -2), (1, 2)).contiguous(), mask)
        self.y = self.A(SD * randn(1, 2, N, N, seed=4)) + SIGMA_Y * mask[:, None] * randn(1, 4, N, N, seed=5)
        n = 2 * N * N
        M = self.A(torch.eye(n, dtype=torch.complex64).reshape(n, 2, N, N)).flatten(1).T
        self.covariance = torch.linalg.inv(torch.eye(n) / SD**2 + M.mH @ M / SIGMA_Y**2)
        self.mean = (self.covariance @ (M.mH @ self.y.flatten()) / SIGMA_Y**2).reshape(1, 2, N, N)

    def D(self, x: Tensor, sigma: float) -> Tensor:
        return SD**2 / (SD**2 + sigma**2) * x


def test_the_correction_moves_both_images_to_the_mean_that_the_data_warrant() -> None:
    small = Small()
    x = samplers.enforce_consistency(
        small.A, small.A.H(small.y), torch.zeros_like(small.mean), SD**2 / SIGMA_Y**2, iterations=60
    )
    torch.testing.assert_close(x, small.mean, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_samples_of_both_images_have_the_mean_and_the_covariance_of_the_posterior() -> None:
    small, count = Small(), 500
    found = samplers.dds(
        small.D, small.A.repeat(count), small.y.repeat_interleave(count, 0), SIGMAS, sigma_y=SIGMA_Y, sigma_data=SD,
        noise=samplers.noise_source(range(count)), iterations=15,
    ).flatten(1)  # fmt: skip
    sd = small.covariance.diagonal().real.sqrt()
    shift = (found.mean(0) - small.mean.flatten()).abs() / sd
    assert float(shift.pow(2).mean().sqrt()) < 0.15
    centred = found - found.mean(0)
    error = centred.T @ centred.conj() / (2 * (count - 1)) - small.covariance
    assert float(torch.linalg.matrix_norm(error) / torch.linalg.matrix_norm(small.covariance)) < 0.3


@pytest.mark.parametrize("sampler", [samplers.dps, samplers.score_mri])
def test_other_samplers_give_an_image_per_set(sampler: Callable[..., Tensor]) -> None:
    small = Small()
    x = sampler(small.D, small.A, small.y, SIGMAS[::5], noise=samplers.noise_source([3]))
    assert x.shape == small.mean.shape
    assert float(uncertainty.chi_square(small.A, x, small.y, SIGMA_Y)) < 3


@pytest.mark.slow
def test_langevin_dynamics_have_the_mean_of_the_posterior() -> None:
    small, count = Small(), 200
    x = samplers.ald(
        small.D, small.A.repeat(count), small.y.repeat_interleave(count, 0), SIGMAS, sigma_y=SIGMA_Y,
        noise=samplers.noise_source(range(count)),
    ).flatten(1)  # fmt: skip
    shift = (x.mean(0) - small.mean.flatten()).abs() / small.covariance.diagonal().real.sqrt()
    assert float(shift.pow(2).mean().sqrt()) < 0.3


def test_the_discrepancy_principle_reaches_the_noise_with_two_sets() -> None:
    small = Small()
    x = uncertainty.apply_discrepancy_principle(
        small.A, small.y, torch.zeros_like(small.mean), torch.tensor([SIGMA_Y]), limit=torch.tensor([1e4])
    )
    assert 0.7 < float(uncertainty.chi_square(small.A, x, small.y, SIGMA_Y)) <= 1


class _Network(nn.Module):
    """A convolution that the adaptation can change."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_the_denoiser_sees_each_image_by_itself_at_the_noise_of_its_batch_element() -> None:
    torch.manual_seed(0)
    D, x = Denoiser(_Network(), 0.5, 1), randn(3, 2, 8, 7)
    sigma = torch.tensor([0.1, 0.5, 2.0])
    with torch.no_grad():
        both = D(x, sigma)
        torch.testing.assert_close(both, torch.stack([D(x[:, m], sigma) for m in (0, 1)], dim=1))
        torch.testing.assert_close(D(x, 0.3)[:, 1], D(x[:, 1], 0.3))


@pytest.mark.slow
def test_a_prior_is_adapted_to_two_sets_and_every_image_that_it_saw_is_counted() -> None:
    torch.manual_seed(0)
    Q, _ = torch.linalg.qr(randn(1, 16, 16, 4, 2, seed=1))
    mask = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[:, 4:12, 4:12] = True
    A = Fourier(Q.movedim((-1, -2), (1, 2)).contiguous(), mask)
    seen = 0

    class Counting(_Network):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return super().forward(x, c_noise)

    found = adaptation.adapt(
        Counting(), lambda network: Denoiser(network, 0.5, 1), A, A(randn(1, 2, 16, 16, seed=3)), [0.5, 0.1, 0.0],
        sigma_y=torch.tensor([0.1]), sigma_data=0.5, settings=adaptation.Settings(steps=4, check_every=2),
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    assert found.evaluations == seen
    assert found.after <= found.before


def test_images_in_units_have_the_root_sum_of_squares_of_the_coils_as_received() -> None:
    Q, _ = torch.linalg.qr(randn(2, 6, 5, 4, 2, seed=1))
    maps, U = Q.movedim((-1, -2), (1, 2)).contiguous(), randn(7, 4, seed=2).to(torch.complex128)
    maps[:, 1, :, :3] = 0
    x = randn(2, 2, 6, 5, seed=3)
    model = coil_maps.CoilModel(torch.eye(4), U, 0.0, maps, "ESPIRiT")
    gain = model.gain()
    problem = encoding.Problem(
        Fourier(maps, torch.ones(2, 6, 5)), torch.zeros(2, 4, 6, 5), torch.ones(2), gain, 1.0, "", ""
    )
    received = torch.einsum("cv,smvab,smab->scab", U.to(torch.complex64), maps, x)
    torch.testing.assert_close(
        magnitude(problem.in_units(x)), received.abs().pow(2).sum(1).sqrt(), atol=1e-4, rtol=1e-4
    )
    single = coil_maps.CoilModel(torch.eye(4), U, 0.0, maps[:, 0], "ESPIRiT").gain()
    torch.testing.assert_close(single[:, :3], gain[:, 0, 0, :3].real, atol=1e-4, rtol=1e-4)


@pytest.fixture
def anatomy() -> None:
    try:
        data_root()
    except FileNotFoundError:
        pytest.skip("no data kit")


@cache
def acquire(rows: int, columns: int, folds: int) -> tuple[KSpace, NDArray[np.float32]]:
    """Return k-space of a head, 240 mm over ``rows`` square pixels, and the folded image without noise."""
    pixel_mm = 240 / rows
    scan = simulate_scan(
        "16", shape=(rows, columns), pixel_mm=pixel_mm, coils=8, snr=60.0, contrast="t1w", folds=folds,
        noise_spread=3.0, noise_correlation=1.5,
    )  # fmt: skip
    mask = masks.poisson_2d((rows, columns), 3.0, 24, np.random.default_rng(3))[None]
    block = (rows // 2 - 12, rows // 2 + 12), (columns // 2 - 12, columns // 2 + 12)
    grid = Grid((1, rows, columns), np.diag([pixel_mm, pixel_mm, 5.0, 1.0]))
    samples = (scan.samples * mask).astype(np.complex64)
    return KSpace(samples, mask, (240.0, pixel_mm * columns), grid, 4.0, block, None), np.abs(scan.reference)


def psnr(problem: encoding.Problem, truth: NDArray[np.float32]) -> float:
    x = magnitude(problem.in_units(classical.cg_sense(problem.A, problem.y, ridge=0.01))).numpy()
    return float(-10 * np.log10(np.mean((x - truth) ** 2) / truth.max() ** 2))


@pytest.mark.slow
@pytest.mark.usefixtures("anatomy")
def test_a_folded_head_has_two_sets_and_the_image_that_the_complete_samples_would_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    k, truth = acquire(96, 48, 2)
    two = encoding.prepare_image(k)
    assert two.A.sets == 2
    assert two.folded_share is not None
    assert two.folded_share > 0.1
    assert two.unexplained_share is not None
    assert two.unexplained_share < 0.1
    monkeypatch.setattr(coil_maps, "LEAST_FOLDED", 1.0)
    monkeypatch.setattr(coil_maps, "MOST_UNEXPLAINED", 1.0)
    one = encoding.prepare_image(k)
    assert one.A.sets == 1
    assert one.unexplained_share is not None
    assert one.unexplained_share > 0.5
    assert psnr(two, truth) > max(28.0, psnr(one, truth) + 6)


@pytest.mark.slow
@pytest.mark.usefixtures("anatomy")
def test_a_head_inside_the_field_of_view_has_one_set() -> None:
    problem = encoding.prepare_image(acquire(96, 80, 1)[0])
    assert problem.A.sets == 1
    assert problem.folded_share == 0.0
    assert problem.unexplained_share is not None
    assert problem.unexplained_share < 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("anatomy")
def test_three_places_in_one_voxel_are_refused_by_slice() -> None:
    with pytest.raises(Refused, match=r"do not explain .* in slice 1 of 1: more than 2 places fold into one"):
        encoding.prepare_image(acquire(192, 48, 3)[0])
