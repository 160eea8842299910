"""A user's rows for ``pet-synthesis``: T1w, structures and PET of one person on the network's grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import pet_synthesis
from model_zoo.pet_synthesis import TARGETS, Covariates
from model_zoo.physics.suvr import compute_suvr
from model_zoo.physics.tracers import TRACERS
from model_zoo.simulate.pet.activity import compute_block_fractions, take_majority
from model_zoo.structures import COUNT
from model_zoo.training.brain_box import crop_or_pad, find_brain_box
from model_zoo.training.cohort import Cohort, Row

__all__ = ["SHRINK", "read_covariates", "read_row"]

SHRINK = 2
"""Images are read and heads are drawn this many times finer than the network's grid."""


def read_row(cohort: Cohort, row: Row, shape: tuple[int, int, int], spacing_mm: float) -> dict[str, Tensor]:
    """Read a row on a grid of ``shape`` voxels of ``spacing_mm`` about the brain's middle.

    Returns x0 (2, k, j, i), SUVR by its own reference region over the tracer's scale; known (2,): 1 where the tracer's
    image exists; y0 (1, k, j, i), the scaled T1w; tokens; maps (23, k, j, i).
    """
    fine = spacing_mm / SHRINK
    structure = cohort.read_volume(row, "structures", fine).values.round().to(torch.uint8)
    box = find_brain_box(structure, (shape[0] * SHRINK, shape[1] * SHRINK, shape[2] * SHRINK))
    maps = compute_block_fractions(crop_or_pad(structure, box), COUNT + 1, SHRINK)[1:]
    covariates = read_covariates(row)
    x0, known = torch.zeros(len(TARGETS), *shape), torch.zeros(len(TARGETS))
    names = covariates.amyloid_tracer, covariates.tau_tracer
    for at, (target, name, scale) in enumerate(zip(TARGETS, names, pet_synthesis.suvr_scales(covariates), strict=True)):
        if target in row.images and name is not None:
            pet = _average_blocks(crop_or_pad(cohort.read_volume(row, target, fine).values, box))
            reference = compute_suvr(pet, take_majority(crop_or_pad(structure, box), SHRINK), TRACERS[name]).reference
            x0[at], known[at] = pet / reference / scale * maps.sum(0), 1.0
    t1w = pet_synthesis.scale_t1w(
        _average_blocks(crop_or_pad(cohort.read_volume(row, "t1w", fine).values, box)), maps.sum(0) > 0.5
    )
    return {
        "x0": x0,
        "known": known,
        "y0": t1w[None],
        "tokens": pet_synthesis.covariate_tokens(covariates),
        "maps": maps,
    }


def read_covariates(row: Row) -> Covariates:
    """Return the covariates of a row, each unknown where its cell is blank."""
    return Covariates(
        row.words.get("amyloid_tracer", "florbetapir" if "amyloid" in row.images else None),
        row.words.get("tau_tracer", "flortaucipir" if "tau" in row.images else None),
        row.numbers.get("age"),
        row.words.get("sex"),
        int(row.numbers["e4"]) if "e4" in row.numbers else None,
        row.numbers.get("mmse"),
        row.numbers.get("ptau217"),
    )


def _average_blocks(x: Tensor) -> Tensor:
    return functional.avg_pool3d(x[None, None].float(), SHRINK)[0, 0]
