"""Conversion of volumes to MONAI's tensors and back. MONAI's patient axes are RAS+, ours LPS+: two signs, no flips.

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
"""Conversion from LPS to RAS and back."""


def make_tensor(volumes: Sequence[Volume]) -> Any:
    """Return a MetaTensor (i, j, k), as MONAI's reader returns one file, or (c, i, j, k) of several on one grid."""
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


def restore_affine(output: Any, image: Any) -> Any:
    """Return the network's output, a batch of one, with the affine of ``image`` (c, i, j, k). Raises Refused."""
    from monai.data import MetaTensor

    if isinstance(output, dict):
        output = next(iter(output.values()))
    if isinstance(output, list | tuple):
        output = output[0]
    tensor = output.as_tensor()[0] if isinstance(output, MetaTensor) else output[0]
    if tensor.shape[1:] != image.shape[1:]:
        output_shape, input_shape = tuple(tensor.shape[1:]), tuple(image.shape[1:])
        raise Refused(f"the network answers {output_shape} voxels to {input_shape}: where they lie is unknown")
    return MetaTensor(tensor.float().cpu(), affine=image.affine.cpu().clone(), meta=dict(image.meta))


def read_grid(tensor: Any) -> Grid:
    """Return the grid (LPS) of a MetaTensor (c, i, j, k)."""
    i, j, k = (int(n) for n in tensor.shape[-3:])
    return Grid((k, j, i), _OTHER_SYSTEM @ np.asarray(tensor.affine.cpu(), np.float64))


def resample_tensor(tensor: Any, grid: Grid, *, labels: bool) -> NDArray[np.float32]:
    """Return the tensor (c, i, j, k) as (c, k, j, i) on ``grid``, interpolated only where the grids differ.

    Labels (one channel) take the voxels that they fill by more than half.
    """
    own = read_grid(tensor)
    data = np.ascontiguousarray(np.asarray(tensor.cpu(), np.float32).transpose(0, 3, 2, 1))
    if own.matches(grid):
        return data
    if labels and data.shape[0] == 1:
        label_map = data[0].astype(np.uint8)
        return resampling.resample_labels(label_map, own, grid, int(label_map.max()))[None].astype(np.float32)
    resampled = resampling.resample(torch.from_numpy(data), own, grid).numpy()
    return (resampled > 0.5).astype(np.float32) if labels else resampled


def resample_volume(volume: Volume, grid: Grid) -> Volume:
    """Resample the volume linearly to another grid of the same patient."""
    if volume.grid.matches(grid):
        return volume
    data = resampling.resample(torch.from_numpy(volume.data)[None], volume.grid, grid)[0].numpy()
    return Volume(data, grid, volume.unit, volume.slice_thickness_mm)
