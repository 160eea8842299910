"""Parts of the loss of the recipe ``synthetic-dir`` apart from that of the image itself."""

from __future__ import annotations

import torch
from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn import functional

from model_zoo.physics.mr import TissueParameters, double_inversion_recovery
from model_zoo.simulate.lesions import Lesions
from model_zoo.synthetic_dir import CLIP, Output

__all__ = ["contrast_loss", "maps_losses", "segmentation_loss", "weigh_lesions", "weighted_mean"]


NEAR_VOXELS = 5
PAIRS = 4096
LEAST_CONTRAST = 0.2


def weigh_lesions(lesions: Lesions) -> Tensor:
    """Return 1 in lesions of 100 voxels, the inverse root of the volume in others, 0 elsewhere."""
    label = lesions.label.long() * lesions.mask
    volume = torch.bincount(label.flatten()).clamp(min=10)
    return (100 / volume).sqrt()[label] * lesions.mask


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of ``values`` weighted by ``weight``, which broadcasts to their shape."""
    return (weight * values).sum() / weight.expand_as(values).sum().clamp(min=1e-6)


def maps_losses(out: Output, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the error of the logarithmic maps in the brain, and that of the DIR rendered from them by its equation."""
    known = batch["known"][:, 0, None, None, None, None] * (batch["weight"] > 0.5)
    if not bool(known.any()):
        nothing = out.maps.sum() * 0.0
        return nothing, nothing
    tr, ti1, ti2, te, unit = (v[:, None, None, None, None] for v in batch["protocol"].T)
    pd, t1_s, t2 = (v[:, None] for v in out.maps.exp().unbind(1))
    p = TissueParameters(1000 * t1_s, 100 * t2, pd)
    dir_of_maps = double_inversion_recovery(p, tr, ti1, ti2, te).abs() / unit
    error = (dir_of_maps.clamp(max=CLIP) - batch["dir"]).abs()
    return weighted_mean((out.maps - batch["maps"]).abs(), known), weighted_mean(error, known)


def segmentation_loss(out: Output, batch: dict[str, Tensor]) -> Tensor:
    """Return cross-entropy plus one minus soft Dice, over the patches whose lesions are known."""
    known = batch["known"][:, 1, None, None, None, None] * batch["weight"]
    entropy = functional.binary_cross_entropy_with_logits(out.lesion, batch["lesion"], reduction="none")
    p = torch.sigmoid(out.lesion) * known
    truth = batch["lesion"] * known
    dice_loss: Tensor = DiceLoss(batch=True, smooth_nr=1, smooth_dr=1)(p, truth)
    return weighted_mean(entropy, known) + dice_loss


def contrast_loss(dir_: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return how much of the true contrast of lesions with the tissue near them is missing, mean over random pairs.

    A pair is a voxel of a lesion and one outside of all lesions, at most ``NEAR_VOXELS`` from one, of the same patch,
    whose true DIR differs by ``LEAST_CONTRAST`` at least. Full contrast is 0, none is 1.
    """
    lesion = batch["lesion"]
    near = lesion
    for _ in range(NEAR_VOXELS):
        near = functional.max_pool3d(near, 3, stride=1, padding=1)
    about = (near > 0) & (lesion == 0) & (batch["weight"] > 0.5)
    losses = [_pair_loss(*each) for each in zip(dir_, batch["dir"], lesion > 0, about, strict=True)]
    return torch.stack(losses).mean()


def _pair_loss(made: Tensor, true: Tensor, inside: Tensor, about: Tensor) -> Tensor:
    if not bool(inside.any()) or not bool(about.any()):
        return made.sum() * 0.0
    at, outside = (torch.randint(int(m.sum()), (PAIRS,), device=made.device) for m in (inside, about))
    contrast = true[inside][at] - true[about][outside]
    missing = (1 - (made[inside][at] - made[about][outside]) / contrast.clamp(min=LEAST_CONTRAST)).clamp(min=0)
    counts = (contrast >= LEAST_CONTRAST).to(made.dtype)
    return (counts * missing).sum() / counts.sum().clamp(min=1.0)
