"""An examination of a phantom for synthetic DIR, and a bundle whose answers are known.

Lesions are where FLAIR is twice as bright as white matter; DIR is the first guess with lesions raised and dark tissue
lowered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from safetensors.torch import save_file

from model_zoo.bundle import weights_digest
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.registry import WEIGHTS
from model_zoo.structures import COUNT, STRUCTURES
from pipelines.contract import Grid
from tests.bundles import SPACING_MM, phantom, phantom_grid
from tests.series import write_slices

__all__ = ["LESIONS", "VOXEL_MM3", "flair_of", "lesion_mask", "write_dir_bundle", "write_flair", "write_t1w"]

VOXEL_MM3 = SPACING_MM**3
LESIONS = {
    "large": (slice(25, 28), slice(36, 39), slice(13, 16)),
    "small": (slice(22, 24), slice(14, 16), slice(16, 18)),
    "third": (slice(31, 33), slice(24, 26), slice(20, 22)),
}
"""Boxes (k, j, i) of the phantom that lie in its white matter."""
_DEFINITION: dict[str, Any] = {"in_channels": 4, "out_channels": 6, "channels": [4, 8], "unshuffle": 1}
_FLAIR_LEVELS = {"grey matter": 1.25, "white matter": 1.0, "csf": 0.15}
_LESION = 2.2
_THRESHOLD = 2.0
"""Threshold of the FLAIR's channel 3 (x - 1)."""


def lesion_mask(*names: str) -> NDArray[np.bool_]:
    """Return the mask of the named lesions, or of all."""
    mask = np.zeros(phantom()[1].shape, np.bool_)
    for name in names or tuple(LESIONS):
        mask[LESIONS[name]] = True
    return mask


def flair_of(structure: NDArray[np.uint8], lesions: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return FLAIR in units of white matter."""
    level = np.array([0.0] + [_FLAIR_LEVELS[s.tissue] for s in STRUCTURES], np.float32)
    assert len(level) == COUNT + 1
    return np.asarray(np.where(lesions, _LESION, level[structure]), np.float32)


def write_flair(
    folder: Path, data: NDArray[np.float32], *, key: str = "flair", ti_ms: float = 1650, grid: Grid | None = None
) -> list[Path]:
    """Write a FLAIR of the study "study" as a scanner sends it; ``data`` in units of white matter."""

    def edit(_: int, ds: Dataset) -> None:
        _set_study(ds)
        ds.SeriesDescription, ds.InversionTime, ds.EchoTime, ds.RepetitionTime = "t2 FLAIR", str(ti_ms), "120", "5000"

    return write_slices(folder, grid or phantom_grid(), np.round(800 * data).astype(np.uint16), edit=edit, key=key)


def write_t1w(folder: Path, *, key: str = "t1w", grid: Grid | None = None) -> list[Path]:
    """Write the T1w of the same study; every structure has its own grey level."""

    def edit(_: int, ds: Dataset) -> None:
        _set_study(ds)
        ds.SeriesDescription = "t1 mprage"

    data = np.round(2300 * phantom()[0]).astype(np.uint16)
    return write_slices(folder, grid or phantom_grid(), data, edit=edit, key=key)


def _set_study(ds: Dataset) -> None:
    from dicomnode import uids

    ds.StudyInstanceUID, ds.FrameOfReferenceUID = uids.derive("study", "one"), uids.derive("frame", "one")


def write_dir_bundle(root: Path) -> Path:
    """Write the bundle below ``root`` and return its folder."""
    bundle = root / "synthetic_dir"
    for folder in ("configs", "models"):
        (bundle / folder).mkdir(parents=True, exist_ok=True)
    save_file(_make_flair_network().state_dict(), bundle / WEIGHTS)
    target = {"_target_": "model_zoo.networks.volume_unet.VolumeUNet"}
    metadata = {
        "name": "synthetic_dir",
        "version": "0.0.1",
        "trained_on": "a phantom",
        "weights_sha256": weights_digest(bundle / WEIGHTS),
        "input_contract": {
            "flair": [{"fact": "ti_ms", "between": [1400, 3000]}],
            "t1w": [{"fact": "te_ms", "between": [0.5, 30]}],
        },
        "input_contract_without_t1w": [{"fact": "coarsest_spacing_mm", "between": [0.4, 4.5]}],
    }
    inference = {"network_def": target | _DEFINITION, "spacing_mm": SPACING_MM}
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return bundle


def _make_flair_network() -> VolumeUNet:
    """Return a network that gives zero but for the lesion's logit c (x - 2), DIR's c (x - 0.5) and a log b far below
    its least.

    c > 0 comes from the last norm. x and one go through the activations with both signs: silu(z) - silu(-z) = z.
    """
    network = VolumeUNet(**_DEFINITION)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if not name.endswith("gain"):
                weights.zero_()
        network.first.weight[:2, 0, 1, 1, 1] = torch.tensor([1.0, -1.0])
        network.first.bias[2:] = torch.tensor([1.0, -1.0])  # type: ignore[index]  # torch types it as optional
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
        network.last.weight[5, :, 0, 0, 0] = 50 * signs * torch.tensor([1, 1, -_THRESHOLD, -_THRESHOLD])
        network.last.weight[1, 2:, 0, 0, 0] = -100 * signs[2:]
        network.last.weight[0, :, 0, 0, 0] = 0.5 * signs * torch.tensor([1.0, 1.0, -0.5, -0.5])
    return network.eval()
