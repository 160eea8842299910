"""Whitening, noise level, compression and ESPIRiT, against their definitions and against sigpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo import coils
from model_zoo.operators import centred_fft, centred_ifft

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)))


def load_scan(kit: Path) -> Tensor:
    """Return k-space (8, k, j) of a brain."""
    return torch.from_numpy(np.load(kit / "kspace" / "sigpy-brain-8ch" / "cartesian_ksp.npy"))


def simulate_coils(n: int = 96, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return maps (coil, n, n) of smooth coils, normalised on an ellipse, object (n, n) and k-space without noise."""
    a, b = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    inside = (a**2 + (b / 0.8) ** 2 < 0.6).float()
    angle = torch.arange(count) * 2 * torch.pi / count
    far = (a - 1.3 * torch.cos(angle)[:, None, None]) ** 2 + (b - 1.3 * torch.sin(angle)[:, None, None]) ** 2
    S = torch.polar(torch.exp(-far / 1.5), 0.8 * (a * torch.sin(angle)[:, None, None] + b + angle[:, None, None]))
    S = S / S.abs().pow(2).sum(0).sqrt()
    x = torch.polar(inside * (1 + 0.4 * torch.cos(9 * a) * torch.sin(7 * b)), 0.5 * a * b)
    return S, x, centred_fft(S * x)


def centre(y: Tensor, size: int = 24) -> Tensor:
    a, b = (n // 2 - size // 2 for n in y.shape[-2:])
    return y[..., a : a + size, b : b + size]


def compare(found: Tensor, true: Tensor, inside: Tensor) -> tuple[float, float]:
    """Return the smallest |<s, t>| over the object and the largest residual of t outside span(s), of unit vectors."""
    s, t = found[:, inside], true[:, inside]
    along = (s.conj() * t).sum(0)
    return float(along.abs().min()), float((t - s * along).abs().pow(2).sum(0).sqrt().max())


def test_whitened_noise_has_unit_variance_and_no_correlation() -> None:
    L = torch.tril(randn(4, 4, seed=1)) + 2 * torch.eye(4)
    noise = L @ randn(4, 20000)
    W = coils.whitening_matrix(coils.noise_covariance(noise))
    white = coils.noise_covariance(W.to(torch.complex64) @ noise)
    torch.testing.assert_close(white, torch.eye(4, dtype=white.dtype), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        coils.noise_covariance(W.to(torch.complex64) @ L @ randn(4, 20000, seed=9)), white, atol=0.03, rtol=0
    )


@pytest.mark.parametrize("undersampled", ["lines", "points"])
def test_noise_level_is_found_from_undersampled_data(undersampled: str) -> None:
    _, _, y = simulate_coils()
    y = y + 0.03 * randn(*y.shape, seed=3)
    mask = torch.rand(96, 96, generator=torch.Generator().manual_seed(4)) < 0.4
    if undersampled == "lines":
        mask = mask[:1].expand(96, 96)
    level = coils.estimate_noise_level((y * mask)[None], mask[None])
    assert level.shape == (6,)
    assert torch.all((level / 0.03 - 1).abs() < 0.2)


def test_noise_level_ignores_samples_that_a_filter_zeroed() -> None:
    y = 0.03 * randn(1, 2, 96, 96)
    r = (torch.arange(96) - 48).abs() / 48
    y = torch.where(torch.hypot(r[:, None], r[None, :]) < 1, y, 1e-12 * y)
    level = coils.estimate_noise_level(y, torch.ones(1, 96, 96, dtype=torch.bool))
    assert torch.all((level / 0.03 - 1).abs() < 0.3)


def test_compression_loses_at_most_what_was_asked_and_keeps_white_noise_white() -> None:
    _, _, y = simulate_coils()
    calibration = (centre(y) / y.abs().max() * 3e3 + randn(6, 24, 24))[None]
    counts = []
    for loss in (1e-3, 1e-2, 0.1):
        M = coils.compression_matrix(calibration, loss=loss)
        assert coils.compression_loss(M, calibration) <= loss
        torch.testing.assert_close(M @ M.conj().T, torch.eye(len(M), dtype=M.dtype), atol=1e-8, rtol=0)
        counts.append(len(M))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 6


def test_the_loss_is_the_share_of_a_coil_that_alone_sees_a_place() -> None:
    """Two coils see one half of the object each; leaving one out loses all of its half."""
    x = torch.zeros(1, 2, 24, 24, dtype=torch.complex64)
    x[0, 0, 4:12, 4:20], x[0, 1, 12:20, 4:20] = 10.0, 100.0
    y = 1e3 * centred_fft(x)
    loss = coils.compression_loss(torch.tensor([[0.0, 1.0]]), y)
    assert loss == pytest.approx(1.0, abs=1e-3)
    assert coils.compression_loss(torch.eye(2), y) == pytest.approx(0.0, abs=1e-6)
    assert len(coils.compression_matrix(y, loss=1e-3)) == 2


def test_noise_alone_is_no_loss() -> None:
    calibration = torch.cat([1e4 * centre(simulate_coils()[2])[:1], randn(3, 24, 24)])[None]
    assert len(coils.compression_matrix(calibration, loss=1e-3)) == 1


def test_two_sets_are_orthogonal_and_explain_an_object_that_folds_over_itself() -> None:
    S, x, _ = simulate_coils()
    folded = fold(S * x)
    found = coils.estimate_espirit_sets(centre(centred_fft(folded) + 0.002 * randn(6, 96, 48)), (96, 48))
    both = (found.values[1] > 0.95) & (folded.abs().pow(2).sum(0) > 0)
    assert int(both.sum()) > 100
    first, second = found.maps[:, :, both]
    assert float((first.conj() * second).sum(0).abs().max()) < 1e-4
    image = folded[:, both]
    rest = image - sum(s * (s.conj() * image).sum(0) for s in (first, second))
    one = image - first * (first.conj() * image).sum(0)
    assert float(torch.linalg.vector_norm(rest)) < 0.1 * float(torch.linalg.vector_norm(image))
    assert float(torch.linalg.vector_norm(rest)) < 0.3 * float(torch.linalg.vector_norm(one))


def fold(received: Tensor) -> Tensor:
    """Return images (coil, a, 96) as a field of view of 48 pixels shows them."""
    return received[..., 24:72] + torch.cat([received[..., 72:], received[..., :24]], dim=-1)


def test_energy_outside_the_maps_shows_a_fold_that_they_do_not_explain_and_no_noise() -> None:
    S, x, _ = simulate_coils()
    y = 1e3 * centred_fft(fold(S * x)) + randn(6, 96, 48)
    calibration, shape, block = centre(y), (96, 48), ((36, 60), (12, 36))
    images = coils.make_low_pass_images(calibration, shape, block)[None]
    maps = coils.estimate_espirit_sets(calibration, shape).maps[None]
    variance = coils.low_pass_variance(shape, block)
    assert float(coils.measure_unexplained(maps[:, 0], images, variance)) > 0.5
    assert float(coils.measure_unexplained(maps, images, variance)) < 0.05
    silence = coils.make_low_pass_images(randn(6, 24, 24, seed=3), shape, block)[None]
    assert float(silence.abs().pow(2).mean()) == pytest.approx(variance, rel=0.1)
    assert float(coils.measure_unexplained(maps, silence, variance)) < 0.05


def test_an_object_inside_the_field_of_view_has_one_set() -> None:
    _, x, y = simulate_coils()
    found = coils.estimate_espirit_sets(centre(y + 0.002 * randn(*y.shape, seed=5)), (96, 96))
    assert float(found.values[1][x.abs() > 0].max()) < 0.9


def test_espirit_finds_the_simulated_maps_from_the_calibration_block() -> None:
    S, x, y = simulate_coils()
    maps = coils.estimate_espirit_maps(centre(y + 0.002 * randn(*y.shape, seed=5)), (96, 96))
    inside = x.abs() > 0
    correlation, residual = compare(maps, S, inside & (maps.abs().sum(0) > 0))
    assert correlation > 0.995
    assert residual < 0.1
    assert (maps.abs().sum(0) > 0)[inside].float().mean() > 0.98


def test_espirit_maps_are_normalised_on_a_support_and_zero_elsewhere() -> None:
    maps = coils.estimate_espirit_maps(centre(simulate_coils()[2]), (96, 90))
    power = maps.abs().pow(2).sum(0)
    assert bool(torch.all(((power - 1).abs() < 1e-4) | (power == 0)))
    assert maps.shape == (6, 96, 90)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["simulated", "scanner"])
def test_espirit_agrees_with_sigpy(source: str, request: pytest.FixtureRequest) -> None:
    mri = pytest.importorskip("sigpy.mri", reason="sigpy, the reference implementation, is not installed")
    y = simulate_coils()[2] if source == "simulated" else load_scan(request.getfixturevalue("kit"))
    app = mri.app.EspiritCalib(
        y.numpy(), calib_width=24, thresh=0.02, kernel_width=6, crop=0.95, max_iter=100, show_pbar=False
    )
    reference = torch.from_numpy(app.run())
    maps = coils.estimate_espirit_maps(centre(y), (y.shape[1], y.shape[2]))
    own_support, reference_support = maps.abs().sum(0) > 0, reference.abs().sum(0) > 0
    assert float((own_support == reference_support).float().mean()) > 0.99
    correlation, residual = compare(maps, reference, own_support & reference_support)
    assert correlation > 0.998
    assert residual < 0.07
    image = centred_ifft(y)[:, own_support & reference_support]
    residuals = []
    for s in (maps[:, own_support & reference_support], reference[:, own_support & reference_support]):
        residuals.append(float(torch.linalg.vector_norm(image - s * (s.conj() * image).sum(0))))
    assert residuals[0] == pytest.approx(residuals[1], rel=0.02)


def test_low_pass_maps_follow_smooth_coils() -> None:
    S, x, y = simulate_coils()
    maps = coils.estimate_low_pass_maps(centre(y, 12), (96, 96), ((42, 54), (42, 54)))
    inside = (x.abs() > 0) & (maps.abs().sum(0) > 0)
    s, t = maps[:, inside], S[:, inside]
    assert float((s.conj() * t).sum(0).abs().median()) > 0.98
