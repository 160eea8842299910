"""Space to depth and back, in the order of channels with which the shipped weights were trained."""

from __future__ import annotations

import pytest
import torch

from model_zoo.networks.volume_unet import VolumeUNet, depth_to_space, space_to_depth


@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_channels_are_ordered_by_channel_then_place_in_the_block(r: int, layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4 * r, 2 * r, 6 * r, generator=torch.Generator().manual_seed(r))
    places = [x[:, :, k::r, j::r, i::r] for k in range(r) for j in range(r) for i in range(r)]
    expected = torch.stack(places, dim=2).flatten(1, 2)
    channels = space_to_depth(x.contiguous(memory_format=layout), r)
    assert torch.equal(channels, expected)
    assert torch.equal(depth_to_space(channels, r), x)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_blocks_are_those_of_monai(r: int) -> None:
    from monai.networks.utils import pixelshuffle, pixelunshuffle

    x = torch.randn(2, 3, 4 * r, 2 * r, 6 * r, generator=torch.Generator().manual_seed(r))
    channels = space_to_depth(x, r)
    assert torch.equal(channels, pixelunshuffle(x, 3, r))
    assert torch.equal(depth_to_space(channels, r), pixelshuffle(channels, 3, r))


def test_sizes_that_blocks_do_not_fill_are_refused() -> None:
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        space_to_depth(torch.zeros(1, 1, 5, 4, 4), 2)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        depth_to_space(torch.zeros(1, 9, 2, 2, 2), 2)


def test_blocks_of_integers_keep_their_type() -> None:
    labels = torch.arange(64).reshape(1, 1, 4, 4, 4)
    assert torch.equal(space_to_depth(labels, 2)[0, :, 0, 0, 0], torch.tensor([0, 1, 4, 5, 16, 17, 20, 21]))


@pytest.mark.slow
def test_blocks_on_the_full_grid_let_the_embedding_choose_a_target_voxel_by_voxel() -> None:
    """Four targets of white noise, two of them negatives: an error of 0.17 is left without such blocks."""
    torch.manual_seed(0)
    network = VolumeUNet(2, 1, (8, 16), unshuffle=2, refine=4, refine_blocks=2, embedding=4, norm="soft")
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    generator, codes, errors = torch.Generator().manual_seed(1), torch.eye(4), []
    for _ in range(480):
        x = torch.rand(4, 2, 8, 8, 8, generator=generator)
        target = torch.stack([x[0, 0], 1 - x[1, 0], x[2, 1], 1 - x[3, 1]])[:, None]
        error = (network(x, codes) - target).abs().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert sum(errors[-20:]) / 20 < 0.08
