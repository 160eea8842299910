"""A bundle of the recipe ``translation`` whose network is known: the scaled target is the scaled first source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_zoo.bundle import weights_digest
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.registry import WEIGHTS
from model_zoo.training import translation as recipe
from model_zoo.translation import network as networks
from model_zoo.translation.plan import Plan

__all__ = ["SD", "write_translation_bundle"]

SD = 0.05
"""Standard deviation of the scaled target."""
_SIZE: dict[str, Any] = {"channels": [4, 8], "blocks": 1, "unshuffle": 1, "refine": 4}


def write_translation_bundle(folder: Path, plan: Plan, *, version: str = "1.0.0", **metadata: Any) -> Path:
    """Write the bundle of ``plan`` and return its folder. The plan is one of volumes."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    definition = networks.describe_network(plan, _SIZE)
    save_file(_make_copying_network(definition).state_dict(), folder / WEIGHTS)
    facts = dict(recipe.make_recipe_of(plan).facts) | {
        "name": plan.name,
        "version": version,
        "recipe": "translation",
        "trained_on": "nothing: the weights are written by hand",
        "weights_sha256": weights_digest(folder / WEIGHTS),
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(facts | metadata))
    inference = {"network_def": definition, "plan": plan.model_dump(mode="json")}
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    return folder


def _make_copying_network(definition: dict[str, Any]) -> VolumeUNet:
    """Return a network whose mean is (x + 1) / 2 of its first channel x, by silu(x) - silu(-x) = x."""
    network = networks.make_network(definition)
    assert isinstance(network, VolumeUNet)
    assert network.refine is not None
    refine = network.refine
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        first = int(_SIZE["refine"])
        refine.mix.weight[0, first, 1, 1, 1] = 1.0
        refine.mix.weight[1, first, 1, 1, 1] = -1.0
        refine.out.weight[0, :2, 1, 1, 1] = torch.tensor([0.5, -0.5])
        refine.out.bias[:] = torch.tensor([0.5, float(torch.tensor(SD / 2**0.5).log())])  # type: ignore[index]
    return network
