"""The Fourier operator against its definition, its adjoint, and dense matrices; conjugate gradients against a solve."""

from functools import partial

import numpy as np
import pytest
import torch

from model_zoo.operators import Fourier, centred_fft, centred_ifft, cg, inner, magnitude

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

SHAPES = [(8, 8), (7, 8), (8, 9), (5, 7)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def sense(batch: int, coils: int, shape: tuple[int, int]) -> Fourier:
    S = randn(batch, coils, *shape, seed=1)
    S = S / S.abs().pow(2).sum(1, keepdim=True).sqrt()
    return Fourier(S, torch.rand(batch, *shape, generator=torch.Generator().manual_seed(2)) < 0.4)


def soft_sense(batch: int, coils: int, shape: tuple[int, int]) -> Fourier:
    """Return an operator of two sets of maps that are orthogonal over the coils in every voxel."""
    Q, _ = torch.linalg.qr(randn(batch, *shape, coils, 2, seed=1))
    mask = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(2)) < 0.4
    return Fourier(Q.movedim((-1, -2), (1, 2)).contiguous(), mask)


def dense(A: Fourier, shape: tuple[int, int]) -> torch.Tensor:
    """Return the matrix of A for its first batch element, column by column."""
    n = shape[0] * shape[1]
    basis = torch.eye(n, dtype=torch.complex64).reshape(n, *shape)
    return A(basis).flatten(1).T


@pytest.mark.parametrize("shape", SHAPES)
def test_fft_is_the_centred_orthonormal_sum(shape: tuple[int, int]) -> None:
    x = randn(1, *shape)
    k, r = (np.arange(n) - n // 2 for n in shape)
    Fa = np.exp(-2j * np.pi * np.outer(k, k) / shape[0]) / np.sqrt(shape[0])
    Fb = np.exp(-2j * np.pi * np.outer(r, r) / shape[1]) / np.sqrt(shape[1])
    np.testing.assert_allclose(centred_fft(x)[0].numpy(), Fa @ x[0].numpy() @ Fb.T, atol=2e-6)
    np.testing.assert_allclose(centred_ifft(centred_fft(x)).numpy(), x.numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (63, 48), (33, 65)])
