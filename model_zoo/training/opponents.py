"""Opponents: networks that learn to tell made images from true ones, while the main network learns not to be told.

A recipe with an ``Opponent`` names the images that its judges compare. Each judge is a patch discriminator (Isola et
al. 2017; MONAI's) with the least-squares loss (Mao et al. 2017), D the judge, x true and x_hat made:

    main network:  loss + adversarial_weight mean (D(x_hat) - 1)^2
    opponent:      1/2 mean (D(x) - 1)^2 + 1/2 mean D(x_hat)^2 + opponent_penalty / 2 mean |grad D(x)|^2  (R1)

or, with ``is_logistic``, the non-saturating loss, D giving the logit s of "true":

    main network:  loss + adversarial_weight mean softplus(-s(x_hat))                        (-log D(x_hat))
    opponent:      mean softplus(-s(x)) + mean softplus(s(x_hat)) + opponent_penalty / 2 mean |grad s(x)|^2

The opponent takes its step after the main network's, on the same images. It is part of the checkpoint, so that a
resumed run ends as an unbroken one, and of no bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from model_zoo.training import recipe
from model_zoo.training.parallel import World

__all__ = ["AdversarialConfiguration", "Judged", "Opponent", "OpponentRun", "Pair", "make_judge"]


@dataclass(frozen=True, kw_only=True)
class AdversarialConfiguration(recipe.Configuration):
    """``adversarial_weight``: 0 trains without an opponent. ``opponent_channels``: of a judge's first layer;
    ``opponent_rate``: its learning rate, with the schedule of the main network's; ``opponent_penalty``: weight of R1;
    ``opponent_every``: steps of the main network per step of the opponent.
    """

    adversarial_weight: float = 0.0
    opponent_channels: int = 32
    opponent_rate: float = 2e-4
    opponent_penalty: float = 1.0
    opponent_every: int = 1


C = TypeVar("C", bound=AdversarialConfiguration)


@dataclass(frozen=True)
class Pair:
    """Images that one judge compares: ``made`` by the network and ``true``, each (b, channels, k, j, i)."""

    made: Tensor
    true: Tensor


Judged = Mapping[str, Pair]
"""Images to compare, by the judge's name."""


@dataclass(frozen=True)
class Opponent(Generic[C]):
    """Definition of a recipe's opponent.

    ``make_judges(c)``: discriminators by name. ``compute_loss(network, batch, c)``: the main network's loss without the
    opponent's part, and the images to compare; a step may leave out judges. ``is_logistic``: see above.
    """

    make_judges: Callable[[C], Mapping[str, nn.Module]]
    compute_loss: Callable[[nn.Module, dict[str, Tensor], C], tuple[Tensor, Judged]]
    is_logistic: bool = False


def make_judge(channels: int, in_channels: int, dimensions: int = 3) -> nn.Module:
    """Return a discriminator of patches: values for fields of 34 voxels, features normalised in each image alone."""
    from monai.networks.nets import PatchDiscriminator

    judge: nn.Module = PatchDiscriminator(dimensions, channels, in_channels, num_layers_d=2, norm="INSTANCE")
    return judge


def _assess(judge: nn.Module, x: Tensor) -> Tensor:
    """Return the judge's values: 1 for true and 0 for made, or logits."""
    values: Tensor = judge(x)[-1]
    return values.float()


class _OpponentLoss(nn.Module):
    """Module from images to the opponent's loss, so that DistributedDataParallel sees every call within it."""

    def __init__(self, judges: nn.ModuleDict, penalty: float, *, is_logistic: bool) -> None:
        super().__init__()
        self.judges, self.penalty, self.is_logistic = judges, penalty, is_logistic

    def forward(self, judged: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        losses = [self._judge(self.judges[name], made, true) for name, (made, true) in judged.items()]
        return torch.stack(losses).sum()

    def _judge(self, judge: nn.Module, made: Tensor, true: Tensor) -> Tensor:
        true = true.requires_grad_(self.penalty > 0)
        of_true = _assess(judge, true)
        of_made = _assess(judge, made)
        if self.is_logistic:
            loss = functional.softplus(-of_true).mean() + functional.softplus(of_made).mean()
        else:
            loss = 0.5 * (of_true - 1).square().mean() + 0.5 * of_made.square().mean()
        if self.penalty:
            (gradient,) = torch.autograd.grad(of_true.sum(), true, create_graph=True)
            loss = loss + self.penalty / 2 * gradient.float().square().flatten(1).sum(1).mean()
        return loss


@dataclass(frozen=True)
class OpponentRun:
    """The opponent of one run: its judges, their loss and optimiser."""

    c: AdversarialConfiguration
    judges: nn.ModuleDict
    objective: nn.Module
    optimiser: torch.optim.Optimizer
    is_logistic: bool

    @classmethod
    def start(cls, opponent: Opponent[Any], c: AdversarialConfiguration, world: World) -> Self:
        judges = nn.ModuleDict(opponent.make_judges(c)).to(world.device)
        objective: nn.Module = _OpponentLoss(judges, c.opponent_penalty, is_logistic=opponent.is_logistic)
        if world.size > 1:
            own = [world.device] if world.device.type == "cuda" else None
            objective = DistributedDataParallel(objective, device_ids=own, find_unused_parameters=True)
        optimiser = torch.optim.AdamW(judges.parameters(), lr=c.opponent_rate, betas=(0.5, 0.99), fused=True)
        return cls(c, judges, objective, optimiser, opponent.is_logistic)

    def compute_network_loss(self, judged: Judged) -> Tensor:
        """Return what the judges add to the main network's loss; their own weights get no gradient from it."""
        self.judges.requires_grad_(False)
        values = [_assess(self.judges[name], pair.made) for name, pair in judged.items()]
        losses = [functional.softplus(-s).mean() if self.is_logistic else (s - 1).square().mean() for s in values]
        self.judges.requires_grad_(True)
        return self.c.adversarial_weight * torch.stack(losses).sum()

    def take_step(self, judged: Judged, step: int, rate: float) -> None:
        """Let the judges learn from these images. ``rate``: share of the largest learning rate."""
        if step % self.c.opponent_every:
            return
        for group in self.optimiser.param_groups:
            group["lr"] = self.c.opponent_rate * rate
        loss = self.objective({name: (pair.made.detach(), pair.true.detach()) for name, pair in judged.items()})
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def get_state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {"judges": self.judges.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.judges.load_state_dict(state["judges"])
        self.optimiser.load_state_dict(dict(state["optimiser"]))
