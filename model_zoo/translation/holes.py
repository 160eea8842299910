"""Holes: missing slices of a series, filled from its other slices.

A window is an odd number of neighbouring slices, the missing one in the middle. Missing slices of a window are first
filled by the cubic spline through its measured slices (not-a-knot), pixel by pixel; the network adds a residual. A gap
is a run of missing neighbours. Two measured slices lie on either side of each gap, in training and in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.networks.slice_filler import SliceFiller
from model_zoo.translation.network import Prediction, split_output
from model_zoo.translation.plan import Plan

__all__ = ["MEASURED_BESIDE", "check_gaps", "fill_by_spline", "find_gaps", "predict_missing", "stack_window"]

MEASURED_BESIDE = 2
"""Measured slices on either side of a gap."""


def find_gaps(missing: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last slice of each run of missing neighbours."""
    ordered = sorted(missing)
    starts = [n for n, k in enumerate(ordered) if n == 0 or ordered[n - 1] < k - 1]
    return [(ordered[a], ordered[b - 1]) for a, b in pairwise([*starts, len(ordered)])]


def check_gaps(missing: Sequence[int], slices: int, most: int) -> None:
    """Raise ValueError for a gap of more than ``most`` slices, or with too few measured slices beside it."""
    gaps = find_gaps(missing)
    for first, last in gaps:
        if last - first + 1 > most:
            raise ValueError(f"{last - first + 1} neighbouring slices are missing; the model fills {most} at most")
    ends = [-1, *(k for gap in gaps for k in gap), slices]
    for before, after in zip(ends[::2], ends[1::2], strict=True):
        if after - before - 1 < MEASURED_BESIDE:
            raise ValueError(
                f"a gap has {after - before - 1} measured slices on one side; the model needs {MEASURED_BESIDE}"
            )


@lru_cache(maxsize=512)
def _weigh_measured(measured: tuple[bool, ...]) -> Tensor:
    """Return weights (slices, slices): each slice from the measured ones by a cubic spline; measured ones stay."""
    from scipy.interpolate import CubicSpline

    at = np.flatnonzero(measured)
    weights = np.zeros((len(measured), len(measured)))
    weights[:, at] = CubicSpline(at, np.eye(len(at)))(np.arange(len(measured)))
    weights[at] = np.eye(len(measured))[at]
    return torch.from_numpy(weights).float()


def fill_by_spline(window: Tensor, measured: Sequence[bool]) -> Tensor:
    """Return the window (slices, j, i) with its missing slices by cubic interpolation along the slices."""
    weights = _weigh_measured(tuple(measured)).to(window)
    filled = torch.tensordot(weights, torch.where(_as_column(measured, window) > 0, window, 0.0), dims=1)
    return torch.where(_as_column(measured, window) > 0, window, filled)


def stack_window(plan: Plan, window: Tensor, measured: Sequence[bool]) -> Tensor:
    """Return the input (2, slices, j, i) of a scaled window; values of missing slices are not used."""
    values = fill_by_spline(window, measured).clamp(0, plan.sources[0].parsed_scale.limit)
    return torch.stack([2 * values - 1, _as_column(measured, window).expand_as(window)])


def _as_column(measured: Sequence[bool], like: Tensor) -> Tensor:
    return torch.tensor([float(each) for each in measured]).to(like)[:, None, None]


@torch.no_grad()
def predict_missing(network: nn.Module, plan: Plan, image: Tensor, missing: Sequence[int]) -> Prediction:
    """Return mean and sd of the missing slices (missing, j, i) of a scaled image (k, j, i), in their order.

    Beyond the image's ends its first and last slices go on, as measured ones.
    """
    if not isinstance(network, SliceFiller):
        raise TypeError(f"missing slices need a SliceFiller, not {type(network).__name__}")
    network.eval()
    found = [_predict_one(network, _cut_window(plan, image, missing, k)) for k in missing]
    mean, log_b = split_output(torch.cat(found))
    return Prediction(mean[:, 0, 0], math.sqrt(2) * log_b[:, 0, 0].exp())


def _cut_window(plan: Plan, image: Tensor, missing: Sequence[int], k: int) -> Tensor:
    half = plan.slices // 2
    at = [min(max(n, 0), len(image) - 1) for n in range(k - half, k + half + 1)]
    return stack_window(plan, image[at], [n not in missing for n in at])


def _predict_one(network: SliceFiller, x: Tensor) -> Tensor:
    """Return the output (1, 2, 1, j, i) for one window; its sides are filled up to multiples of the stride."""
    rows, columns = x.shape[-2:]
    missing = [math.ceil(n / network.stride) * network.stride - n for n in (rows, columns)]
    padded = functional.pad(x, (0, missing[1], 0, missing[0]), mode="replicate")
    device = next(network.parameters()).device
    y: Tensor = network(padded[None].to(device))
    return y[..., :rows, :columns]
