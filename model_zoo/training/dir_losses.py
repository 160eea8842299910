"""Parts of the loss of the recipe ``synthetic-dir`` beside that of the image itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.physics.mr import TissueParameters, dir_
from model_zoo.simulate.lesions import Lesions
from model_zoo.synthetic_dir import CLIP, Output

__all__ = ["emphasis", "maps_losses", "mean_of", "segmentation_loss"]


def emphasis(lesions: Lesions) -> Tensor:
    """At lesions of 100 voxels 1, at larger and smaller ones as the inverse root of their volume; elsewhere 0."""
    label = lesions.label.long() * lesions.mask
    volume = torch.bincount(label.flatten()).clamp(min=10)
    return (100 / volume).sqrt()[label] * lesions.mask


def mean_of(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted; both broadcast to the shape of ``values``."""
    return (weight * values).sum() / weight.expand_as(values).sum().clamp(min=1e-6)


def maps_losses(out: Output, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Error of the logarithmic maps within the brain and of the DIR that the signal equation renders from them."""
    known = batch["known"][:, 0, None, None, None, None] * (batch["weight"] > 0.5)
    if not bool(known.any()):
        nothing = out.maps.sum() * 0.0
        return nothing, nothing
    tr, ti1, ti2, te, unit = (v[:, None, None, None, None] for v in batch["protocol"].T)
    pd, t1_s, t2 = (v[:, None] for v in out.maps.exp().unbind(1))
    p = TissueParameters(1000 * t1_s, 100 * t2, pd)
    dir_of_maps = dir_(p, tr, ti1, ti2, te).abs() / unit
    error = (dir_of_maps.clamp(max=CLIP) - batch["dir"]).abs()
    return mean_of((out.maps - batch["maps"]).abs(), known), mean_of(error, known)


def segmentation_loss(out: Output, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy plus one minus soft Dice, over the patches whose lesions are known."""
    known = batch["known"][:, 1, None, None, None, None] * batch["weight"]
    entropy = functional.binary_cross_entropy_with_logits(out.lesion, batch["lesion"], reduction="none")
    p = torch.sigmoid(out.lesion) * known
    truth = batch["lesion"] * known
    dice = (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    return mean_of(entropy, known) + 1 - dice
