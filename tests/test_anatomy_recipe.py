"""The anatomy recipe: shares of structures on a coarser grid, balanced at first, then the refinement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import registry
from model_zoo.anatomy import has_refinement, keep_largest_component, refine
from model_zoo.bundle import Model
from model_zoo.evaluation.head_labels import label_structures
from model_zoo.mixture import GROUPS
from model_zoo.networks.refinement_cascade import LEAST_PROBABILITY, RefinementCascade
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import COUNT, number
from model_zoo.training import anatomy
from model_zoo.training.anatomy import CONFIGURATIONS
from model_zoo.training.recipe import make_simulated_sources, seeded
from tests.bundles import SPACING_MM, phantom, write_anatomy_bundle

SMOKE = CONFIGURATIONS["smoke"]


class _Constant(nn.Module):
    """Network with a constant answer."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def _make_batch(structure: Tensor, stage: float) -> dict[str, Tensor]:
    return {"image": torch.zeros(1), "structure": structure, "stage": torch.tensor(stage)}


def test_the_output_grid_is_coarser_where_asked() -> None:
    network = VolumeUNet(1, 3, channels=(8, 8), unshuffle=4, coarsen=2)
    assert network(torch.zeros(1, 1, 16, 24, 16)).shape == (1, 3, 8, 12, 8)
    assert network.stride == 8


@pytest.mark.parametrize("options", [{"unshuffle": 2, "coarsen": 4}, {"unshuffle": 4, "coarsen": 2, "refine": 4}])
def test_a_grid_that_the_network_does_not_have_is_refused(options: dict[str, int]) -> None:
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
    network = _Constant(shares.log())
    loss = anatomy.compute_loss(network, _make_batch(structure, 0.9), SMOKE)
    (gradient,) = torch.autograd.grad(loss, network.logits)
    assert float(gradient.abs().max()) < 1e-4
    for _ in range(5):
        other = _Constant(shares.log() + torch.randn(shares.shape))
        assert float(anatomy.compute_loss(other, _make_batch(structure, 0.9), SMOKE).detach()) > float(loss.detach())


def test_a_small_structure_weighs_most_at_the_beginning() -> None:
    structure = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
    structure[:, :4, :4, :4] = 7
    right = functional.one_hot(structure[:, ::2, ::2, ::2], COUNT + 1).movedim(-1, 1) * 8.0
    missed = right.clone()
    missed[:, 7] = 0

    def compute_loss(stage: float) -> float:
        c = replace(SMOKE, dice_weight=0.0)
        return float(anatomy.compute_loss(_Constant(missed), _make_batch(structure, stage), c).detach())

    assert compute_loss(0.0) > 1.3 * compute_loss(anatomy.BALANCED_SHARE) > 0
    assert compute_loss(anatomy.BALANCED_SHARE) == compute_loss(0.9)


@pytest.mark.slow
def test_the_evaluation_labels_at_1_mm_what_the_model_finds_on_its_own_grid(tmp_path: Path) -> None:
    write_anatomy_bundle(tmp_path)
    model = registry.load("anatomy", root=tmp_path)
    image, structure = (torch.from_numpy(x) for x in phantom())
    fine, truth = (_repeat_voxels(x, round(SPACING_MM)) for x in (image, structure))
    found = label_structures(model, fine)
    assert found.shape == truth.shape
    assert float((found == truth).float()[truth > 0].mean()) > 0.75


def _repeat_voxels(x: Tensor, times: int) -> Tensor:
    for axis in range(3):
        x = x.repeat_interleave(times, dim=axis)
    return x


@pytest.mark.parametrize(("step", "learns"), [(0, "first."), (2, "first."), (3, "second."), (5, "second.")])
def test_the_first_network_learns_first_and_the_second_after_it(step: int, learns: str) -> None:
    network = anatomy.make_network(SMOKE)
    source = replace(make_simulated_sources(phantom=True).train, step=step)
    names, parameters = zip(*network.named_parameters(), strict=True)
    with torch.no_grad():
        prepared = anatomy.prepare(network, anatomy.draw_batch(SMOKE, source, seeded(0, step)), SMOKE)
    loss = anatomy.compute_loss(network, prepared, SMOKE)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    moved = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    assert moved
    assert all(name.startswith(learns) for name in moved)


def test_the_first_network_is_trained_as_one_network_alone() -> None:
    torch.manual_seed(1)
    alone = VolumeUNet(
        1, COUNT + 1, channels=SMOKE.channels, blocks=1, unshuffle=4, coarsen=2, norm="group", coordinates=True
    )
    torch.manual_seed(1)
    network = anatomy.make_network(SMOKE)
    assert isinstance(network, RefinementCascade)
    assert all(torch.equal(p, q) for p, q in zip(alone.parameters(), network.first.parameters(), strict=True))
    batch = anatomy.draw_batch(SMOKE, make_simulated_sources(phantom=True).train, seeded(0, 0))
    assert torch.equal(anatomy.compute_loss(alone, batch, SMOKE), anatomy.compute_loss(network, batch, SMOKE))


def _make_untrained_cascade() -> RefinementCascade:
    """Return a cascade whose second network corrects nothing yet."""
    return RefinementCascade(COUNT + 1, (8, 8), 1, 4, 2, (8, 8))


def test_an_untrained_refinement_returns_its_input() -> None:
    posterior = torch.rand(1, COUNT + 1, 16, 16, 16, generator=seeded(1)).softmax(dim=1)
    found = _make_untrained_cascade().refine(posterior, functional.avg_pool3d(posterior, 2)).softmax(dim=1)
    expected = posterior + LEAST_PROBABILITY
    assert torch.allclose(found, expected / expected.sum(dim=1, keepdim=True), atol=1e-5)


def test_the_second_loss_is_least_at_the_truth() -> None:
    structure = make_phantom((16, 16, 16), 12.0).structure.long()[None]
    right = functional.one_hot(structure, COUNT + 1).movedim(-1, 1) * 12.0
    best = float(anatomy.compute_refinement_loss(right, structure, SMOKE))
    assert best < 0.01
    for n in range(3):
        noise = 6 * torch.randn(right.shape, generator=seeded(n))
        assert float(anatomy.compute_refinement_loss(right + noise, structure, SMOKE)) > best


@pytest.mark.slow
def test_the_refinement_takes_the_posterior_of_the_first_network() -> None:
    """The first network is off by a voxel; the untrained second passes on the mixture's posterior, on half the grid."""
    head = make_phantom((64, 64, 64), 3.0)
    level = torch.full((COUNT + 1,), 0.05)
    for g, names in enumerate(GROUPS):
        level[[number(name) for name in names]] = 0.9 - 0.1 * g
    image = (level[head.structure.long()] + 0.02 * torch.randn(64, 64, 64, generator=seeded(5))).clamp(0, 1)
    first = anatomy.compute_structure_shares(head.structure[None].long(), 2)[0].roll((1, 1), dims=(2, 3))
    settings = {"spacing_mm": 6.0, "shape": [32, 32, 32], "percentiles": [0, 100], "mixture": {"thin": 1}}
    model = Model("anatomy", "1", "", {}, _make_untrained_cascade(), settings, "cpu")
    found = refine(first, image, model)
    assert torch.allclose(found.sum(dim=0), torch.ones(64, 64, 64), atol=1e-4)
    before = functional.interpolate(first[None], scale_factor=2, mode="trilinear")[0].argmax(0)
    assert _mean_dice(found.argmax(0), head.structure) > _mean_dice(before, head.structure) + 0.1


@pytest.mark.slow
def test_nothing_is_refined_far_from_the_brain() -> None:
    """An image grows by air on one side: the answer is the same, and background there."""
    head = make_phantom((64, 64, 64), 3.0)
    image = (0.2 + 0.03 * head.structure.float() + 0.02 * torch.randn(64, 64, 64, generator=seeded(5))).clamp(0.25, 0.8)
    first = anatomy.compute_structure_shares(head.structure[None].long(), 2)[0]
    settings = {"spacing_mm": 6.0, "shape": [32, 32, 32], "percentiles": [0, 100], "mixture": {"thin": 1}}
    model = Model("anatomy", "1", "", {}, _make_untrained_cascade(), settings, "cpu")
    found = refine(first, image, model)
    air = functional.one_hot(torch.zeros(32, 32, 16, dtype=torch.int64), COUNT + 1).movedim(-1, 0).float()
    wider = refine(torch.cat([first, air], 3), functional.pad(image, (0, 32), value=0.25), model)
    assert torch.equal(wider[..., :64], found)
    assert torch.equal(wider[0, ..., 64:], torch.ones(64, 64, 32))


def test_a_model_of_one_network_cannot_refine(tmp_path: Path) -> None:
    write_anatomy_bundle(tmp_path)
    model = registry.load("anatomy", root=tmp_path)
    assert not has_refinement(model)
    with pytest.raises(TypeError, match="no second network"):
        refine(torch.zeros(COUNT + 1, 4, 4, 4), torch.zeros(8, 8, 8), model)


def _mean_dice(found: Tensor, truth: Tensor) -> float:
    scores = anatomy.score_structures(found, truth)
    return sum(scores.values()) / len(scores)


def test_the_largest_component_is_that_of_monai() -> None:
    from monai.transforms.utils import get_largest_connected_component_mask

    p = torch.rand(2, 12, 12, 12, generator=torch.Generator().manual_seed(1))
    p[1] -= 0.2  # few enough voxels for several components
    expected = get_largest_connected_component_mask(p.argmax(dim=0) > 0, connectivity=1)
    before = p.argmax(dim=0) > 0
    inside = keep_largest_component(p)
    assert torch.equal(inside, expected)
    assert 0 < int(inside.sum()) < int(before.sum())
    assert torch.equal(p.argmax(dim=0) > 0, inside)


def test_without_any_structure_all_is_background() -> None:
    p = torch.tensor([1.0, 0.0])[:, None, None, None].expand(2, 4, 4, 4).clone()
    assert not keep_largest_component(p).any()
