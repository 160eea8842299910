"""A bundle ``pet_synthesis`` whose network paints every structure with its value in the tracer's table.

It tests geometry and units, not patients. Its levels depend a little on the covariates, by fixed random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn

from model_zoo import pet_synthesis
from model_zoo.bundle import weights_digest
from model_zoo.networks.pet_unet import PetUNet
from model_zoo.physics.tracers import TRACERS, uptake
from model_zoo.registry import WEIGHTS
from model_zoo.structures import COUNT, number
from model_zoo.training.pet_synthesis import RECIPE
from pipelines.contract import Grid
from tests.bundles import SPACING_MM, phantom, phantom_grid

__all__ = ["FINE", "paint_suvr", "sample_phantom", "write_pet_bundle"]

FINE = 2
"""Labels' voxels along a voxel of the network."""
_SHAPE = (24, 32, 24)
_DEFINITION: dict[str, Any] = {
    "tissues": pet_synthesis.tissue_indices(), "sizes": pet_synthesis.size_indices(), "channels": [4, 4],
    "unshuffle": 2, "width": 8, "refine": 2,
}  # fmt: skip
_STATES = {"florbetapir": 60.0, "flortaucipir": 3.5}
_LOG_SD = -3.0


def paint_suvr(tracer: str, structure: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the SUVR that the bundle paints by its table; zero outside the head."""
    values = np.concatenate([[0.0], uptake(TRACERS[tracer], _STATES[tracer])[:COUNT].numpy()])
    return np.asarray(values[structure], np.float32)


def sample_phantom(onto: Grid) -> NDArray[np.uint8]:
    """Return the phantom's structures at the centres of the voxels of ``onto``.

    The fluid is removed on the patient's right and at the back, so that every flip shows.
    """
    structure = phantom()[1]
    gone = structure == number("csf")
    gone[:, :, 24:] = False
    gone[:, 30:] = False
    structure[gone] = 0
    to_index = np.linalg.solve(phantom_grid().affine_mm, onto.affine_mm)
    k, j, i = np.indices(onto.shape).reshape(3, -1)
    at = (to_index @ np.stack([i, j, k, np.ones_like(i)]))[2::-1]
    return np.asarray(ndimage.map_coordinates(structure, at, order=0, mode="constant").reshape(onto.shape), np.uint8)


def write_pet_bundle(root: Path, *, trained_on: str = "simulation only (a table)", version: str = "0.0.1") -> Path:
    """Write the bundle below ``root``; return its folder."""
    bundle = root / "pet_synthesis"
    for folder in ("configs", "models"):
        (bundle / folder).mkdir(parents=True, exist_ok=True)
    save_file(_make_painter().state_dict(), bundle / WEIGHTS)
    target = {"_target_": "model_zoo.networks.pet_unet.PetUNet"}
    inference = {"network_def": target | _DEFINITION, "spacing_mm": FINE * SPACING_MM, "shape": list(_SHAPE)}
    metadata = {
        "name": "pet_synthesis", "version": version, "trained_on": trained_on,
        "weights_sha256": weights_digest(bundle / WEIGHTS),
        "input_contract": RECIPE.facts["input_contract"],
    }  # fmt: skip
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return bundle


def _make_painter() -> PetUNet:
    torch.manual_seed(0)
    network = PetUNet(**_DEFINITION)
    with torch.no_grad():
        for weights in network.volume.parameters():
            weights.zero_()
        last = network.get_submodule("levels.4")
        assert isinstance(last, nn.Linear)
        scale = {name: TRACERS[name].scale for name in _STATES}
        levels = [uptake(TRACERS[name], state)[:COUNT] / scale[name] for name, state in _STATES.items()]
        last.weight[: 2 * COUNT] = 0.02 * torch.randn_like(last.weight[: 2 * COUNT])
        last.bias[:] = torch.cat([*levels, torch.full((2 * COUNT,), _LOG_SD)])
    return network.eval()
