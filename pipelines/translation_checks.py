"""Checks of a translation: the same head or body as in the sources, their edges, the distance to an acquired target.

"overlap with the source": on MR of heads Dice of the brain that the anatomy model finds in the result and in the first
source, without structures Dice of the voxels that are no air. A CT or PET of a head has none: it is cut to the
structures of the source, so that its outline shows nothing. "edges of the source": correlation of the gradients'
magnitudes, in the source where it is largest. Both are measurements, so that a bundle's limits or a site's hold results
by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model_zoo import similarity
from model_zoo.structures import BRAIN
from model_zoo.translation.network import Prediction
from model_zoo.translation.plan import Plan, PlannedTarget
from model_zoo.translation.preparation import scale_series
from model_zoo.translation.scales import AIR
from pipelines import anatomy
from pipelines.contract import Finding, Measurement, Refused, Volume
from pipelines.registration import register_rigid
from pipelines.translation_inputs import PreparedSources, resample_to

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["Acquired", "check_result", "compare_with_acquired"]


@dataclass(frozen=True)
class Acquired:
    """The acquired series and the target that it is."""

    volume: Volume
    target: PlannedTarget


def check_result(
    p: Prediction, prepared: PreparedSources, plan: Plan, target: PlannedTarget, model: Model
) -> list[Finding]:
    """Return overlap, edges and the mean standard deviation."""
    width, overlap = _width(target), _measure_overlap(p, prepared, target, model)
    return [
        *([] if overlap is None else [Measurement("overlap with the source", overlap, "1", "Dice; 1 is equal")]),
        Measurement(
            "edges of the source", _correlate_edges(p.mean, prepared), "1", "Correlation of the gradients' magnitudes"
        ),
        Measurement("mean standard deviation", width * float(p.sd[prepared.inside].mean()), target.unit),
    ]


def _width(target: PlannedTarget) -> float:
    level = target.parsed_scale.level
    return 1.0 if level is None else level.width


def _measure_overlap(p: Prediction, prepared: PreparedSources, target: PlannedTarget, model: Model) -> float | None:
    if prepared.structure is None:
        return similarity.dice(p.mean > AIR, prepared.inside)
    if target.modality != "MR":
        return None
    brain = torch.isin(prepared.structure, torch.tensor(BRAIN).to(prepared.structure)).numpy()
    try:
        found = anatomy.segment_head(Volume(p.mean.numpy(), prepared.grid), model.helpers["anatomy"])
    except Refused:  # it finds no head in the result
        return 0.0
    return similarity.dice(np.isin(found.image_labels, BRAIN), brain)


def _correlate_edges(made: Tensor, prepared: PreparedSources) -> float:
    """Return the largest correlation of the gradients' magnitudes inside with a source's; 0 without any edge."""
    inside = prepared.inside
    edges = _gradient_magnitude(made)[inside]
    found = [_correlate(edges, _gradient_magnitude(x)[inside]) for x in prepared.volumes.values()]
    return max(found)


def _gradient_magnitude(x: Tensor) -> Tensor:
    squares: Tensor = torch.stack([g.square() for g in torch.gradient(x.float())]).sum(0)
    return squares.sqrt()


def _correlate(a: Tensor, b: Tensor) -> float:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0


def compare_with_acquired(
    p: Prediction, prepared: PreparedSources, acquired: Acquired, plan: Plan, seed: int
) -> list[Finding]:
    """Return PSNR, SSIM, mean error and the share of voxels within two standard deviations, inside. Raises Refused.

    On heads the acquired series is registered to the first source.
    """
    volume, target = acquired.volume, acquired.target
    if plan.labels == "structures":
        anchor = Volume(next(iter(prepared.volumes.values())).numpy(), prepared.grid)
        volume = register_rigid(anchor, volume, seed, name=f"the {target.name}").volume
    try:
        true = scale_series(target, resample_to(volume, prepared.grid), prepared.structure, plan.spacing_mm)[0]
    except ValueError as error:
        raise Refused(f"the acquired {error}") from error
    inside, span, width = prepared.inside, target.parsed_scale.span, _width(target)
    error_sd = ((p.mean - true).abs() <= 2 * p.sd)[inside].float().mean()
    mae = width * similarity.mean_absolute_error(p.mean, true, inside)
    psnr, ssim = similarity.psnr(p.mean, true, span, inside), similarity.ssim(p.mean / span, true / span, 1.0, inside)
    return [
        Measurement("PSNR to the acquired", psnr, "dB", f"Peak {span * width:g}"),
        Measurement("SSIM to the acquired", ssim, "1"),
        Measurement("mean absolute error", mae, target.unit, "Inside head or body"),
        Measurement("within two standard deviations", float(error_sd), "1", "Share of voxels; 0.94 if the sd is right"),
    ]
