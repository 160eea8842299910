"""Recipe ``pet-synthesis``: amyloid and tau PET from a T1w and the patient's covariates.

Data: a patient of ``simulate.pet.disease``, a head with that patient's atrophy, its T1w (MPRAGE) and both tracers'
images; further patients on the same head are drawn from p(patient | atrophy). Or a user's registered T1w and PET.

Loss, over the intracranial voxels, x0_hat = f(x_t, y0, eta, covariates), d the signed difference of the tracers:

    L = w [mean (x0_hat - x0)^2 + 0.1 mean (d_hat - d)^2 + 0.1 mean over structures (mean x0_hat - mean x0)^2]
        + w_nll N(structure means of x0; those of x0_hat, learned sd)

Differences from the papers, and their reasons. Squares instead of absolute values: the sampler and the one-step head
need E[x0 | x_t], and an absolute loss gives medians; of a patient who is amyloid positive with probability 0.4 it would
show a negative scan. The signed difference (they take its magnitude) is between channels that see the same x_t, so that
it has the same minimiser; with one tracer at a time it would not. y0 and the anatomy are inputs at every step. The
level of each structure has its own learned sd, on the detached residual, from covariates and time. eta is continuous,
so that one network serves any schedule; half of the items are at eta = 1, where it sees no x0, half of these without
noise: the posterior-mean head. Every covariate is dropped with probability 0.1; plasma, genotype and cognition more
often, as they are often unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import pet_synthesis, residual_shift
from model_zoo.networks.pet_unet import PetUNet
from model_zoo.pet_synthesis import COVARIATES, TARGETS, Conditions, Covariates
from model_zoo.physics.mr import TissueParameters, look_up
from model_zoo.physics.tracers import TRACERS
from model_zoo.simulate import acquisition
from model_zoo.simulate.contrasts import draw_sequence
from model_zoo.simulate.heads import Head
from model_zoo.simulate.pet import disease
from model_zoo.simulate.pet.activity import (
    compute_block_fractions,
    label_binding_regions,
    render_activity,
    take_majority,
)
from model_zoo.simulate.pet.disease import Observed, Patient
from model_zoo.structures import COUNT
from model_zoo.training import recipe
from model_zoo.training.cohort import Cohort
from model_zoo.training.pet_intervals import ValidationItem, calibrate_intervals, measure_errors
from model_zoo.training.pet_rows import SHRINK, read_covariates, read_row
from model_zoo.training.recipe import Column, Recipe, Source, seeded

__all__ = [
    "CONFIGURATIONS",
    "RECIPE",
    "Configuration",
    "Subject",
    "draw_head",
    "draw_patients_sharing_atrophy",
    "draw_validation_items",
    "drop_covariates",
    "select_conditions",
    "simulate_subjects",
]

UNSHUFFLE = 4
CONDITIONAL_DRAWS = 4000
CALIBRATION_HEADS, CALIBRATION_PATIENTS = 60, 8
DROPPED = dict.fromkeys(COVARIATES, 0.1) | {"mmse": 0.25, "ptau217": 0.4, "e4": 0.25}
DRAW_TRACERS = {"amyloid": ("florbetapir", "PiB"), "tau": ("flortaucipir", "MK-6240")}


@dataclass(frozen=True, kw_only=True)
class Configuration(recipe.Configuration):
    """``shape``: voxels of ``spacing_mm`` that hold a brain; ``patients``: how many share a head within a batch."""

    channels: tuple[int, ...]
    blocks: int
    spacing_mm: float
    shape: tuple[int, int, int]
    patients: int = 4
    end_share: float = 0.5
    difference_weight: float = 0.1
    structure_weight: float = 0.1
    image_weight: float = 100.0
    nll_weight: float = 0.05


CONFIGURATIONS = {
    "cpu": Configuration(
        channels=(64, 128), blocks=2, spacing_mm=3.0, shape=(56, 72, 56), steps=1800, batch=4, patients=4,
        learning_rate=2e-3, warmup=50, ema=0.99, checkpoint_every=50, validate_every=250,
    ),
    "gpu": Configuration(
        channels=(64, 128, 160), blocks=1, spacing_mm=2.0, shape=(96, 112, 96), steps=12000, batch=8, patients=4,
        learning_rate=1.0e-3, ema=0.999, workers=14, checkpoint_every=500, validate_every=3000,
    ),
    "smoke": Configuration(
        channels=(8, 16), blocks=1, spacing_mm=10.0, shape=(24, 24, 24), steps=6, batch=2, patients=2,
        learning_rate=1e-3, warmup=2, checkpoint_every=3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One simulated patient on the network's grid.

    ``pet`` (2, k, j, i): amyloid and tau in SUVR; ``y0`` (k, j, i): the scaled T1w; ``maps`` (23, k, j, i);
    ``structure``: uint8 (k, j, i); ``covariates``: all of them.
    """

    patient: Patient
    covariates: Covariates
    pet: Tensor
    y0: Tensor
    maps: Tensor
    structure: Tensor

    @property
    def x0(self) -> Tensor:
        """PET over its tracers' scales, within the skull: the network's target (2, k, j, i)."""
        scales = torch.tensor(pet_synthesis.suvr_scales(self.covariates))[:, None, None, None]
        return self.pet / scales * self.maps.sum(0)


