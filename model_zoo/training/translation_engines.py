"""Training of each engine of translation: its configuration, loss, opponent and validation.

The engine ``flow`` trains the mean up to the configuration's restart, and from there a second network: the velocity of
``translation.flow``, by its squared error. ``latent`` trains the autoencoder up to there, then the velocity of its
latents (``latent_losses``). ``syndiff`` trains its generators against four judges (``syndiff_losses``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from model_zoo.training import latent_losses, syndiff_losses
from model_zoo.training import translation_losses as losses
from model_zoo.training.dir_losses import weighted_mean
from model_zoo.training.opponents import Judged
from model_zoo.translation import flow, latent
from model_zoo.translation.network import Conditions

if TYPE_CHECKING:
    from model_zoo.training.translation import Configuration

__all__ = ["LEARNING", "LearningEngine"]

ADVERSARIAL_WEIGHT = 0.01
"""Weight of the opponent in the engine ``adversarial``; that of the mean error is 1."""


@dataclass(frozen=True)
class LearningEngine:
    """One engine as it learns.

    ``adapt(c)``: the configuration with what the engine needs. ``describe_size(c)``: the free arguments of its network.
    ``compute_loss(network, batch, c)``: the loss without the opponent's part, and the images that the opponent judges.
    ``estimate(network, batch, c)``: target and standard deviation of each item, for the validation.
    ``measure(network, batch, c)``: further numbers of it. ``check(network, c)`` raises ValueError where the network
    does not fit. ``make_judges(c)``: the opponent. ``make_settings(c)``: what inference.json needs beside the network
    and the plan. ``is_logistic``: of the opponent's loss.
    """

    adapt: Callable[[Configuration], Configuration]
    describe_size: Callable[[Configuration], dict[str, Any]]
    compute_loss: Callable[[nn.Module, dict[str, Tensor], Configuration], tuple[Tensor, Judged]]
    estimate: Callable[[nn.Module, Mapping[str, Tensor], Configuration], tuple[Tensor, Tensor]] = losses.estimate
    measure: Callable[[nn.Module, Mapping[str, Tensor], Configuration], dict[str, float]] = lambda *_: {}
    check: Callable[[nn.Module, Configuration], None] = lambda *_: None
    make_judges: Callable[[Configuration], Mapping[str, nn.Module]] = losses.make_judges
    make_settings: Callable[[Configuration], dict[str, Any]] = lambda c: {}
    is_logistic: bool = False


def _describe_size(c: Configuration) -> dict[str, Any]:
    size: dict[str, Any] = {"channels": list(c.channels), "blocks": c.blocks}
    return (
        size
        if c.plan.slices
        else size | {"unshuffle": c.unshuffle, "refine": c.refine, "refine_blocks": c.refine_blocks}
    )


def _adapt_flow(c: Configuration) -> Configuration:
    """Return the configuration with the step at which the second of two smaller networks begins."""
    return replace(c, restarts=(c.steps * 6 // 10,), channels=tuple(3 * n // 4 for n in c.channels))


def _compute_flow_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    if float(batch["progress"]) < _find_restart(c):
        return losses.compute_judged_loss(network, batch, c)
    conditions = Conditions.stack(batch)
    error = flow.compute_flow_error(flow.as_flow(network), batch["input"], batch["target"], conditions, c.kappa)
    return weighted_mean(error, batch["weight"]), {}


def _find_restart(c: Configuration) -> float:
    """Return the share of the steps after which the first part is trained. Raises ValueError without that step."""
    if len(c.restarts) != 1 or not 0 < c.restarts[0] < c.steps:
        name = c.plan.engine
        raise ValueError(f"the engine {name} needs one restart between 0 and {c.steps}: --set restarts=[STEP]")
    return c.restarts[0] / c.steps


def _adapt_latent(c: Configuration) -> Configuration:
    """Return the configuration with the step at which the velocity begins, and a U-Net of at most three levels."""
    return replace(c, restarts=(c.steps * 4 // 10,), channels=c.channels[:3])


def _describe_latent_size(c: Configuration) -> dict[str, Any]:
    encoder = {"encoder_channels": list(c.encoder_channels), "latent_channels": c.latent_channels}
    return encoder | {"channels": list(c.channels), "blocks": c.blocks}


def _compute_latent_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    is_first = float(batch["progress"]) < _find_restart(c)
    compute = latent_losses.compute_autoencoder_loss if is_first else latent_losses.compute_velocity_loss
    return compute(latent.as_latent(network), batch, c), {}


def _adapt_syndiff(c: Configuration) -> Configuration:
    """Return the configuration with the paper's rates, and four generators that are smaller each."""
    channels = tuple(n // 2 for n in c.channels[:3])
    return replace(c, channels=channels, adversarial_weight=1.0, learning_rate=1.6e-4, opponent_rate=1e-4)


def _refuse_opponent(c: Configuration) -> Mapping[str, nn.Module]:
    raise ValueError(f"the engine {c.plan.engine} has no opponent: adversarial_weight is 0")


LEARNING: Mapping[str, LearningEngine] = {
    "regression": LearningEngine(lambda c: c, _describe_size, losses.compute_judged_loss),
    "adversarial": LearningEngine(
        lambda c: replace(c, adversarial_weight=ADVERSARIAL_WEIGHT), _describe_size, losses.compute_judged_loss
    ),
    "flow": LearningEngine(_adapt_flow, _describe_size, _compute_flow_loss, make_settings=lambda c: {"kappa": c.kappa}),
    "latent": LearningEngine(
        _adapt_latent, _describe_latent_size, _compute_latent_loss,
        estimate=latent_losses.estimate, measure=latent_losses.measure, make_judges=_refuse_opponent,
        check=lambda network, c: latent_losses.check_patch(c, latent.as_latent(network).stride),
        make_settings=latent_losses.make_settings,
    ),
    "syndiff": LearningEngine(
        _adapt_syndiff, lambda c: {"channels": list(c.channels), "blocks": c.blocks}, syndiff_losses.compute_loss,
        estimate=syndiff_losses.estimate, measure=syndiff_losses.measure, make_judges=syndiff_losses.make_judges,
        check=syndiff_losses.check, make_settings=syndiff_losses.make_settings, is_logistic=True,
    ),
}  # fmt: skip
"""Engines by their name in a plan."""
