"""A cascade of two networks: the first segments the image, the second refines the result.

The first network takes the image, of any contrast. Its probabilities are the prior of a Gaussian mixture fitted to the
same image (``model_zoo.mixture``). The posterior holds the image's edges but no contrast any more, only tissues that
may be right or wrong. The second network takes that posterior and the first network's probabilities and corrects them:
it learns anatomy instead of contrasts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.mixture import GROUPS, class_groups
from model_zoo.networks.volume_unet import VolumeUNet, depth_to_space, space_to_depth

__all__ = ["LEAST_PROBABILITY", "RefinementCascade"]

LEAST_PROBABILITY = 1e-3
"""Value added to the second network's input posterior, so that the network can restore a class of probability zero."""


class RefinementCascade(nn.Module):
    """Cascade: float (b, 1, k, j, i) -> logits (b, classes, k / coarsen, ...) of the first network; then ``refine``.

    ``channels``, ``blocks``, ``unshuffle`` and ``coarsen`` belong to the first network, ``again_channels`` to the
    second, whose first level has half the image's grid. Sizes must be multiples of ``stride``.
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
            raise ValueError(f"the second network takes probabilities twice as coarse as the image, not {coarsen}")
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
        logits: Tensor = self.first(x)
        return logits

    def refine(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Return the second network's logits (b, classes, k, j, i).

        ``posterior`` (b, classes, k, j, i): class probabilities of the mixture; ``prior`` (b, classes, k / 2, j / 2,
        i / 2): the first network's probabilities, from which the mixture was fitted.
        """
        of_groups = posterior.new_zeros(posterior.shape[0], 1 + len(GROUPS), *posterior.shape[2:])
        of_groups.index_add_(1, class_groups(posterior.device), posterior)
        x = torch.cat([space_to_depth(of_groups, 2), functional.avg_pool3d(posterior, 2), prior], dim=1)
        return depth_to_space(self.second(x), 2).float() + (posterior + LEAST_PROBABILITY).log()
