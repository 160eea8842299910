"""Predictions of a PET without the MRI: regression on covariates, population means, and the exact posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_zoo import pet_synthesis
from model_zoo.pet_synthesis import Covariates, composites, covariate_tokens
from model_zoo.physics.tracers import TRACERS, composite_uptake
from model_zoo.simulate.pet import disease
from model_zoo.simulate.pet.disease import Observed
from model_zoo.structures import COUNT
from model_zoo.training.pet_synthesis import Subject
from model_zoo.training.recipe import seeded

__all__ = ["Baselines", "regional_suvr", "tracer_names"]


def tracer_names(subject: Subject) -> tuple[str, str]:
    """Return the amyloid and tau tracers of the subject's images."""
    return subject.covariates.amyloid_tracer or "", subject.covariates.tau_tracer or ""


def regional_suvr(subject: Subject, image: Tensor) -> Tensor:
    """Return the SUVR by structure (2, COUNT) of an image (2, k, j, i), by its own reference regions."""
    return pet_synthesis.compute_regional_suvr(image, subject.covariates, subject.structure)


@dataclass(frozen=True)
class Baselines:
    """Baselines of other subjects: ``weights`` (features, 2, structures) and ``means`` (2, structures) give SUVR.

    An image's composite is ``offset`` + ``slope`` times that of the latent state, with residual sd ``residual``,
    each (2,).
    """

    weights: Tensor
    means: Tensor
    offset: Tensor
    slope: Tensor
    residual: Tensor

    @staticmethod
    def fit(subjects: Sequence[Subject]) -> Baselines:
        """Fit by least squares with a little ridge; all covariates of ``subjects`` are known."""
        features = torch.stack([_make_features(s.covariates) for s in subjects])
        measured_suvr = torch.stack([regional_suvr(s, s.pet) for s in subjects]).nan_to_num(1.0)
        ridge = 0.1 * torch.eye(features.shape[1])
        weights = torch.linalg.solve(features.T @ features + ridge, features.T @ measured_suvr.flatten(1))
        measured = torch.stack([composites(each) for each in measured_suvr])
        latent = torch.stack([_latent_composites(s) for s in subjects])
        about = latent - latent.mean(0)
        slope = (about * measured).sum(0) / about.square().sum(0)
        offset = measured.mean(0) - slope * latent.mean(0)
        residual = (measured - offset - slope * latent).std(0)
        return Baselines(weights.reshape(-1, 2, COUNT), measured_suvr.mean(0), offset, slope, residual)

    def predict_by_regression(self, subject: Subject) -> Tensor:
        """Return the SUVR image (2, k, j, i): each structure has the mean that its covariates predict."""
        return _paint(subject, torch.einsum("f,fcr->cr", _make_features(subject.covariates), self.weights))

    def predict_population_mean(self, subject: Subject) -> Tensor:
        """Return the SUVR image (2, k, j, i): each structure has the mean of everybody."""
        return _paint(subject, self.means)

    def draw_exact_posterior(self, subject: Subject, seed: int, count: int = 2000) -> Tensor:
        """Draw (count, 2) of the image's composites from the disease model's posterior, true atrophy included."""
        c, generator = subject.covariates, seeded(seed, 7)
        mmse = None if c.mmse is None else int(c.mmse)
        observed = Observed(c.age_years, c.sex, c.e4, mmse, c.ptau217_pg_ml, subject.patient.atrophy)
        posterior = disease.sample_posterior(observed, generator, count=60_000)
        at = torch.multinomial(posterior.weights, count, replacement=True, generator=generator)
        latent = torch.stack([posterior.suvr(name)[at] for name in tracer_names(subject)], dim=1)
        return self.offset + self.slope * latent + self.residual * torch.randn(latent.shape, generator=generator)


def _make_features(c: Covariates) -> Tensor:
    """Return 1 and the covariates, centred and scaled as the network gets them."""
    return torch.cat([torch.ones(1), covariate_tokens(c)[2:, -1]])


def _latent_composites(subject: Subject) -> Tensor:
    states = (subject.patient.amyloid_cl, subject.patient.tau_stage)
    return torch.stack([composite_uptake(TRACERS[n], s) for n, s in zip(tracer_names(subject), states, strict=True)])


def _paint(subject: Subject, values: Tensor) -> Tensor:
    return pet_synthesis.paint(subject.maps[None], values[None])[0]
