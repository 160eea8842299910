"""Adaptation of a prior to an acquisition: the weights that change, those that do not, and the stopping rule."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model_zoo import adaptation, samplers
from model_zoo.classical import cg_sense
from model_zoo.denoisers import Denoiser
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.operators import Fourier

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

N, SIGMA_DATA, SIGMA_Y = 16, 0.3, 0.2
SIGMAS = [0.5, 0.0]


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=make_generator(seed)))


def unet() -> LocalUNet:
    """Return a small network with weights of every layer in use."""
    torch.manual_seed(0)
    network = LocalUNet(channels=(8, 8), blocks=1)
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.05 * torch.randn(weights.shape))
    return network.eval().requires_grad_(False)


class Gain(nn.Module):
    """Network F(x) = w x. It makes the denoiser linear, and the best w has a closed form."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.conv.weight.data.fill_(0.0)
        self.requires_grad_(False)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        output: Tensor = self.conv(x.flatten(0, 1)[:, None]).reshape(x.shape)
        return output


def acquisition(images: int = 1, scale: float = 1.0) -> tuple[Fourier, Tensor]:
    """Return operator and k-space (two coils, 70 %) of white images of ``scale`` times the denoiser's expected sd."""
    S = randn(1, 2, N, N, seed=1)
    S = (S / S.abs().pow(2).sum(1, keepdim=True).sqrt()).repeat(images, 1, 1, 1)
    mask = torch.rand(images, N, N, generator=make_generator(9)) < 0.7
    mask[:, 4:12, 4:12] = True
    A = Fourier(S, mask)
    x = scale * SIGMA_DATA * randn(images, N, N, seed=2)
    return A, A(x) + SIGMA_Y * mask[:, None] * randn(images, 2, N, N, seed=3)


def adapt(
    network: nn.Module, A: Fourier, y: Tensor, settings: adaptation.Settings, seed: int = 5
) -> adaptation.Adaptation:
    stride = int(network.stride)  # type: ignore[arg-type]  # a module's attributes are untyped
    return adaptation.adapt(
        network,
        lambda module: Denoiser(module, SIGMA_DATA, stride),
        A,
        y,
        SIGMAS,
        sigma_y=torch.full((len(y),), SIGMA_Y),
        sigma_data=SIGMA_DATA,
        settings=settings,
        generator=make_generator(seed),
    )


def test_additions_that_start_at_zero_leave_the_output_bit_for_bit() -> None:
    network = unet()
    x, level = torch.randn(2, 2, N, N, generator=make_generator()), torch.zeros(2)
    assert torch.equal(adaptation.LowRankNetwork(network, 4, make_generator())(x, level), network(x, level))


def test_gradients_reach_the_additions_alone_and_only_convolutions_have_some() -> None:
    network = unet()
    adapted = adaptation.LowRankNetwork(network, 2, make_generator())
    adapted(torch.randn(1, 2, N, N, generator=make_generator()), torch.zeros(1)).square().sum().backward()
    assert all(weights.grad is None for weights in network.parameters())
    assert all(B.grad is not None and B.grad.abs().sum() > 0 for B in adapted.B)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert len(adapted.B) == len(adapted.C) == len(convolutions)
    assert all(B.shape[1] <= 2 for B in adapted.B)
    assert len(list(adapted.parameters())) == 2 * len(convolutions)


def test_the_network_is_untouched_and_the_same_seed_gives_the_same_additions() -> None:
    network = unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    A, y = acquisition()
    settings = adaptation.Settings(steps=4, learning_rate=1e-3, partitions=1, check_every=2)
    first, second, other = (adapt(network, A, y, settings, seed) for seed in (5, 5, 6))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(weights.requires_grad for weights in network.parameters())
    assert (first.before, first.after, first.steps) == (second.before, second.after, second.steps)
    assert other.before != first.before
    x, level = torch.randn(1, 2, N, N, generator=make_generator()), torch.zeros(1)
    assert torch.equal(first.network(x, level), second.network(x, level))


