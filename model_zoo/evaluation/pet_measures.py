"""Measures of a synthetic PET image against the true one, within the skull and by structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from model_zoo.evaluation.image_quality import psnr_db, ssim
from model_zoo.evaluation.pet_baselines import regional_suvr
from model_zoo.pet_synthesis import composites
from model_zoo.training.pet_synthesis import Subject

__all__ = ["MEASURES", "composite_difference", "mean_of_finite", "measure_image"]


def composite_difference(subject: Subject, image: Tensor, at: int) -> float:
    return float(composites(regional_suvr(subject, image))[at] - composites(regional_suvr(subject, subject.pet))[at])


MEASURES = ("PSNR dB", "SSIM", "MAE SUVR", "structures: mean |error| SUVR", "composite: mean |error| SUVR")


def measure_image(subject: Subject, image: Tensor, at: int) -> tuple[float, ...]:
    """Return ``MEASURES`` of tracer ``at`` of an image (2, k, j, i) in SUVR against the truth, within the skull."""
    found, truth, inside = image[at], subject.pet[at], subject.maps.sum(0) > 0.5
    structures = (regional_suvr(subject, image) - regional_suvr(subject, subject.pet))[at].abs()
    return (
        psnr_db(found, truth, inside), ssim(found, truth, inside), float((found - truth)[inside].abs().mean()),
        mean_of_finite(structures.tolist()), abs(composite_difference(subject, image, at)),
    )  # fmt: skip


def mean_of_finite(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan
