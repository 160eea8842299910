"""Engines of translation: how a plan's engine describes its network, and how it predicts a target with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model_zoo.translation import flow, latent, syndiff
from model_zoo.translation import network as networks
from model_zoo.translation.network import Conditions, Prediction, Sampling
from model_zoo.translation.plan import Plan

__all__ = ["ENGINES", "Engine"]

Predict = Callable[[nn.Module, Plan, Mapping[str, Any], Tensor, Conditions, Sampling], Prediction]


@dataclass(frozen=True)
class Engine:
    """One engine.

    ``describe_network(plan, size)``: ``network_def``; ``size``: the free arguments. ``predict(network, plan, settings,
    x, conditions, sampling)``: the target for the sources ``x`` (2 sources, k, j, i); ``settings``: inference.json.
    Engines without samples ignore ``sampling``. ``detail``: what a result says about detail that
    ``{sources}`` does not determine.
    """

    describe_network: Callable[[Plan, Mapping[str, Any]], dict[str, Any]]
    predict: Predict
    detail: str


def _predict_mean(
    network: nn.Module, plan: Plan, settings: Mapping[str, Any], x: Tensor, c: Conditions, sampling: Sampling
) -> Prediction:
    return networks.predict(network, plan, x, c)


MEAN_DETAIL = "Detail that {sources} does not determine is missing or smooth: this is the mean of what it can be"
OPPONENT_DETAIL = "Trained against an opponent: detail that {sources} does not determine may look right and be invented"
LATENT_DETAIL = "This is the mean of samples, whose detail may be invented where {sources} does not determine it"
UNPAIRED_DETAIL = (
    "Trained without pairs, by images of other patients: which detail belongs to {sources} was never seen, and detail "
    "may be invented. The standard deviation is that of the samples, not of the error"
)

ENGINES: Mapping[str, Engine] = {
    "regression": Engine(networks.describe_network, _predict_mean, MEAN_DETAIL),
    "adversarial": Engine(networks.describe_network, _predict_mean, OPPONENT_DETAIL),
    "flow": Engine(flow.describe_network, flow.predict, MEAN_DETAIL),
    "latent": Engine(latent.describe_network, latent.predict, LATENT_DETAIL),
    "syndiff": Engine(syndiff.describe_network, syndiff.predict, UNPAIRED_DETAIL),
}
"""Engines by their name in a plan."""