@pytest.mark.slow
def test_a_prior_of_other_data_learns_the_gain_that_predicts_what_it_was_not_given() -> None:
    A, y = acquisition(images=8, scale=4.0)
    settings = adaptation.Settings(rank=1, steps=200, learning_rate=0.03, partitions=3, check_every=50)
    network = Gain()
    found = adapt(network, A, y, settings)
    assert found.after < 0.6 * found.before
    w = adapted_gain(found.network)
    best = best_gain(A, y)
    assert best > 1
    assert w == pytest.approx(best, rel=0.05)
    assert float(network.conv.weight) == 0


def adapted_gain(network: nn.Module) -> float:
    one = torch.ones(1, 2, 1, 1)
    return float(network(one, torch.zeros(1)).mean())


def best_gain(A: Fourier, y: Tensor) -> float:
    """Return the least-squares w over another split of the samples; the residual is affine in w."""
    split = adaptation.split_samples(A.mask, adaptation.TARGET_FRACTION, make_generator(77))
    A_input, A_target = Fourier(A.maps, split.inputs), Fourier(A.maps, split.targets)
    sigma_y = torch.full((len(y),), SIGMA_Y)
    y_input, y_target = y * split.inputs[:, None], y * split.targets[:, None]
    correct = samplers.make_correction(A_input, y_input, sigma_y=sigma_y, sigma_data=SIGMA_DATA)
    x = cg_sense(A_input, y_input, ridge=0.05, iterations=10)
    above = below = 0.0
    for sigma in SIGMAS[:-1]:
        at: list[Tensor] = []
        for w in (0.0, 1.0):
            network = Gain()
            network.conv.weight.fill_(w)
            at.append(A_target(correct(Denoiser(network, SIGMA_DATA, 1)(x, sigma), sigma)))
        slope, rest = at[1] - at[0], y_target - at[0]
        weight = 1 / float(rest.abs().square().sum())
        above += weight * float((slope.conj() * rest).sum().real)
        below += weight * float(slope.abs().square().sum())
        x = correct(Denoiser(Gain(), SIGMA_DATA, 1)(x, sigma), sigma)
    return above / below


def test_where_nothing_helps_the_prior_itself_comes_back() -> None:
    A, y = acquisition()
    network = unet()
    found = adapt(network, A, y, adaptation.Settings(steps=6, learning_rate=30.0, partitions=1, check_every=2))
    assert found.network is network
    assert found.after == found.before
    assert found.steps == 2 * adaptation.PATIENCE


def test_samples_are_parted_by_lines_where_lines_were_sampled_and_the_centre_is_always_given() -> None:
    lines = torch.zeros(2, N, 40, dtype=torch.bool)
    lines[:, :, ::2] = True
    lines[:, :, 14:26] = True
    split = adaptation.split_samples(lines, 0.25, make_generator())
    assert torch.equal(split.inputs | split.targets, lines)
    assert not bool((split.inputs & split.targets).any())
    assert not bool(split.targets[:, :, 16:24].any())
    assert bool((split.targets.any(1) == split.targets.all(1)).all())
    assert not torch.equal(split.targets[0], split.targets[1])
    points = torch.rand(2, 40, 40, generator=make_generator(1)) < 0.4
    split = adaptation.split_samples(points, 0.25, make_generator())
    assert torch.equal(split.inputs | split.targets, points)
    assert float(split.targets.sum() / points.sum()) == pytest.approx(0.25, abs=0.03)
    assert not bool((split.targets.any(1) == split.targets.all(1)).all())


def test_with_the_centre_alone_there_is_nothing_to_ask_and_nothing_is_adapted() -> None:
    A, y = acquisition()
    centre = torch.zeros_like(A.mask)
    centre[:, 4:12, 4:12] = True
    network = unet()
    found = adapt(network, replace(A, mask=centre), y * centre[:, None], adaptation.Settings(steps=4))
    assert found.network is network
    assert found.steps == 0
