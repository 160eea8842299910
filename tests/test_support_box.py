"""The prior computes the box around what the coils see, and nothing where they see nothing."""

import pytest
import torch
from torch import Tensor, nn

from model_zoo.bundle import Model
from model_zoo.operators import Fourier
from pipelines import inversion
from pipelines.encoding import PRESCAN, Problem

N = 64
pytestmark = pytest.mark.fast

OPTIONS = inversion.Options(mean_steps=2)


class Witness(nn.Module):
    """A network that keeps the sizes of what it saw and changes nothing."""

    stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.sizes.add(tuple(x.shape[-2:]))
        return torch.zeros_like(x)


def reconstruct(visible: Tensor, network: Witness) -> Tensor:
    """Return estimate and a sample, stacked, of two white slices of which the coil sees ``visible`` (slice, a, b)."""
    y = torch.view_as_complex(torch.randn(2, 1, N, N, 2, generator=torch.Generator().manual_seed(1)))
    A = Fourier(visible[:, None].to(torch.complex64), torch.ones(2, N, N, dtype=torch.bool))
    problem = Problem(A, y, torch.full((2,), 0.02), torch.ones(2, N, N), 0.02, "one coil", PRESCAN)
    model = Model("witness", "1", "", {}, network, {"sigma_data": 0.3}, "cpu", False)
    x = inversion.estimate_slices(problem, model, OPTIONS)
    return torch.stack([x, inversion.draw_samples(problem, model, OPTIONS, [1, 2], x)])


def test_the_prior_sees_the_box_around_the_support_of_all_slices_with_a_margin() -> None:
    network, visible = Witness(), torch.zeros(2, N, N)
    visible[0, 20:30, 30:40] = 1
    visible[1, 22:36, 28:38] = 1
    found = reconstruct(visible, network)
    assert network.sizes == {(32, 32)}  # rows 20 to 35 and columns 28 to 39, 8 pixels more on each side, by 8
    assert bool((found.abs()[:, visible == 0] == 0).all())
    assert bool((found.abs()[:, visible == 1] > 0).all())


def test_a_box_with_its_margin_ends_at_the_edges_of_the_image() -> None:
    network, visible = Witness(), torch.zeros(2, N, N)
    visible[:, 0:62, 5:64] = 1
    reconstruct(visible, network)
    assert network.sizes == {(N, N)}


def test_slices_that_no_coil_sees_are_zero() -> None:
    found = reconstruct(torch.zeros(2, N, N), Witness())
    assert float(found.abs().max()) == 0
