"""Volumes to MONAI's tensors and back. MONAI's patient axes are RAS+, ours LPS+: two signs, and nothing is flipped.

A MetaTensor's affine maps its array indices to millimetres, so with the array's axes as (i, j, k) it is our affine with
the signs of its first two rows changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import resampling
from pipelines.contract import Grid, Refused, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["make_tensor", "read_grid", "resample_tensor", "resample_volume", "restore_affine"]

_OTHER_SYSTEM = np.diag([-1.0, -1.0, 1.0, 1.0])
"""LPS to RAS, and back."""


def make_tensor(volumes: Sequence[Volume]) -> Any:
    """A MetaTensor (i, j, k), as MONAI's reader gives one file, or (c, i, j, k) of several on one lattice."""
    from monai.data import MetaTensor
    from monai.utils import SpaceKeys

    data = np.stack([np.ascontiguousarray(each.data.transpose(2, 1, 0)) for each in volumes])
    affine = torch.from_numpy(_OTHER_SYSTEM @ volumes[0].grid.affine_mm)
    several = len(volumes) > 1
    meta = {
        "original_channel_dim": 0 if several else float("nan"),
        "original_affine": affine.clone(),
        "spatial_shape": np.array(data.shape[1:]),
        "space": SpaceKeys.RAS,
    }
    return MetaTensor(torch.from_numpy(data if several else data[0]), affine=affine, meta=meta)


def restore_affine(answer: Any, image: Any) -> Any:
    """The network's answer, a batch of one, laid where ``image`` (c, i, j, k) lies. Raises Refused where it cannot."""
    from monai.data import MetaTensor

    if isinstance(answer, dict):
        answer = next(iter(answer.values()))
    if isinstance(answer, list | tuple):
        answer = answer[0]
    found = answer.as_tensor()[0] if isinstance(answer, MetaTensor) else answer[0]
    if found.shape[1:] != image.shape[1:]:
        given, asked = tuple(found.shape[1:]), tuple(image.shape[1:])
        raise Refused(f"the network answers {given} voxels to {asked}: where they lie is unknown")
    return MetaTensor(found.float().cpu(), affine=image.affine.cpu().clone(), meta=dict(image.meta))


def read_grid(tensor: Any) -> Grid:
    """Our lattice of a MetaTensor (c, i, j, k)."""
    i, j, k = (int(n) for n in tensor.shape[-3:])
    return Grid((k, j, i), _OTHER_SYSTEM @ np.asarray(tensor.affine.cpu(), np.float64))


def resample_tensor(tensor: Any, grid: Grid, *, labels: bool) -> NDArray[np.float32]:
    """The tensor (c, i, j, k) as (c, k, j, i) on ``grid``: as it is where it lies there, else interpolated.

    Labels (one channel) go to the voxels of which they fill more than half.
    """
    own = read_grid(tensor)
    data = np.ascontiguousarray(np.asarray(tensor.cpu(), np.float32).transpose(0, 3, 2, 1))
    if own.matches(grid):
        return data
    if labels and data.shape[0] == 1:
        whole = data[0].astype(np.uint8)
        return resampling.resample_labels(whole, own, grid, int(whole.max()))[None].astype(np.float32)
    found = resampling.resample(torch.from_numpy(data), own, grid).numpy()
    return (found > 0.5).astype(np.float32) if labels else found


def resample_volume(volume: Volume, grid: Grid) -> Volume:
    """Resample the volume linearly to another grid of the same patient."""
    if volume.grid.matches(grid):
        return volume
    data = resampling.resample(torch.from_numpy(volume.data)[None], volume.grid, grid)[0].numpy()
    return Volume(data, grid, volume.unit, volume.slice_thickness_mm)
