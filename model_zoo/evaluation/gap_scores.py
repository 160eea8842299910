"""Slices taken out of a series and filled again: PSNR of each gap by method, within the brain.

The image is scaled as the model scales it, so that 1 is its 99th percentile and the peak of the PSNR. Baselines along
the slices, pixel by pixel: linear, and the cubic spline (not-a-knot) through ten measured slices on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from model_zoo import similarity
from model_zoo.bundle import Model
from model_zoo.translation import holes
from model_zoo.translation import plan as plans
from model_zoo.translation.preparation import scale_series

__all__ = ["CUBIC", "LINEAR", "OURS", "Gap", "fill_gap", "list_gaps", "score_gaps", "summarise"]

OURS, CUBIC, LINEAR = "this model", "cubic", "linear"
ON_EITHER_SIDE = 10
FEWEST_VOXELS = 500
"""Voxels of the brain in a slice that counts."""


@dataclass(frozen=True)
class Gap:
    """Scores of one gap: PSNR in dB by method, and the share of voxels within two standard deviations of ours."""

    first: int
    psnr_db: Mapping[str, float]
    within_2_sd: float

    @property
    def is_lost(self) -> bool:
        """True where a baseline is better than the model."""
        return self.psnr_db[OURS] < max(self.psnr_db[CUBIC], self.psnr_db[LINEAR])


def list_gaps(inside: Tensor, missing: int, every: int) -> list[list[int]]:
    """Return gaps of ``missing`` slices, ``every`` slices apart, all of whose slices show the mask (k, j, i)."""
    visible = inside.flatten(1).sum(1) >= FEWEST_VOXELS
    low, high = holes.MEASURED_BESIDE, len(inside) - holes.MEASURED_BESIDE - missing
    gaps = [list(range(k, k + missing)) for k in range(low, high + 1, every)]
    return [gap for gap in gaps if bool(visible[gap].all())]


def fill_gap(model: Model, image: Tensor, gap: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the filled slices (missing, j, i) by method, and the standard deviation of ours; image: scaled."""
    near = [k for k in range(gap[0] - ON_EITHER_SIDE, gap[-1] + ON_EITHER_SIDE + 1) if 0 <= k < len(image)]
    at = [k for k in near if k not in gap]
    cubic = CubicSpline(at, image[at].numpy())(gap).astype(np.float32)
    before, after = image[gap[0] - 1], image[gap[-1] + 1]
    shares = [(n + 1) / (len(gap) + 1) for n in range(len(gap))]
    found = {
        CUBIC: torch.from_numpy(cubic).clamp(min=0),
        LINEAR: torch.stack([(1 - share) * before + share * after for share in shares]),
    }
    p = holes.predict_missing(model.network, plans.parse(model.settings["plan"]), image, gap)
    return {OURS: p.mean.cpu(), **found}, p.sd.cpu()


def score_gaps(model: Model, image: Tensor, inside: Tensor, *, axis: int, missing: int, every: int) -> list[Gap]:
    """Score gaps along an axis of the image (k, j, i), in its own unit; ``inside``: mask of the brain."""
    scaled, _ = scale_series(plans.parse(model.settings["plan"]).sources[0], image, None, 1.0)
    turned, mask = scaled.movedim(axis, 0).contiguous(), inside.movedim(axis, 0).contiguous()
    return [_score_gap(model, turned, mask, gap) for gap in list_gaps(mask, missing, every)]


def _score_gap(model: Model, image: Tensor, inside: Tensor, gap: Sequence[int]) -> Gap:
    truth, mask = image[gap], inside[gap]
    found, sd = fill_gap(model, image, gap)
    psnr_db = {name: similarity.psnr(x, truth, 1.0, mask) for name, x in found.items()}
    within = ((found[OURS] - truth).abs() <= 2 * sd)[mask].float().mean()
    return Gap(gap[0], psnr_db, float(within))


def summarise(gaps: Sequence[Gap]) -> tuple[float, ...]:
    """Return the means of linear, cubic and ours in dB, the mean and the least gain over cubic, the share of gaps that
    are lost, and the mean share within two standard deviations.
    """
    gains = [gap.psnr_db[OURS] - gap.psnr_db[CUBIC] for gap in gaps]
    means = [fmean(gap.psnr_db[name] for gap in gaps) for name in (LINEAR, CUBIC, OURS)]
    lost = sum(gap.is_lost for gap in gaps) / len(gaps)
    return (*means, fmean(gains), min(gains), lost, fmean(gap.within_2_sd for gap in gaps))
