"""Classical reconstructions: the transforms have their defining properties, and each solver reaches its optimum."""

import pytest
import torch

from model_zoo import classical
from model_zoo.operators import Fourier, inner

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

G = torch.Generator


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=G().manual_seed(seed))


def phantom(n: int = 48) -> torch.Tensor:
    a, b = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    image = (a**2 + (b / 0.8) ** 2 < 0.7).float() - 0.5 * (((a - 0.1) ** 2 + b**2) < 0.1).float()
    return torch.polar(image, 0.7 * a)[None]


def make_undersampled(n: int = 48) -> tuple[Fourier, torch.Tensor]:
    mask = torch.rand(1, n, n, generator=G().manual_seed(1)) < 0.4
    mask[:, n // 2 - 4 : n // 2 + 4, n // 2 - 4 : n // 2 + 4] = True
    A = Fourier(torch.ones(1, 1, n, n, dtype=torch.complex64), mask)
    return A, A(phantom(n)) + 0.01 * A(randn(1, n, n, seed=2))


def error(x: torch.Tensor) -> float:
    truth = phantom(x.shape[-1])
    return float(torch.linalg.vector_norm(x - truth) / torch.linalg.vector_norm(truth))


@pytest.mark.parametrize("filter", [classical.HAAR, classical.DB4])
@pytest.mark.parametrize("shape", [(32, 48), (45, 50)])
def test_wavelets_keep_energy_and_invert(filter: tuple[float, ...], shape: tuple[int, int]) -> None:
    W, WH = classical.wavelet(shape, filter, 3)
    x = randn(2, *shape)
    bands = W(x)
    torch.testing.assert_close(WH(bands), x, atol=1e-5, rtol=1e-5)
    assert sum(float(b.abs().pow(2).sum()) for b in bands) == pytest.approx(float(x.abs().pow(2).sum()), rel=1e-5)


def test_db4_details_vanish_on_cubics() -> None:
    W, _ = classical.wavelet((64, 64), classical.DB4, 1)
    t = torch.linspace(-1, 1, 64) ** 3
    _, lh, hl, _ = W((t[:, None] + t[None, :]).to(torch.complex64)[None])
    assert lh[0, 4:-4, 4:-4].abs().max() < 1e-5
    assert hl[0, 4:-4, 4:-4].abs().max() < 1e-5


def test_gradient_and_its_adjoint_agree() -> None:
    x, q = randn(1, 9, 8), randn(2, 9, 8, seed=1)[:, None]
    left = inner(classical.gradient(x)[None].flatten(1), q[None].flatten(1))
    right = inner(x.flatten(1), classical.gradient_adjoint(q).flatten(1))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_soft_threshold_keeps_phase() -> None:
    x = torch.tensor([3 + 4j, 0.1j, 0j])
    torch.testing.assert_close(classical.soft(x, 1.0), torch.tensor([2.4 + 3.2j, 0j, 0j]))


def test_cg_sense_solves_the_normal_equations() -> None:
    A, y = make_undersampled()
    x = classical.cg_sense(A, y, ridge=0.1, iterations=30)
    torch.testing.assert_close(A.normal(x) + 0.1 * x, A.H(y), atol=1e-4, rtol=1e-4)


def test_sparsity_beats_zero_filling() -> None:
    A, y = make_undersampled()
    zero = error(classical.zero_filled(A, y))
    assert error(classical.l1_wavelet(A, y, 0.01)) < 0.85 * zero
    assert error(classical.total_variation(A, y, 0.01)) < 0.6 * zero


def test_total_variation_reaches_a_lower_objective_than_its_neighbours() -> None:
    A, y = make_undersampled(24)

    def objective(x: torch.Tensor) -> float:
        misfit = 0.5 * (A(x) - y).abs().pow(2).sum()
        return float(misfit + 0.02 * classical.gradient(x).abs().pow(2).sum(0).sqrt().sum())

    x = classical.total_variation(A, y, 0.02, iterations=600)
    best = objective(x)
    for seed in range(5):
        assert best <= objective(x + 0.01 * randn(1, 24, 24, seed=seed)) + 1e-4