def make_network(c: Configuration) -> nn.Module:
    return PetUNet(
        pet_synthesis.tissue_indices(),
        pet_synthesis.size_indices(),
        channels=c.channels,
        blocks=c.blocks,
        unshuffle=UNSHUFFLE,
    )


def draw_head(c: Configuration, source: Source, patient: Patient, generator: torch.Generator) -> Head:
    """Draw a head with the patient's atrophy, ``SHRINK`` times finer than the configuration's grid."""
    k, j, i = (SHRINK * n for n in c.shape)
    options: dict[str, Any] = {} if source.phantom else {"atrophy": patient.atrophy}
    return source.draw_head(generator, shape=(k, j, i), spacing_mm=c.spacing_mm / SHRINK, **options)


def simulate_subjects(
    head: Head, patients: list[Patient], generator: torch.Generator, *, tracers: tuple[str, str] | None = None
) -> list[Subject]:
    """Simulate images of patients who share a head. ``tracers``: amyloid and tau; None draws them for each patient."""
    regions = label_binding_regions(head)
    structure = take_majority(head.structure, SHRINK)
    maps = compute_block_fractions(head.structure, COUNT + 1, SHRINK)[1:]
    subjects = []
    for patient in patients:
        covariates = _describe_patient(patient, tracers or _draw_tracers(generator))
        pet = torch.stack([
            render_activity(
                head, TRACERS[name], patient.state(target), generator,
                regions=regions, structure=structure, shrink=SHRINK,
            )
            for target, name in zip(TARGETS, (covariates.amyloid_tracer, covariates.tau_tracer), strict=True)
            if name is not None
        ])  # fmt: skip
        subjects.append(Subject(patient, covariates, pet, _render_t1w(head, maps, generator), maps, structure))
    return subjects


def _describe_patient(patient: Patient, tracers: tuple[str, str]) -> Covariates:
    return Covariates(*tracers, patient.age_years, patient.sex, patient.e4, float(patient.mmse), patient.ptau217_pg_ml)


def _draw_tracers(generator: torch.Generator) -> tuple[str, str]:
    a, t = (names[int(acquisition.uniform(generator, 0, 2))] for names in DRAW_TRACERS.values())
    return a, t


