"""Networks on images that are larger than a training patch, in overlapping windows of the patch's size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["fill_up", "run_in_windows"]

WINDOWS_AT_ONCE = 8


def fill_up(images: Tensor, side: int, factor: int = 1) -> Tensor:
    """Fill images (b, channels, *space), 2 x - 1, up with air to ``side`` or more, and to multiples of ``factor``."""
    missing = [max(side, math.ceil(n / factor) * factor) - n for n in images.shape[2:]]
    return functional.pad(images, [end for n in reversed(missing) for end in (0, n)], value=-1.0)


def run_in_windows(run: Callable[[Tensor], Tensor], x: Tensor, side: int) -> Tensor:
    """Return ``run`` on windows of ``side`` along each axis of x (b, channels, *space), blended where they overlap."""
    from monai.inferers.utils import sliding_window_inference

    if all(n == side for n in x.shape[2:]):
        return torch.cat([run(part) for part in torch.split(x, WINDOWS_AT_ONCE)])
    batch = WINDOWS_AT_ONCE if x.dim() == 4 else 1
    y: Tensor = sliding_window_inference(x, [side] * (x.dim() - 2), batch, run, overlap=0.25, mode="gaussian")
    return y
