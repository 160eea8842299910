"""A small bundle ``ct_prior`` whose network says nothing: its denoiser is the Wiener filter of white images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_zoo.bundle import weights_digest
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.registry import WEIGHTS
from model_zoo.training import ct_prior

__all__ = ["write_ct_bundle"]

_DEFINITION: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "channels": [8, 8], "blocks": 1}


def write_ct_bundle(models: Path, version: str = "0.1.0") -> Path:
    """Write the bundle below a folder of models; return its folder."""
    folder = models / "ct_prior"
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    network = LocalUNet(**_DEFINITION)
    for parameter in network.last.parameters():
        torch.nn.init.zeros_(parameter)
    save_file(network.state_dict(), folder / WEIGHTS)
    target = "model_zoo.networks.local_unet.LocalUNet"
    inference = {"network_def": {"_target_": target, **_DEFINITION}, "sigma_data": ct_prior.SIGMA_DATA}
    facts = {key: ct_prior.RECIPE.facts[key] for key in ("input_contract", "output_limits")}
    metadata = {
        "name": "ct_prior", "version": version, "task": "A prior of nothing", "intended_use": "Tests only.",
        "licence": "Apache-2.0", "trained_on": "simulation only (nothing)",
        "weights_sha256": weights_digest(folder / WEIGHTS), **facts,
    }  # fmt: skip
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "docs" / "README.md").write_text("# A prior of nothing\n")
    (folder / "LICENSE").write_text("Apache License\n")
    return folder
