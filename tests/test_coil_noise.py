"""Noise covariance beside the signal: simulated faults with known truth, the linear model and its limits."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo import classical, coils, masks, noise
from model_zoo.data_kit import data_root
from model_zoo.simulate.kspace import simulate_scan
from pipelines import encoding
from pipelines.contract import Grid, KSpace, Refused

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)))


def correlated(count: int) -> Tensor:
    """Return a noise covariance with sds of 1 to 3 and correlations of 0.4 between neighbours, complex128."""
    sd = torch.linspace(1, 3, count, dtype=torch.float64)
    correlation = torch.eye(count, dtype=torch.complex128)
    for c in range(count - 1):
        correlation[c, c + 1] = torch.tensor(0.4j)
        correlation[c + 1, c] = torch.tensor(-0.4j)
    return correlation * torch.outer(sd, sd)


@pytest.mark.parametrize("count", [4, 8])
def test_the_covariance_of_pure_noise_is_found(count: int) -> None:
    psi = correlated(count)
    samples = torch.linalg.cholesky(psi).to(torch.complex64) @ randn(count, 64 * 48)
    found = noise.estimate_null_space_covariance(samples.reshape(1, count, 64, 48))
    assert found is not None
    scale = psi.diagonal().real.sqrt()
    torch.testing.assert_close(
        found.covariance / torch.outer(scale, scale), psi / torch.outer(scale, scale), atol=0.15, rtol=0
    )


def test_the_least_squares_solution_is_that_of_the_dense_system() -> None:
    """Psi from E[P G P] = P (Psi (x) I) P without noise of estimation: G is the model itself, plus a signal."""
    psi, size = correlated(3) / 9, 9
    signal = randn(3 * size, 5).to(torch.complex128)
    # The signal's own space is known to the projector only through G: strong enough, it is the leading eigenspace.
    G = torch.kron(torch.eye(3), torch.eye(size)).to(torch.complex128) + 1e6 * signal @ signal.mH
    found, ranks = noise.fit_covariance([G], 10**9, 3)
    assert ranks == [5]
    torch.testing.assert_close(found, torch.eye(3, dtype=found.dtype), atol=1e-5, rtol=0)
    L = torch.linalg.cholesky(psi)
    W = torch.linalg.inv(L)
    whole = torch.kron(psi, torch.eye(size, dtype=psi.dtype))
    torch.testing.assert_close(
        noise.whiten_neighbourhoods(W, whole), torch.eye(3 * size, dtype=psi.dtype), atol=1e-10, rtol=0
    )


def test_the_rank_of_a_known_signal_is_found() -> None:
    rows = randn(2000, 100, seed=1) + randn(2000, 7, seed=2) @ randn(7, 100, seed=3)
    values = torch.linalg.eigvalsh((rows.mH @ rows / 2000).to(torch.complex128))
    assert noise.split_signal(values, 2000) == 7


def test_a_bound_lowers_the_level_and_keeps_correlations() -> None:
    psi = correlated(4)
    bound = torch.tensor([9.0, 1.0, 9.0, 1.5])
    tight = noise.tighten(psi, bound)
    sd = tight.diagonal().real.sqrt()
    torch.testing.assert_close(sd, torch.minimum(psi.diagonal().real.sqrt(), bound.double()))
    before = psi / torch.outer(*(2 * [psi.diagonal().real.sqrt()]))
    torch.testing.assert_close(tight / torch.outer(sd, sd), before)


@dataclass(frozen=True)
class Fault:
    """A simulated acquisition with a property of real data that raised earlier estimates."""

    coils: int
    matrix: int
    folded: bool
    pattern: str
    contrast: str = "t1w"
    snr: float = 60.0

    def __str__(self) -> str:
        return f"{self.coils}x{self.matrix}-{'folded' if self.folded else 'whole'}-{self.pattern}-{self.contrast}"


FAULTS = [
    Fault(4, 192, True, "1d"),
    Fault(4, 96, False, "2d"),
    Fault(8, 96, True, "2d"),
    Fault(8, 192, True, "1d", "t2w", 20.0),
    Fault(16, 96, True, "2d"),
    pytest.param(Fault(32, 192, False, "1d"), marks=pytest.mark.slow),
    pytest.param(Fault(8, 320, True, "1d"), marks=pytest.mark.slow),
    pytest.param(Fault(16, 96, False, "1d", "flair"), marks=pytest.mark.slow),
]


def acquire(fault: Fault) -> tuple[KSpace, Tensor]:
    """Return undersampled k-space without its pre-scan, and the sd of a noise component per coil."""
    shape = (fault.matrix, round(fault.matrix * (0.5 if fault.folded else 0.83)) // 2 * 2)
    scan = simulate_scan(
        "16", shape=shape, pixel_mm=240 / fault.matrix, coils=fault.coils, snr=fault.snr, contrast=fault.contrast,
        folds=2 if fault.folded else 1, noise_spread=3.0, noise_correlation=1.5,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    draw, R = (masks.gaussian_1d, 0.7 * shape[1] / 24) if fault.pattern == "1d" else (masks.poisson_2d, 7.0)
    mask = draw(shape, min(R, 4.0) if fault.pattern == "1d" else R, 24, rng)[None]
    a0, b0 = shape[0] // 2 - 12, shape[1] // 2 - 12
    block = ((0, shape[0]) if fault.pattern == "1d" else (a0, a0 + 24)), (b0, b0 + 24)
    k = KSpace(
        (scan.samples * mask).astype(np.complex64), mask, (240.0, 240.0),
        Grid((1, *shape), np.diag([2.0, 2.0, 5.0, 1.0])), 4.0, block, None,
    )  # fmt: skip
    return k, torch.from_numpy(np.sqrt(np.diag(scan.covariance).real / 2))


@pytest.fixture
def anatomy() -> None:
    try:
        data_root()
    except FileNotFoundError:
        pytest.skip("no data kit")


@pytest.mark.usefixtures("anatomy")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_noise_per_coil_is_found_beside_a_strong_signal(fault: Fault) -> None:
    k, sd = acquire(fault)
    found, source = encoding.find_noise(k)
    assert "null space" in source
    ratio = found.diagonal().real.sqrt() / sd
    assert float(ratio.min()) > 0.85
    assert float(ratio.max()) < (1.15 if fault.coils > 4 else 1.3)


@pytest.mark.usefixtures("anatomy")
def test_two_coils_and_a_folded_head_leave_no_null_space() -> None:
    k, _ = acquire(Fault(2, 96, True, "1d"))
    assert "null space" not in encoding.find_noise(k)[1]


@pytest.mark.usefixtures("anatomy")
def test_a_pre_scan_that_contradicts_the_data_is_refused_from_both_sides() -> None:
    k, sd = acquire(Fault(8, 96, False, "1d", "t2w", 20.0))
    prescan = (sd[:, None] * randn(8, 4096)).numpy().astype(np.complex64)
    encoding.check_kspace(replace(k, noise=prescan))
    with pytest.raises(Refused, match=r"contradicts the data: in coil \d it is .* times louder"):
        encoding.check_kspace(replace(k, noise=3 * prescan))
    with pytest.raises(Refused, match=r"noise of the image is .* times louder"):
        encoding.check_kspace(replace(k, noise=prescan / np.float32(5)))


def test_the_bound_lies_above_the_estimate() -> None:
    y, mask = randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool)
    estimate, bound = coils.estimate_noise_level(y, mask), coils.bound_noise_level(y, mask)
    assert bool((bound >= estimate).all())
    assert bool((bound < 1.3).all())


@pytest.mark.usefixtures("anatomy")
@pytest.mark.parametrize("seed", range(4))
def test_a_stack_that_reaches_beyond_the_head_is_prepared(seed: int) -> None:
    k, sd = acquire(Fault(8, 96, False, "2d"))
    rng = np.random.default_rng(seed)
    shape = k.samples.shape[1:]
    empty = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * float(sd.mean()) * k.mask[0]
    samples = np.stack([empty, k.samples[0], empty[:, ::-1, ::-1]]).astype(np.complex64)
    problem = encoding.prepare_image(replace(k, samples=samples, mask=np.repeat(k.mask, 3, axis=0), noise=None))
    assert bool(torch.isfinite(problem.y.abs()).all())
    assert bool(torch.isfinite(problem.gain).all())


@pytest.mark.usefixtures("anatomy")
def test_compressed_and_whitened_coils_keep_the_brightness_of_the_object() -> None:
    """With 16 coils of unequal, correlated noise the image is the object's own, within a percent."""
    k, _ = acquire(Fault(16, 96, False, "2d"))
    scan = simulate_scan(
        "16", shape=k.mask.shape[1:], pixel_mm=2.5, coils=16, snr=60.0, contrast="t1w", noise_spread=3.0,
        noise_correlation=1.5,
    )  # fmt: skip
    problem = encoding.prepare_image(replace(k, samples=scan.samples, mask=np.ones_like(k.mask)))
    assert problem.y.shape[1] < 16
    x = (classical.cg_sense(problem.A, problem.y, ridge=1e-6) * problem.gain).abs().numpy()
    truth = np.abs(scan.reference)
    inside = truth > 0.1 * truth.max()
    assert x[inside].sum() / truth[inside].sum() == pytest.approx(1.0, abs=0.01)