def test_adjoint_holds_to_a_millionth_in_single_precision(shape: tuple[int, int]) -> None:
    A = sense(3, 4, shape)
    x, y = randn(3, *shape, seed=3), randn(3, 4, *shape, seed=4)
    Ax, AHy = A(x), A.H(y)
    left, right = inner(Ax.to(torch.complex128), y.to(torch.complex128)), inner(x.to(torch.complex128), AHy)
    scale = torch.linalg.vector_norm(Ax.flatten(1), dim=1) * torch.linalg.vector_norm(y.flatten(1), dim=1)
    assert torch.all((left - right).abs() / scale < 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_operator_and_adjoint_match_their_dense_matrices(shape: tuple[int, int]) -> None:
    A = sense(1, 3, shape)
    M = dense(A, shape)
    x, y = randn(1, *shape, seed=5), randn(1, 3, *shape, seed=6)
    torch.testing.assert_close(A(x).flatten(), M @ x.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(A.H(y).flatten(), M.conj().T @ y.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(A.normal(x).flatten(), M.conj().T @ (M @ x.flatten()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_sets_of_maps_match_their_dense_matrix_and_have_its_adjoint(shape: tuple[int, int]) -> None:
    A = soft_sense(1, 3, shape)
    n = 2 * shape[0] * shape[1]
    M = A(torch.eye(n, dtype=torch.complex64).reshape(n, 2, *shape)).flatten(1).T
    x, y = randn(1, 2, *shape, seed=5), randn(1, 3, *shape, seed=6)
    torch.testing.assert_close(A(x).flatten(), M @ x.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(A.H(y).flatten(), M.mH @ y.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(A.normal(x).flatten(), M.mH @ (M @ x.flatten()), atol=1e-5, rtol=1e-5)
    assert torch.linalg.matrix_norm(M, 2) <= 1 + 1e-6


@pytest.mark.parametrize("shape", [(64, 64), (63, 48)])
def test_the_adjoint_of_two_sets_holds_to_a_millionth_in_single_precision(shape: tuple[int, int]) -> None:
    A = soft_sense(3, 4, shape)
    x, y = randn(3, 2, *shape, seed=3), randn(3, 4, *shape, seed=4)
    Ax, AHy = A(x), A.H(y)
    left, right = inner(Ax.to(torch.complex128), y.to(torch.complex128)), inner(x.to(torch.complex128), AHy)
    scale = torch.linalg.vector_norm(Ax.flatten(1), dim=1) * torch.linalg.vector_norm(y.flatten(1), dim=1)
    assert torch.all((left - right).abs() / scale < 1e-6)


def test_an_empty_second_set_changes_nothing() -> None:
    A, x = sense(2, 3, (8, 9)), randn(2, 8, 9)
    both = Fourier(torch.stack([A.maps, torch.zeros_like(A.maps)], dim=1), A.mask)
    two = torch.stack([x, randn(2, 8, 9, seed=8)], dim=1)
    torch.testing.assert_close(both(two), A(x))
    torch.testing.assert_close(both.H(A(x))[:, 0], A.H(A(x)))
    assert (both.sets, A.sets) == (2, 1)
    torch.testing.assert_close(both.measured, A.measured)
    torch.testing.assert_close(both.support[:, 0], A.support)
    torch.testing.assert_close(magnitude(torch.stack([x, 0 * x], dim=1)), magnitude(x))


def test_operator_norm_is_at_most_one() -> None:
    A = sense(1, 3, (8, 9))
    assert torch.linalg.matrix_norm(dense(A, (8, 9)), 2) <= 1 + 1e-6


def test_inner_products_conjugate_their_first_argument() -> None:
    assert inner(torch.tensor([[1j]]), torch.tensor([[1.0 + 0j]])).item() == -1j


def test_conjugate_gradients_solve_each_batch_element() -> None:
    M = randn(4, 12, 12)
    H = M.conj().transpose(1, 2) @ M + torch.eye(12) * torch.tensor([0.5, 1.0, 5.0, 50.0])[:, None, None]
    b = randn(4, 12, seed=9)
    x = cg(lambda v: torch.einsum("nij,nj->ni", H, v), b, torch.zeros_like(b), iterations=40, tolerance=1e-7)
    torch.testing.assert_close(x, torch.linalg.solve(H, b), atol=1e-4, rtol=1e-4)


def test_conjugate_gradients_give_an_element_the_same_result_alone_and_in_a_batch() -> None:
    A = sense(3, 4, (16, 15))
    b = A.H(randn(3, 4, 16, 15, seed=7))
    together = cg(partial(_apply_shifted, A), b, torch.zeros_like(b), iterations=8)
    for i in range(3):
        one = Fourier(A.maps[i : i + 1], A.mask[i : i + 1])
        alone = cg(partial(_apply_shifted, one), b[i : i + 1], torch.zeros_like(b[:1]), iterations=8)
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=1e-5)


def _apply_shifted(A: Fourier, v: torch.Tensor) -> torch.Tensor:
    return v + 30 * A.normal(v)


def test_conjugate_gradients_leave_a_solved_system_and_a_zero_right_hand_side_alone() -> None:
    b = torch.stack([torch.zeros(6, dtype=torch.complex64), randn(6)])
    torch.testing.assert_close(cg(lambda v: v, b, b.clone(), iterations=5), b)


def test_measured_counts_acquired_samples_of_all_coils() -> None:
    A = sense(2, 4, (8, 8))
    assert A.measured.tolist() == (A.mask.flatten(1).sum(1) * 4).tolist()
