"""Loss of the engines ``regression`` and ``adversarial``: error, SSIM, lesions and the scale of the error.

    L = mean |T - G| + w_s (1 - SSIM) + w_e sum(E |T - G|) / sum(E) + w_b Laplace(T - G; b)

E is the emphasis (lesions). b is learned on the detached residual: it describes the error and does not excuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model_zoo import similarity
from model_zoo.training.dir_losses import weighted_mean
from model_zoo.training.opponents import Judged, Pair, make_judge
from model_zoo.translation import network as networks
from model_zoo.translation.network import Conditions

if TYPE_CHECKING:
    from model_zoo.training.translation import Configuration

__all__ = ["compute_judged_loss", "estimate", "make_judges", "measure_ssim"]


def make_judges(c: Configuration) -> dict[str, nn.Module]:
    """Return the judge of volumes. Raises ValueError for a plan of slices."""
    if c.plan.slices:
        raise ValueError(
            f"an opponent judges volumes, and the plan {c.plan.name} is of slices: adversarial_weight is 0"
        )
    return {"target": make_judge(c.opponent_channels, 2 * len(c.plan.sources) + 1)}


def compute_judged_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    """Return the loss, and the target with the input that it was made from."""
    mean, log_b = networks.split_output(networks.apply_network(network, batch["input"], Conditions.stack(batch)))
    target, weight, emphasis = batch["target"], batch["weight"], batch["emphasis"]
    residual = (target - mean).abs()
    total = weighted_mean(residual, weight)
    total = total + c.ssim_weight * (1 - weighted_mean(measure_ssim(mean, batch), weight))
    total = total + c.emphasis_weight * (emphasis * residual).sum() / emphasis.sum().clamp(min=1.0)
    total = total + c.laplace_weight * weighted_mean(residual.detach() / log_b.exp() + log_b, weight)
    if c.plan.slices:
        return total, {}
    made, true = (torch.cat([batch["input"], x], dim=1) for x in (mean, target))
    return total, {"target": Pair(made, true)}


def measure_ssim(mean: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the map of SSIM; a slice is repeated along k, so that its window is full."""
    span = batch["span"][:, None, None, None, None]
    made, true = mean / span, batch["target"] / span
    if mean.shape[2] > 1:
        return similarity.ssim_map(made, true, 1.0)
    repeated = [x.expand(-1, -1, similarity.WINDOW, -1, -1).contiguous() for x in (made, true)]
    middle = similarity.WINDOW // 2
    return similarity.ssim_map(repeated[0], repeated[1], 1.0)[:, :, middle : middle + 1]


def estimate(network: nn.Module, batch: Mapping[str, Tensor], c: Configuration) -> tuple[Tensor, Tensor]:
    """Return the scaled target of each item and the standard deviation of its error, each (b, 1, k, j, i)."""
    mean, log_b = networks.split_output(networks.apply_network(network, batch["input"], Conditions.stack(batch)))
    return mean, 2**0.5 * log_b.exp()
