"""What the anatomy model learns from: shares of structures on a coarser lattice, balanced at first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import registry
from model_zoo.evaluation.anatomy import label
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.structures import COUNT
from model_zoo.training import anatomy
from model_zoo.training.anatomy import CONFIGURATIONS
from tests.bundles import SPACING_MM, phantom, write_anatomy_bundle

SMOKE = CONFIGURATIONS["smoke"]


class _Known(nn.Module):
    """A network whose answer is given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def _drawn(structure: Tensor, progress: float) -> dict[str, Tensor]:
    return {"image": torch.zeros(1), "structure": structure, "progress": torch.tensor(progress)}


def test_the_output_lattice_is_coarser_where_asked() -> None:
    network = VolumeUNet(1, 3, channels=(8, 8), unshuffle=4, coarsen=2)
    assert network(torch.zeros(1, 1, 16, 24, 16)).shape == (1, 3, 8, 12, 8)
    assert network.stride == 8


@pytest.mark.parametrize("options", [{"unshuffle": 2, "coarsen": 4}, {"unshuffle": 4, "coarsen": 2, "refine": 4}])
def test_a_lattice_that_the_network_does_not_have_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="coarser"):
        VolumeUNet(1, 3, channels=(8, 8), **options)  # type: ignore[arg-type]  # a dictionary of integers


def test_the_loss_is_least_where_the_answer_is_the_share_of_each_structure() -> None:
    structure = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    structure[:, :2, :2, 0] = 5
    structure[:, 2:] = 9
    shares = torch.full((1, COUNT + 1, 2, 2, 2), 1e-9)
    for block in [(k, j, i) for k in (0, 1) for j in (0, 1) for i in (0, 1)]:
        k, j, i = (slice(2 * n, 2 * n + 2) for n in block)
        for value in structure[0, k, j, i].flatten().tolist():
            shares[(0, value, *block)] += 1 / 8
    network = _Known(shares.log())
    loss = anatomy.loss(network, _drawn(structure, 1.0), SMOKE)
    (gradient,) = torch.autograd.grad(loss, network.logits)
    assert float(gradient.abs().max()) < 1e-4
    for _ in range(5):
        other = _Known(shares.log() + torch.randn(shares.shape))
        assert float(anatomy.loss(other, _drawn(structure, 1.0), SMOKE).detach()) > float(loss.detach())


def test_a_small_structure_weighs_most_at_the_beginning() -> None:
    structure = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
    structure[:, :4, :4, :4] = 7
    right = functional.one_hot(structure[:, ::2, ::2, ::2], COUNT + 1).movedim(-1, 1) * 8.0
    missed = right.clone()
    missed[:, 7] = 0

    def price(progress: float) -> float:
        c = replace(SMOKE, dice_weight=0.0)
        return float(anatomy.loss(_Known(missed), _drawn(structure, progress), c).detach())

    assert price(0.0) > 1.3 * price(anatomy.BALANCED_SHARE) > 0
    assert price(anatomy.BALANCED_SHARE) == price(1.0)


def test_the_evaluation_labels_at_1_mm_what_the_model_finds_on_its_own_lattice(tmp_path: Path) -> None:
    write_anatomy_bundle(tmp_path)
    model = registry.load("anatomy", root=tmp_path)
    image, structure = (torch.from_numpy(x) for x in phantom())
    fine, truth = (_repeated(x, round(SPACING_MM)) for x in (image, structure))
    found = label(model, fine)
    assert found.shape == truth.shape
    assert float((found == truth).float()[truth > 0].mean()) > 0.75


def _repeated(x: Tensor, times: int) -> Tensor:
    for axis in range(3):
        x = x.repeat_interleave(times, dim=axis)
    return x
