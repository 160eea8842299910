"""Status of amyloid, tau and neurodegeneration (A, T, N) from synthetic PET: areas under the ROC curve.

    python -m benchmarks.pet_status [--heads 60] [--patients 8]

Simulated patients on held-out anatomy. The status is the simulator's own state: A+ from 24 CL, T+ from Braak stage 3,
N+ from 0.40 of its neurodegeneration. Scores: the composite SUVR of the measured PET, of the model's mean (with all
covariates, without p-tau217, with the T1w alone), the exact posterior's mean; linear regression of the status on the
covariates, fitted on training anatomy, which sees no image; volume of the hippocampus within the brain. Patients of one
head share its atrophy; the interval (95 %) is by bootstrap over heads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.real_dir import auc
from model_zoo import pet_synthesis, registry
from model_zoo.bundle import Model
from model_zoo.evaluation.pet_baselines import Baselines, regional_suvr
from model_zoo.pet_synthesis import Conditions, Covariates, composites, covariate_tokens
from model_zoo.precision import autocast
from model_zoo.simulate import anatomy
from model_zoo.simulate.pet.disease import AMYLOID_POSITIVE_CL, NEURODEGENERATION_POSITIVE, Patient
from model_zoo.structures import number
from model_zoo.training import pet_synthesis as training
from model_zoo.training.pet_synthesis import Subject
from model_zoo.training.recipe import Source, seeded

TAU_POSITIVE_STAGE = 3.0
SEED = 41_200
TRACERS = ("florbetapir", "flortaucipir")
STATUS: dict[str, Callable[[Patient], bool]] = {
    "A": lambda p: p.amyloid_cl >= AMYLOID_POSITIVE_CL,
    "T": lambda p: p.tau_stage >= TAU_POSITIVE_STAGE,
    "N": lambda p: p.neurodegeneration >= NEURODEGENERATION_POSITIVE,
}
REGRESSION, REGRESSION_BLIND = "regression on all covariates", "regression on covariates without p-tau217"
VOLUME = "volume of the hippocampus"


@dataclass(frozen=True)
class Scored:
    """One patient: the head's number, the status, and the scores by method and letter."""

    head: int
    status: dict[str, bool]
    scores: dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--heads", type=int, default=60)
    parser.add_argument("--patients", type=int, default=8)
    arguments = parser.parse_args()
    model = registry.load("pet_synthesis")
    train = [s for _, s in draw_subjects(model, anatomy.TRAIN[:6], 24, 8, SEED)]
    baselines, weights = Baselines.fit(train), fit_regressions(train)
    found = [
        score(model, head, subject, baselines, weights)
        for head, subject in draw_subjects(model, anatomy.TEST, arguments.heads, arguments.patients, SEED + 1)
    ]
    counts = ", ".join(f"{letter}+ {sum(s.status[letter] for s in found)}" for letter in STATUS)
    print(f"{len(found)} patients: {counts}\n")
    print("| score | " + " | ".join(STATUS) + " |\n| --- " + "| ---: " * len(STATUS) + "|")
    for method in found[0].scores:
        print(f"| {method} | " + " | ".join(make_cell(found, method, letter) for letter in STATUS) + " |")


def draw_subjects(
    model: Model, names: Sequence[str], heads: int, patients: int, seed: int
) -> list[tuple[int, Subject]]:
    """Return simulated subjects on the bundle's grid, each with its head's number."""
    k, j, i = model.settings["shape"]
    c = replace(training.CONFIGURATIONS["smoke"], spacing_mm=float(model.settings["spacing_mm"]), shape=(k, j, i))
    found = []
    for head in range(heads):
        generator, source = seeded(seed, head), Source((names[head % len(names)],))
        sharing = training.draw_patients_sharing_atrophy(patients, generator)
        at = training.draw_head(c, source, sharing[0], generator)
        found += [(head, s) for s in training.simulate_subjects(at, sharing, generator, tracers=TRACERS)]
    return found


