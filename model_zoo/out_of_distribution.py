"""Two scores for the distance of a head from the training population, each about one or below for a usual head.

Anatomy: the volumes of the structures, as logarithms of their shares of the cranial cavity, against the simulated
population: the root mean square of their departures in its principal directions (Mahalanobis 1936, over the square root
of the number of structures). ``SEGMENTATION_SD`` is added to the population's covariance, since the volumes of the
anatomy model are not exact.

Denoising: the error with which the prior of MR slices recovers the image from noise of a known level, against its error
on simulated scans: the prior removes structures that it never saw (Graham et al. 2023, denoising diffusion for
out-of-distribution detection). The score counts standard deviations of the logarithm above the mean.

``reference_population.json`` holds both distributions; ``python -m model_zoo.training.reference_population`` makes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo.denoisers import Denoiser
from model_zoo.structures import STRUCTURES

__all__ = [
    "HOLD_ABOVE",
    "REFERENCE_POPULATION",
    "SEGMENTATION_SD",
    "anatomy_score",
    "denoising_error",
    "denoising_score",
    "log_shares",
]

REFERENCE_POPULATION = Path(__file__).parent / "reference_population.json"
SEGMENTATION_SD = 0.2
"""Standard deviation of the logarithm of a volume by the anatomy model."""
SIGMA = 0.1
"""Standard deviation of the added noise, where the 99th percentile of the magnitude is one."""
SLICES = 8
HOLD_ABOVE = MappingProxyType({
    "anatomy deviation": 2.5, "share of structures of low confidence": 0.5, "denoising deviation": 4.0,
    "asymmetric region": 10.0,
})  # fmt: skip
"""Output limits of every model of the head: a segmentation mostly of low confidence is no anatomy. Five real images had
anatomy deviations of 0.6 to 1.2 and denoising deviations of -0.5 to 2.9; one flipped front to back has 4.3, one with
noise of a fifth of its signal 4.3. Heads without a large lesion had asymmetric regions of at most 3 ml,
a glioma and a simulated infarct 58 and 107 ml."""
_LEAST_SHARE = 1e-5


def log_shares(volumes_ml: Mapping[int, float]) -> NDArray[np.float64]:
    """Return the logarithms of the structures' shares of their total volume, in the order of their numbers."""
    volumes = np.array([volumes_ml.get(s.number, 0.0) for s in STRUCTURES])
    return np.asarray(np.log(np.maximum(volumes / max(float(volumes.sum()), 1e-9), _LEAST_SHARE)))


def anatomy_score(volumes_ml: Mapping[int, float]) -> float:
    """Return the root mean square departure of the structures' volumes (by number) from the simulated population's."""
    reference = _reference_population()["anatomy"]
    departure = log_shares(volumes_ml) - np.array(reference["mean"])
    covariance = np.array(reference["covariance"]) + SEGMENTATION_SD**2 * np.eye(len(departure))
    return float(np.sqrt(departure @ np.linalg.solve(covariance, departure) / len(departure)))


def denoising_error(D: Denoiser, image: Tensor, seed: int) -> float:
    """Return the mean over eight middle slices of |D(x + sigma n) - x|^2 / (2 sigma^2) within the object.

    ``image``: magnitudes (k, j, i), air about zero. Raises ValueError for an image without signal.
    """
    x = _slices(image.float())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.view_as_complex(torch.randn((*x.shape, 2), generator=generator)).to(x.device)
    with torch.no_grad():
        denoised = [D(one[None] + SIGMA * n[None], SIGMA)[0] for one, n in zip(x, noise, strict=True)]
    inside = x.abs() > 0.1
    error = (torch.stack(denoised) - x).abs().square()[inside].mean()
    return float(error) / (2 * SIGMA**2)


def denoising_score(D: Denoiser, image: Tensor, seed: int) -> float:
    """Return the number of standard deviations by which ln ``denoising_error`` lies above that of simulated scans."""
    reference = _reference_population()["denoising"]
    return (math.log(denoising_error(D, image, seed)) - float(reference["mean"])) / float(reference["sd"])


def _slices(image: Tensor) -> Tensor:
    """Return evenly spaced slices (k, j, i) of the middle half along the first axis, complex, 99th percentile one."""
    n = image.shape[0]
    x = image[torch.linspace(n / 4, 3 * n / 4, min(SLICES, n)).long().clamp_max(n - 1)].clamp_min(0)
    level = float(torch.quantile(x.flatten()[:: max(x.numel() // 1_000_000, 1)], 0.99))
    if not level > 0:
        raise ValueError("the middle slices hold nothing")
    return (x / level).to(torch.complex64)


@cache
def _reference_population() -> dict[str, Any]:
    population: dict[str, Any] = json.loads(REFERENCE_POPULATION.read_text())
    return population
