"""A bundle ``anatomy`` that recognises a phantom by its grey levels. It tests the path from files to results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from model_zoo.bundle import weights_digest
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.registry import WEIGHTS
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import COUNT, STRUCTURES, number
from pipelines.contract import Grid
from tests.scanner import make_grid

__all__ = ["SPACING_MM", "centred_grid", "levels", "phantom", "phantom_grid", "write_anatomy_bundle"]

SPACING_MM = 4.0
_DEFINITION: dict[str, Any] = {"in_channels": 1, "out_channels": COUNT + 1, "channels": [4], "blocks": 0}
_SHAPE = (48, 56, 48)
_SHARPNESS = 10000.0
_INWARDS = [s.number for s in STRUCTURES if s.name not in ("csf", "cerebral white matter")]


def phantom() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return values and structures (k, j, i) of a head of ellipsoids at 4 mm; each structure has its own grey level."""
    structure = make_phantom(_SHAPE, SPACING_MM).structure
    return levels(structure.numpy()), structure.numpy()


def phantom_grid() -> Grid:
    """Return the phantom's grid, along the patient's axes and off the isocentre."""
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = (-95, -111, -80)
    return Grid((48, 56, 48), affine)


def centred_grid(orientation: str, spacing_mm: tuple[float, float, float]) -> Grid:
    """Return a grid (k, j, i) of 250 mm each way with the phantom's centre."""
    shape = [round(250 / s) for s in spacing_mm]
    grid = make_grid(orientation, (shape[0], shape[1], shape[2]), spacing_mm, (0, 0, 0))
    middle = (np.array([shape[2], shape[1], shape[0]]) - 1) / 2
    centre = phantom_grid().affine_mm[:3, 3] + np.array([94, 110, 94])
    grid.affine_mm[:3, 3] = centre - grid.affine_mm[:3, :3] @ middle
    return grid


def levels(structure: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the phantom's values in [0, 1], darkest outside and brightest inside, so that few edges look alike."""
    level = np.zeros(COUNT + 1, np.float32)
    level[[number("csf"), *_INWARDS, number("cerebral white matter")]] = np.linspace(0.3, 1, COUNT)
    return np.asarray(level[structure])


def write_anatomy_bundle(root: Path) -> Path:
    """Write the bundle below ``root`` and return its folder."""
    bundle = root / "anatomy"
    for folder in ("configs", "models"):
        (bundle / folder).mkdir(parents=True, exist_ok=True)
    save_file(_make_level_classifier().state_dict(), bundle / WEIGHTS)
    target = {"_target_": "model_zoo.networks.volume_unet.VolumeUNet"}
    inference = {
        "network_def": target | _DEFINITION,
        "spacing_mm": SPACING_MM,
        "label_spacing_mm": SPACING_MM,
        "shape": list(_SHAPE),
        "percentiles": [0, 100],
    }
    metadata = {
        "name": "anatomy",
        "version": "0.0.1",
        "trained_on": "a phantom",
        "weights_sha256": weights_digest(bundle / WEIGHTS),
    }
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return bundle


def _make_level_classifier() -> VolumeUNet:
    """Return a network whose logit of class n is c (2 v_n x - v_n^2), largest for the level v_n nearest to x.

    c > 0 comes from the last norm.

    silu(z) - silu(-z) = z, so x and one go through it with both signs.
    """
    network = VolumeUNet(**_DEFINITION)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if not name.endswith("gain"):
                weights.zero_()
        network.first.weight[:2, 0, 1, 1, 1] = torch.tensor([1.0, -1.0])
        network.first.bias[2:] = torch.tensor([1.0, -1.0])  # type: ignore[index]  # torch types it as optional
        v = torch.from_numpy(levels(np.arange(COUNT + 1, dtype=np.uint8)))
        last = _SHARPNESS * torch.stack([2 * v, -2 * v, -(v**2), v**2], dim=1)
        network.last.weight[:] = last[:, :, None, None, None]
    return network.eval()