def fit_regressions(subjects: Sequence[Subject]) -> dict[str, Tensor]:
    """Return the weights (features, letters) of the status, by least squares with a little ridge."""
    status = torch.tensor([[float(of(s.patient)) for of in STATUS.values()] for s in subjects])
    weights = {}
    for name, is_blind in ((REGRESSION, False), (REGRESSION_BLIND, True)):
        x = torch.stack([make_features(s.covariates, is_blind=is_blind) for s in subjects])
        weights[name] = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ status)
    return weights


def make_features(c: Covariates, *, is_blind: bool) -> Tensor:
    """Return 1 and the covariates, centred and scaled as the network gets them; blind: without p-tau217."""
    known = replace(c, ptau217_pg_ml=None) if is_blind else c
    return torch.cat([torch.ones(1), covariate_tokens(known)[2:, -1]])


def score(model: Model, head: int, s: Subject, baselines: Baselines, weights: dict[str, Tensor]) -> Scored:
    """Return the status and all scores of one patient."""
    full = s.covariates
    blank = Covariates(full.amyloid_tracer, full.tau_tracer)
    composite = {
        "measured PET": composites(regional_suvr(s, s.pet)),
        "exact posterior (true atrophy, all covariates)": baselines.draw_exact_posterior(s, SEED).mean(0),
        "this model, all covariates": predict_composites(model, s, full),
        "this model, without p-tau217": predict_composites(model, s, replace(full, ptau217_pg_ml=None)),
        "this model, T1w alone": predict_composites(model, s, blank),
    }
    scores = {name: {"A": float(x[0]), "T": float(x[1])} for name, x in composite.items()}
    for name, w in weights.items():
        values = (make_features(full, is_blind=name == REGRESSION_BLIND) @ w).tolist()
        scores[name] = dict(zip(STATUS, values, strict=True))
    volume = float(s.maps[number("hippocampus") - 1].sum() / s.maps.sum())
    scores[VOLUME] = dict.fromkeys(STATUS, -volume)
    return Scored(head, {letter: of(s.patient) for letter, of in STATUS.items()}, scores)


def predict_composites(model: Model, s: Subject, c: Covariates) -> Tensor:
    """Return the composites (2,) of the model's mean image, given these covariates."""
    conditions = Conditions(s.y0[None, None], covariate_tokens(c)[None], s.maps[None])
    with torch.no_grad(), autocast("cpu"):
        mean = pet_synthesis.predict_mean(model.network, conditions).float()
    suvr = pet_synthesis.normalise_to_own_reference(mean, s.covariates, s.structure)[0][0]
    return composites(regional_suvr(s, suvr))


def make_cell(found: Sequence[Scored], method: str, letter: str) -> str:
    """Return the area under the curve with its interval; empty where the method gives no such score."""
    chosen = [s for s in found if letter in s.scores[method]]
    if not chosen:
        return ""
    low, high = np.quantile(bootstrap(chosen, method, letter), [0.025, 0.975])
    return f"{measure_area(chosen, method, letter):.3f} ({low:.3f} to {high:.3f})"


def measure_area(found: Sequence[Scored], method: str, letter: str) -> float:
    """Return the area under the ROC curve."""
    values = np.array([s.scores[method][letter] for s in found], np.float32)
    positive = np.array([s.status[letter] for s in found])
    return auc(values[positive], values[~positive])


def bootstrap(found: Sequence[Scored], method: str, letter: str, draws: int = 400) -> NDArray[np.float64]:
    """Return the area for heads drawn with replacement; draws of one status only are left out."""
    by_head: dict[int, list[Scored]] = {}
    for s in found:
        by_head.setdefault(s.head, []).append(s)
    heads, rng = list(by_head.values()), np.random.default_rng(0)
    areas = []
    for _ in range(draws):
        chosen = [s for at in rng.integers(len(heads), size=len(heads)) for s in heads[at]]
        if 0 < sum(s.status[letter] for s in chosen) < len(chosen):
            areas.append(measure_area(chosen, method, letter))
    return np.array(areas)


if __name__ == "__main__":
    main()
