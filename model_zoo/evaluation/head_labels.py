"""Structures of a head as the anatomy model finds them, and their Dice against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.anatomy import extract_window, segment
from model_zoo.bundle import Model
from model_zoo.similarity import dice
from model_zoo.structures import BRAIN, TISSUE_GROUPS
from model_zoo.training.anatomy import score_structures

__all__ = ["label_structures", "score_groups"]


def label_structures(model: Model, image: Tensor) -> Tensor:
    """Return the structure numbers uint8 (k, j, i) of an image (k, j, i) in [0, 1] at 1 mm, LPS, as the pipeline finds
    them.
    """
    shrink = round(float(model.settings["spacing_mm"]))
    own = image.to(model.device)

    def sample_window(start: Sequence[int], shape: Sequence[int]) -> Tensor:
        return extract_window(own, [shrink * n for n in start], [shrink * n for n in shape])

    found = segment(functional.avg_pool3d(image[None], shrink)[0].to(model.device), sample_window, model)
    p = found.p
    if found.scale < shrink:
        p = functional.interpolate(p[None], scale_factor=shrink, mode="trilinear", align_corners=False)[0]
    return extract_window(p.argmax(dim=0).to(torch.uint8).cpu(), [-shrink * n for n in found.start], image.shape)


def score_groups(found: Tensor, truth: Tensor) -> dict[int, float]:
    """Return the Dice per structure, and under negative keys of the brain (-1), grey matter, white matter and fluid (-2
    to -4).
    """
    scores = score_structures(found, truth)
    sets = (BRAIN, *(TISSUE_GROUPS[name] for name in ("grey matter", "white matter", "csf")))
    for key, numbers in enumerate(sets, start=1):
        a, b = (torch.isin(x, torch.tensor(numbers, dtype=x.dtype)) for x in (found, truth))
        scores[-key] = dice(a, b)
    return scores
