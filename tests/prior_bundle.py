"""Small bundles ``mri_prior`` of random weights, in the layouts in which bundles are published."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_zoo.bundle import weights_digest
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.registry import WEIGHTS

__all__ = ["write_monai_bundle", "write_prior_bundle", "write_zip"]

_DEFINITION: dict[str, Any] = {"channels": [8, 8], "blocks": 1}
_TARGET = "model_zoo.networks.local_unet.LocalUNet"


def write_prior_bundle(
    folder: Path, version: str, *, seed: int = 0, definition: dict[str, Any] = _DEFINITION, **facts: Any
) -> Path:
    """Write a bundle; return its folder. Every seed makes another network."""
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    torch.manual_seed(seed)
    network = LocalUNet(**_DEFINITION)
    save_file(network.state_dict(), folder / WEIGHTS)
    inference = {"network_def": {"_target_": _TARGET, **definition}, "sigma_data": 0.27}
    metadata = {
        "name": "mri_prior",
        "version": version,
        "task": "A prior of nothing",
        "intended_use": "Tests only.",
        "licence": "Apache-2.0",
        "trained_on": "simulation only (random numbers)",
        "weights_sha256": weights_digest(folder / WEIGHTS),
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata | facts))
    (folder / "docs" / "README.md").write_text("# A prior of nothing\n")
    (folder / "LICENSE").write_text("Apache License\n")
    return folder


def write_monai_bundle(folder: Path, **metadata: Any) -> Path:
    """Write a segmentation network of MONAI's in the layout of its Model Zoo: a pickled state dict, a name in prose."""
    from monai.networks.nets import UNet

    definition: dict[str, Any] = {
        "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2], "num_res_units": 1
    }  # fmt: skip
    for part in ("configs", "models", "docs", "scripts"):
        (folder / part).mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(UNet(**definition).state_dict(), folder / "models" / "model.pt")
    said: dict[str, Any] = {
        "name": "Spleen CT segmentation",
        "version": "0.5.3",
        "monai_version": "1.4.0",
        "task": "Decathlon spleen segmentation",
        "intended_use": "An example, not for diagnosis",
        "data_source": "Task09_Spleen.tar",
        "network_data_format": {
            "inputs": {"image": {"type": "image", "num_channels": 1, "spatial_shape": [16, "8*n", "*"]}},
            "outputs": {"pred": {"type": "image", "num_channels": 2, "spatial_shape": [16, 16, 16]}},
        },
    }
    inference = {
        "imports": ["$import glob"],
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "UNet", **definition},
        "network": "$@network_def.to(@device)",
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(said | metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "docs" / "README.md").write_text("# Spleen\n")
    (folder / "scripts" / "__init__.py").write_text("raise SystemExit('this ran')\n")
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0\n")
    return folder


def write_zip(folder: Path, target: Path, *, top: str = "") -> Path:
    """Write the folder as a ZIP file, with its files below ``top``."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, str(Path(top) / path.relative_to(folder)))
    return target
