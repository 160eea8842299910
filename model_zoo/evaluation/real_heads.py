"""Real scans of the data kit against the ICBM 2009a template: Dice of the brain and of its grey plus white matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model_zoo.bundle import Model
from model_zoo.evaluation import Table
from model_zoo.evaluation.head_labels import label_structures
from model_zoo.imaging import scale_between_quantiles
from model_zoo.similarity import dice
from model_zoo.structures import TISSUE_GROUPS, number

__all__ = ["RealScan", "real_table", "score_real_scans"]


@dataclass(frozen=True)
class RealScan:
    name: str
    brain: float
    tissue: float
    brain_ml: float
    image: Tensor
    found: Tensor


def score_real_scans(model: Model, root: Path) -> list[RealScan]:
    """Score every scan of the two MS collections against the template registered to it."""
    from model_zoo.evaluation import template

    scans = []
    for path in template.list_scans(root):
        image, brain, tissue = template.load_masked_scan(path, root)
        labels = label_structures(model, scale_between_quantiles(image))
        found_tissue = torch.isin(labels, torch.tensor(TISSUE_NUMBERS, dtype=labels.dtype))
        found_brain = _fill_brain(labels)
        name = f"{path.parent.name} {path.name.removesuffix('.nii.gz')}"
        scans.append(
            RealScan(
                name,
                dice(found_brain, brain),
                dice(found_tissue, tissue),
                float(found_brain.sum()) / 1000,
                image,
                labels,
            )
        )
    return scans


TISSUE_NUMBERS = TISSUE_GROUPS["grey matter"] + TISSUE_GROUPS["white matter"]


def _fill_brain(labels: Tensor) -> Tensor:
    """Return the brain with its sulci: every structure but fluid, closed by 4 mm, and filled."""
    from scipy import ndimage

    inside = ((labels > 0) & (labels != number("csf"))).numpy()
    closed = ndimage.binary_closing(np.pad(inside, 8), iterations=4)[8:-8, 8:-8, 8:-8]
    return torch.from_numpy(ndimage.binary_fill_holes(closed))


def real_table(real: Sequence[RealScan]) -> Table:
    rows = tuple((r.name, r.brain, r.tissue, r.brain_ml) for r in real)
    note = (
        "Dice against the ICBM 2009a template's brain mask and its grey and white matter (probability above one half). "
        "The template is registered to each scan (similarity, then affine, mutual information)."
    )
    return Table("Real scans that no training saw", ("scan", "brain", "grey + white matter", "brain in ml"), rows, note)
