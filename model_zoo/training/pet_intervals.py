"""Widths of the intervals of ``pet-synthesis`` from the errors of the trained network on validation subjects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo import pet_synthesis
from model_zoo.pet_intervals import COMPOSITE, SUBJECTS, fit_factors
from model_zoo.pet_synthesis import TARGETS, Conditions, Covariates
from model_zoo.precision import autocast
from model_zoo.structures import STRUCTURES

__all__ = ["RegionalErrors", "ValidationItem", "calibrate_intervals", "measure_errors", "standardise"]


@dataclass(frozen=True)
class ValidationItem:
    """One subject of the validation: conditions of one image, true images and what is known of them.

    ``x0`` (2, k, j, i) over the tracers' scales; ``known`` (2,): True where the tracer's image exists.
    """

    conditions: Conditions
    covariates: Covariates
    x0: Tensor
    known: tuple[bool, bool]


@dataclass(frozen=True)
class RegionalErrors:
    """SUVR of one subject by structure (2, COUNT): true, mean of the network, and the sd that it predicts.

    NaN where a structure or the tracer's image is missing.
    """

    tracers: tuple[str, str]
    truth: Tensor
    mean: Tensor
    sd: Tensor


def measure_errors(network: nn.Module, item: ValidationItem) -> RegionalErrors:
    """Return the regional errors of the posterior mean, each image by its own reference region."""
    c, covariates = item.conditions, item.covariates
    with torch.no_grad(), autocast(c.y0.device.type):
        x0_hat = pet_synthesis.predict_mean(network, c).float()
        sd = pet_synthesis.predict_regional_sd(network, c, covariates).float()
    structure = pet_synthesis.most_likely_structures(c.maps[0])
    both = torch.stack([x0_hat[0].cpu(), item.x0.cpu()])
    images, _ = pet_synthesis.normalise_to_own_reference(both, covariates, structure.cpu())
    mean, truth = (pet_synthesis.compute_regional_suvr(image, covariates, structure.cpu()) for image in images)
    for at, known in enumerate(item.known):
        if not known:
            truth[at] = math.nan
    return RegionalErrors(pet_synthesis.tracers_of(covariates), truth, mean, sd.cpu())


def standardise(errors: RegionalErrors) -> tuple[Tensor, Tensor]:
    """Return the errors over the predicted sd: by structure (2, COUNT), and of the composites (2,)."""
    by_structure = (errors.truth - errors.mean) / errors.sd
    difference = pet_synthesis.composites(errors.truth) - pet_synthesis.composites(errors.mean)
    return by_structure, difference / pet_synthesis.composite_sd(errors.sd)


def calibrate_intervals(errors: Iterator[RegionalErrors]) -> dict[str, Any]:
    """Return ``interval_factors`` of the bundle's settings, for the tracers with enough subjects."""
    collected: dict[str, dict[str, list[Tensor]]] = {}
    for each in errors:
        by_structure, composite = standardise(each)
        for at in range(len(TARGETS)):
            of_tracer = collected.setdefault(each.tracers[at], {})
            for s in STRUCTURES:
                of_tracer.setdefault(s.name, []).append(by_structure[at, s.number - 1])
            of_tracer.setdefault(COMPOSITE, []).append(composite[at])
    return {
        "interval_factors": {t: found for t, regions in sorted(collected.items()) if (found := _fit_tracer(regions))}
    }


def _fit_tracer(regions: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    """Return the factors of one tracer's regions and the number of subjects, or nothing where they are too few."""
    z = {name: torch.stack(values) for name, values in regions.items()}
    factors = {name: found for name, values in z.items() if (found := fit_factors(values))}
    return factors | {SUBJECTS: int(z[COMPOSITE].isfinite().sum())} if factors else {}