def _render_t1w(head: Head, maps: Tensor, generator: torch.Generator) -> Tensor:
    """Render y0: MPRAGE by its equation with the subject's own tissue, fine, then averaged, biased, noisy, scaled."""
    p = TissueParameters.table().draw_regional(generator, COUNT + 1)
    signal = look_up(draw_sequence("mprage", generator).signal(p).abs(), head.tissue, head.structure)
    image = functional.avg_pool3d(signal[None, None], SHRINK)[0, 0]
    shape = (image.shape[0], image.shape[1], image.shape[2])
    image = image * acquisition.draw_bias_field(shape, acquisition.log_uniform(generator, 0.02, 0.2), generator)
    level = float(image.mean()) * acquisition.log_uniform(generator, 0.01, 0.06)
    image = acquisition.add_rician_noise(image, level, generator)
    return pet_synthesis.scale_t1w(image, maps.sum(0) > 0.5)


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw x0 (b, 2, k, j, i), known (b, 2): 1 where the tracer's image exists, conditions, eta, quiet, noise."""
    if source.cohort is not None:
        items = [
            read_row(source.cohort, source.cohort.draw_row(generator), c.shape, c.spacing_mm) for _ in range(c.batch)
        ]
    else:
        items = []
        while len(items) < c.batch:
            patients = draw_patients_sharing_atrophy(min(c.patients, c.batch - len(items)), generator)
            head = draw_head(c, source, patients[0], generator)
            items += [_make_item(subject) for subject in simulate_subjects(head, patients, generator)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    batch["tokens"] = drop_covariates(batch["tokens"], generator)
    at_end = torch.rand(c.batch, generator=generator) < c.end_share
    root = 0.05 + 0.95 * torch.rand(c.batch, generator=generator)
    batch["quiet"] = (at_end & (torch.rand(c.batch, generator=generator) < 0.5)).float()
    batch["eta"] = torch.where(at_end, torch.ones(()), root.square())
    noise = pet_synthesis.anatomical_noise(batch["maps"], generator)
    return batch | {"noise": noise * (1 - batch["quiet"])[:, None, None, None, None]}


def draw_patients_sharing_atrophy(count: int, generator: torch.Generator) -> list[Patient]:
    """Draw a patient and others with the same atrophy, from p(patient | atrophy) by resampling."""
    first = disease.draw_patient(generator)
    posterior = disease.sample_posterior(Observed(atrophy=first.atrophy), generator, count=CONDITIONAL_DRAWS)
    at = torch.multinomial(posterior.weights, max(count - 1, 1), replacement=True, generator=generator)
    others = [replace(posterior.population.patient(int(i)), atrophy=first.atrophy) for i in at[: count - 1]]
    return [first, *others]


def _make_item(subject: Subject) -> dict[str, Tensor]:
    return {
        "x0": subject.x0,
        "known": torch.ones(len(TARGETS)),
        "y0": subject.y0[None],
        "tokens": pet_synthesis.covariate_tokens(subject.covariates),
        "maps": subject.maps,
    }


def drop_covariates(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Make covariates unknown at random: each at its rate of ``DROPPED``, and all of them in one item of twenty."""
    rates = torch.tensor([DROPPED[name] for name in COVARIATES])
    keep = torch.rand(tokens.shape[:2], generator=generator) >= rates
    keep &= torch.rand((len(tokens), 1), generator=generator) >= 0.05
    dropped = tokens.clone()
    dropped[..., -2:] *= keep[..., None]
    return dropped


def select_conditions(batch: dict[str, Tensor]) -> Conditions:
    """Return the conditions of a batch, which the network gets in training and in inference."""
    return Conditions(batch["y0"], batch["tokens"], batch["maps"])


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Return the sum in the module's docstring."""
    x0, y0 = batch["x0"], batch["y0"].expand(-1, len(TARGETS), -1, -1, -1)
    x = residual_shift.shift(x0, y0, batch["eta"][:, None, None, None, None], pet_synthesis.KAPPA, batch["noise"])
    x0_hat, log_sd = network(x, batch["y0"], batch["eta"], batch["quiet"], batch["tokens"], batch["maps"])
    with torch.autocast(x.device.type, enabled=False):
        return _weighted_error(x0_hat.float() - x0, log_sd, batch, c)


def _weighted_error(residual: Tensor, log_sd: Tensor, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    known, maps = batch["known"], batch["maps"]
    residual = residual * known[:, :, None, None, None]
    inside = maps.sum(dim=1, keepdim=True)
    image = (inside * residual.square()).sum() / inside.sum() / known.sum(dim=1).mean().clamp(min=1.0)
    has_both = known.prod(dim=1)[:, None, None, None, None]
    difference = (has_both * inside * (residual[:, :1] - residual[:, 1:]).square()).sum() / inside.sum()
    volume = maps.flatten(2).sum(2)[:, None]
    means = torch.einsum("brv,bcv->bcr", maps.flatten(2), residual.flatten(2)) / volume.clamp(min=1.0)
    is_present = known[:, :, None] * (volume > 1.0)
    structures = (is_present * means.square()).sum() / is_present.sum().clamp(min=1.0)
    surprise = 0.5 * (means.detach() * torch.exp(-log_sd)).square() + log_sd
    nll = (is_present * surprise).sum() / is_present.sum().clamp(min=1.0)
    total = image + c.difference_weight * difference + c.structure_weight * structures
    return c.image_weight * total + c.nll_weight * nll


def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return errors of the posterior mean within the skull on fixed items, covariates dropped as in training.

    ``rmse_amyloid``, ``rmse_tau``: SUVR over the fixed scale; ``structure_rmse``: of the structures' means.
    """
    totals: dict[str, list[float]] = {}
    device = next(network.parameters()).device
    for index in range(3 if source.phantom else 6):
        batch = draw_batch(replace(c, batch=min(c.batch, 2)), source, seeded(c.seed, 10**9, index))
        batch = {name: value.to(device) for name, value in batch.items()}
        residual = pet_synthesis.predict_mean(network, select_conditions(batch)) - batch["x0"]
        inside = batch["maps"].sum(dim=1)
        for at, target in enumerate(TARGETS):
            error = (inside * residual[:, at].square()).sum() / inside.sum()
            totals.setdefault(f"rmse_{target}", []).append(float(error))
        means = torch.einsum("brv,bcv->bcr", batch["maps"].flatten(2), residual.flatten(2).float())
        means = means / batch["maps"].flatten(2).sum(2)[:, None].clamp(min=1.0)
        totals.setdefault("structure_rmse", []).append(float(means.square().mean()))
    return {name: math.sqrt(sum(values) / len(values)) for name, values in totals.items()}


def calibrate(network: nn.Module, c: Configuration, source: Source) -> dict[str, Any]:
    """Return the factors of the intervals (``model_zoo.pet_intervals``) from the source's subjects.

    Simulated: ``CALIBRATION_HEADS`` heads with ``CALIBRATION_PATIENTS`` patients each, half of them with all covariates
    and half as in training; both pairs of tracers in turn. A user's: each row once, with what it holds.
    """
    if source.cohort is not None:
        items = _iterate_rows(c, source.cohort)
    else:
        heads, patients = (1, 2) if source.phantom else (CALIBRATION_HEADS, CALIBRATION_PATIENTS)
        items = draw_validation_items(c, source, heads, patients)
    return calibrate_intervals(measure_errors(network, item) for item in items)


def draw_validation_items(c: Configuration, source: Source, heads: int, patients: int) -> Iterator[ValidationItem]:
    """Draw subjects on heads of the source, whose ``patients`` share one head; every second lacks covariates."""
    for at in range(heads):
        generator = seeded(c.seed, 10**9, 1, at)
        sharing = draw_patients_sharing_atrophy(patients, generator)
        head = draw_head(c, source, sharing[0], generator)
        tracers = DRAW_TRACERS["amyloid"][at % 2], DRAW_TRACERS["tau"][at % 2]
        for n, subject in enumerate(simulate_subjects(head, sharing, generator, tracers=tracers)):
            tokens = pet_synthesis.covariate_tokens(subject.covariates)[None]
            tokens = drop_covariates(tokens, generator) if n % 2 else tokens
            conditions = Conditions(subject.y0[None, None], tokens, subject.maps[None])
            yield ValidationItem(conditions, subject.covariates, subject.x0, (True, True))


def _iterate_rows(c: Configuration, cohort: Cohort) -> Iterator[ValidationItem]:
    for row in cohort.rows:
        item, covariates = read_row(cohort, row, c.shape, c.spacing_mm), read_covariates(row)
        conditions = Conditions(item["y0"][None], item["tokens"][None], item["maps"][None])
        amyloid, tau = (bool(known) for known in item["known"])
        yield ValidationItem(conditions, covariates, item["x0"], (amyloid, tau))


def describe_inference(c: Configuration) -> dict[str, Any]:
    """Return the network's definition, its grid, the fixed scales and schedules."""
    return {
        "network_def": {
            "_target_": "model_zoo.networks.pet_unet.PetUNet",
            "tissues": pet_synthesis.tissue_indices(),
            "sizes": pet_synthesis.size_indices(),
            "channels": list(c.channels),
            "blocks": c.blocks,
            "unshuffle": UNSHUFFLE,
        },
        "spacing_mm": c.spacing_mm,
        "shape": list(c.shape),
        "kappa": pet_synthesis.KAPPA,
        "suvr_scales": {name: tracer.scale for name, tracer in TRACERS.items() if tracer.target in TARGETS},
        "schedules": {str(steps): etas for steps, etas in pet_synthesis.SCHEDULES.items()},
        "covariates": list(COVARIATES),
    }


RECIPE = Recipe(
    name="pet-synthesis",
    bundle="pet_synthesis",
    configurations=CONFIGURATIONS,
    make_network=make_network,
    draw_batch=draw_batch,
    compute_loss=compute_loss,
    validate=validate,
    describe_inference=describe_inference,
    calibrate=calibrate,
    facts={
        "task": "Synthesis of amyloid and tau PET (SUVR) from T1w MRI, anatomy and covariates",
        "intended_use": "Research only. Not for diagnosis. A demonstration: the link from anatomy to pathology was "
        "invented by the simulator, so that clinical numbers from these weights mean nothing for a patient.",
        "network_input": {
            "t1w": "MPRAGE-like T1w of an adult head, intensities scaled within the skull",
            "structures": "the anatomy model's 23 structures",
            "covariates": "tracers, age in years, sex, APOE e4 alleles, MMSE, plasma p-tau217 in pg/ml; each optional",
            "age_years": [50, 95],
        },
        "input_contract": {
            "t1w": [
                {"fact": "modality", "one_of": ["MR"]},
                {"fact": "body_part", "one_of": ["head", "brain", "skull", "cereb", "crani", "neuro"]},
                {"fact": "te_ms", "between": [0.5, 20]},
                {"fact": "ti_ms", "between": [500, 1400]},
                {"fact": "coverage_mm", "between": [120, 400]},
                {"fact": "coarsest_spacing_mm", "between": [0.4, 3], "otherwise": "hold"},
                {"fact": "field_strength_t", "between": [1.4, 3.1], "otherwise": "hold"},
                {"fact": "age_years", "between": [50, 95], "otherwise": "hold"},
            ]
        },
        "output_limits": pet_synthesis.OUTPUT_LIMITS,
        "units": "SUVR (whole cerebellum for amyloid, cerebellar cortex for tau) over a fixed scale per tracer",
        "trained_on": "simulation only (SynthSeg label maps, a latent model of disease); never on patient images",
        "data_licence": "SynthSeg label maps: Apache-2.0; no image data",
    },
    columns=(
        Column("t1w", "image", help="T1w, first: the others are registered to it"),
        Column("structures", "labels", help="numbers of the anatomy model, on the T1w"),
        Column("amyloid", "image", required=False, help="amyloid PET in any unit, registered"),
        Column("tau", "image", required=False, help="tau PET in any unit, registered"),
        Column("amyloid_tracer", "word", required=False, help="florbetapir or PiB; florbetapir if empty"),
        Column("tau_tracer", "word", required=False, help="flortaucipir or MK-6240; flortaucipir if empty"),
        Column("age", "number", required=False, help="years"),
        Column("sex", "word", required=False, help="F or M"),
        Column("e4", "number", required=False, help="APOE e4 alleles: 0, 1, 2"),
        Column("mmse", "number", required=False, help="points, 0 to 30"),
        Column("ptau217", "number", required=False, help="plasma p-tau217, pg/ml"),
    ),
)
