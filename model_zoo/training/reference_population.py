"""Make ``reference_population.json``: structure volumes and denoising errors of simulated heads and their scans."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch

from model_zoo import registry
from model_zoo.out_of_distribution import REFERENCE_POPULATION, SIGMA, denoising_error, log_shares
from model_zoo.simulate.pet import disease
from model_zoo.simulate.volumes import render_contrast_agnostic
from model_zoo.structures import STRUCTURES
from model_zoo.training.recipe import make_simulated_sources, seeded

__all__ = ["describe_population"]


def describe_population(count: int, seed: int) -> dict[str, Any]:
    """Return the distributions of ``count`` simulated heads with atrophy; every fourth is scanned, in any contrast."""
    source, D = make_simulated_sources().train, registry.load("mri_prior").denoiser
    logs, errors = [], []
    for n in range(count):
        generator = seeded(seed, n)
        head = source.draw_head(generator, atrophy=disease.draw_patient(generator).atrophy)
        logs.append(log_shares(dict(enumerate(torch.bincount(head.structure.flatten().long()).tolist()))))
        if n % 4 == 0:
            errors.append(math.log(denoising_error(D, render_contrast_agnostic(head, generator), n)))
    x = np.stack(logs)
    return {
        "count": count,
        "seed": seed,
        "structures": [s.name for s in STRUCTURES],
        "anatomy": {"mean": x.mean(axis=0).round(4).tolist(), "covariance": np.cov(x.T).round(5).tolist()},
        "denoising": {"sigma": SIGMA, "mean": round(float(np.mean(errors)), 4), "sd": round(float(np.std(errors)), 4)},
    }


if __name__ == "__main__":
    REFERENCE_POPULATION.write_text(json.dumps(describe_population(200, 2026), indent=1) + "\n")
