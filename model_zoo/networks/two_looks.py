"""Two networks of one model: where structures lie in an image, and then again, in what the image makes of that answer.

The first sees the image, whatever its contrast. Its answer is the prior of a mixture of Gaussians fitted to the very
image (``model_zoo.mixture``), whose posterior holds the image's edges but no contrast any more, only tissues that may
be right or wrong. The second sees that posterior beside the first's answer and corrects it: it learns anatomy instead
of contrasts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.mixture import GROUPS, group_of
from model_zoo.networks.volume_unet import VolumeUNet, depth_to_space, space_to_depth

__all__ = ["LEAST_PROBABILITY", "TwoLooks"]

LEAST_PROBABILITY = 1e-3
"""Added to what the second network sees, so that it can bring back what was ruled out."""


class TwoLooks(nn.Module):
    """float (b, 1, k, j, i) -> logits (b, classes, k / coarsen, ...) of the first network; then ``again``.

    ``channels``, ``blocks``, ``unshuffle`` and ``coarsen``: of the first network; ``again_channels``: of the second,
    whose first level has half the image's lattice. Sizes must be multiples of ``stride``.
    """

    def __init__(
        self,
        classes: int,
        channels: Sequence[int],
        blocks: int,
        unshuffle: int,
        coarsen: int,
        again_channels: Sequence[int],
    ) -> None:
        super().__init__()
        if coarsen != 2:
            raise ValueError(f"the second network takes an answer twice as coarse as the image, not {coarsen} times")
        self.first = VolumeUNet(
            1, classes, channels=channels, blocks=blocks, unshuffle=unshuffle, coarsen=coarsen, norm="group",
            coordinates=True,
        )  # fmt: skip
        self.second = VolumeUNet(
            8 * (1 + len(GROUPS)) + 2 * classes, 8 * classes, channels=again_channels, norm="group", coordinates=True
        )
        nn.init.zeros_(self.second.last.weight)
        nn.init.zeros_(self.second.last.bias)  # type: ignore[arg-type]  # torch types it as optional
        self.stride = max(self.first.stride, 2 * self.second.stride)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.first(x)
        return found

    def again(self, told: Tensor, prior: Tensor) -> Tensor:
        """Logits (b, classes, k, j, i) from ``told``, the classes' posterior (b, classes, k, j, i) of the mixture, and
        ``prior`` (b, classes, k / 2, j / 2, i / 2), the first network's answer that it was made of."""
        of_groups = told.new_zeros(told.shape[0], 1 + len(GROUPS), *told.shape[2:])
        of_groups.index_add_(1, group_of(told.device), told)
        seen = torch.cat([space_to_depth(of_groups, 2), functional.avg_pool3d(told, 2), prior], dim=1)
        return depth_to_space(self.second(seen), 2).float() + (told + LEAST_PROBABILITY).log()
