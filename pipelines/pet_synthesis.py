"""Amyloid and tau PET from a T1w image: the mean of the scans of similar patients, and their spread.

Input: ``t1w`` (:class:`pipelines.contract.Volume`), MPRAGE-like, any orientation; ``covariates``
(:class:`pipelines.contract.Covariates`), each of which may be unknown. Output, per tracer and on the T1w's own grid:
the posterior mean in SUVR (one evaluation), the standard deviation of K samples, and by region SUVR with 80 and 95 %
intervals, Centiloid and the probability of amyloid (``pipelines.pet_numbers``). What-if images: the same patient with
another MMSE; the one-step mean draws no random numbers, so that only the score differs.

Weights trained on simulation only have learned an invented link from anatomy to pathology: their numbers are withheld,
and images are in relative units, unless the site asks for the numbers.

Model: bundle ``pet_synthesis``, the residual-shift process of ``model_zoo.residual_shift`` (ResShift, Yue et al. 2023;
ResDM in its corrected form) with the anatomy of the bundle ``anatomy``. The T1w and the structures are brought to the
network's grid about the brain as in training, ``model_zoo.training.pet_synthesis``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from model_zoo import pet_synthesis
from model_zoo.pet_synthesis import SCHEDULES, TARGETS
from model_zoo.physics.tracers import TRACERS
from model_zoo.precision import autocast
from model_zoo.uncertainty import mean_and_sd
from pipelines import anatomy, contract, pet_numbers, resampling
from pipelines.codes import STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Finding,
    Image,
    Input,
    Measurement,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Volume,
)
from pipelines.pet_prompt import parse_prompt
from pipelines.pet_subject import Subject, prepare_subject

if TYPE_CHECKING:
    from typing import Self

    from model_zoo.bundle import Model

__all__ = [
    "PIPELINE",
    "WINDOWS_MIN",
    "Options",
    "PetEstimate",
    "estimate_pet",
    "estimate_what_if",
    "network_covariates",
    "run",
]

WINDOWS_MIN = MappingProxyType(
    {"florbetapir": (50, 70), "PiB": (50, 70), "flortaucipir": (80, 100), "MK-6240": (90, 110)}
)
"""Scan window of each tracer in minutes after injection, the only one that the models know."""
TITLES = MappingProxyType({
    "age_years": ("age", "years"), "sex": ("sex", ""), "e4_alleles": ("APOE e4 alleles", ""),
    "mmse": ("MMSE", "points"), "ptau217_pg_ml": ("plasma p-tau217", "pg/ml"),
})  # fmt: skip
MMSE = Annotated[int, Field(ge=0, le=30)]


class Options(BaseModel):
    """Options of a route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    amyloid_tracer: Literal["florbetapir", "PiB"] = Field(
        default="florbetapir",
        description="tracer of the amyloid image",
    )
    tau_tracer: Literal["flortaucipir", "MK-6240"] = Field(
        default="flortaucipir",
        description="tracer of the tau image",
    )
    scan_window: Literal["late"] = Field(default="late", description="time of the scan after injection")
    samples: int = Field(default=8, ge=2, le=64, description="samples, from which the standard deviation comes")
    steps: Literal[1, 4, 15] = Field(default=4, description="evaluations of the network per sample")
    what_if_mmse: tuple[MMSE, ...] = Field(
        default=(),
        max_length=4,
        description="MMSE scores of further images, in place of the patient's",
    )
    prompt: str = Field(
        default="",
        max_length=200,
        description='covariates of a further image, in words: "a tau image with MMSE 13, female"',
    )
    positive_centiloid: float = Field(
        default=24.0,
        ge=0,
        le=100,
        description="Centiloid value from which amyloid is called positive",
    )
    abstain_between: tuple[float, float] = Field(
        default=(0.2, 0.8),
        description="range of the probability of amyloid, ends included, in which no status is stated",
    )
    clinical_numbers: Literal["withhold", "give"] = Field(
        default="withhold",
        description="give: SUVR, Centiloid and status also from a model trained on simulation only",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        low, high = self.abstain_between
        if not 0 <= low <= high <= 1:
            raise ValueError(f"abstain_between has to be two probabilities in order; it is {low:g} to {high:g}")
        return self

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if prompt:
            parse_prompt(prompt)
        return prompt

    @property
    def tracers(self) -> tuple[str, str]:
        return self.amyloid_tracer, self.tau_tracer


@dataclass(frozen=True)
class PetEstimate:
    """Amyloid and tau in SUVR on the network's grid: ``mean`` and ``sd`` (2, k, j, i).

    By structure: ``regional_mean`` (2, COUNT), the ``regional_sd`` (2, COUNT) that the network predicts, and
    ``regional_samples`` (K, 2, COUNT); ``factors`` (2,): means of the reference regions before division; ``outside``
    (2,): activity in the cerebrospinal fluid over that in the brain.
    """

    mean: Tensor
    sd: Tensor
    regional_mean: Tensor
    regional_sd: Tensor
    regional_samples: Tensor
    factors: Tensor
    outside: Tensor


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Segment the anatomy, estimate the posterior mean and samples, and measure them."""
    t1w, sourced = case["t1w"], case.inputs.get("covariates", contract.Covariates())
    if not isinstance(t1w, Volume) or not isinstance(sourced, contract.Covariates):
        raise Refused("pet_synthesis takes a T1w image and covariates")
    anatomy.check_head(t1w, case.facts)
    head_anatomy = anatomy.segment_head(t1w, model.helpers["anatomy"], lambda done, step: progress(0.6 * done, step))
    subject = prepare_subject(t1w, head_anatomy, model)
    covariates = network_covariates(sourced, options)
    e = estimate_pet(subject, covariates, model, options, seed, lambda done: progress(0.6 + 0.3 * done, "samples"))
    progress(0.9, "own grid")
    delivery = _Delivery(
        t1w, subject, options, withheld=model.simulation_only and options.clinical_numbers == "withhold"
    )
    images = [*_images(e, delivery), *_what_if_images(subject, covariates, model, delivery)]
    numbers = (
        []
        if delivery.withheld
        else pet_numbers.measure_pet(
            e.regional_mean, e.regional_sd, e.regional_samples, covariates, options, model.settings
        )
    )
    notes = _notes(sourced, options, model, delivery.withheld)
    return [
        *images,
        *numbers,
        *_measure_quality(e, options),
        *anatomy.measure_brain(head_anatomy),
        *anatomy.score_out_of_distribution(head_anatomy, t1w, model, seed),
        *notes,
    ]


def network_covariates(sourced: contract.Covariates, options: Options) -> pet_synthesis.Covariates:
    """Return the covariates as the network takes them."""
    return pet_synthesis.Covariates(
        options.amyloid_tracer,
        options.tau_tracer,
        sourced.age_years.value,
        sourced.sex.value,
        sourced.e4_alleles.value,
        None if sourced.mmse.value is None else float(sourced.mmse.value),
        sourced.ptau217_pg_ml.value,
    )


def estimate_pet(
    subject: Subject,
    covariates: pet_synthesis.Covariates,
    model: Model,
    options: Options,
    seed: int,
    progress: Callable[[float], None] = lambda done: None,
) -> PetEstimate:
    """Estimate the posterior mean and draw ``options.samples`` samples."""
    conditions = subject.make_conditions(covariates, model.device)
    etas = SCHEDULES.get(options.steps, [1.0])
    x0 = _compute(model, lambda: pet_synthesis.predict_mean(model.network, conditions))
    mean, factors, regional_mean = _normalise(x0, subject, covariates)
    regional_sd = _compute(model, lambda: pet_synthesis.predict_regional_sd(model.network, conditions, covariates))
    images, samples = [], []
    for n in range(options.samples):
        progress(n / options.samples)
        generator = torch.Generator().manual_seed(_sample_seed(seed, n))
        x0_sample = _compute(model, lambda: pet_synthesis.draw_samples(model.network, conditions, etas, generator))  # noqa: B023
        image, _, by_structure = _normalise(x0_sample, subject, covariates)
        images.append(image)
        samples.append(by_structure)
    sd, by_structure = mean_and_sd(images)[1], torch.stack(samples)
    return PetEstimate(mean, sd, regional_mean, regional_sd, by_structure, factors, _outside_ratio(mean, subject))


def _outside_ratio(mean: Tensor, subject: Subject) -> Tensor:
    """Return the mean in the cerebrospinal fluid, outer and ventricular, over that in the brain's tissue (2,)."""
    grey, white, csf = (subject.maps[indices].sum(0) for indices in pet_synthesis.tissue_indices())
    fluid, brain = ((mean * w).sum(dim=(1, 2, 3)) / w.sum().clamp_min(1e-6) for w in (csf, grey + white))
    return fluid / brain.clamp_min(1e-6)


def _compute(model: Model, work: Callable[[], Tensor]) -> Tensor:
    """Run ``work`` without gradients and, as in training, with bfloat16 convolutions where the processor has them."""
    with torch.no_grad(), autocast(torch.device(model.device).type):
        return work().float().cpu()


def _normalise(x0: Tensor, subject: Subject, covariates: pet_synthesis.Covariates) -> tuple[Tensor, Tensor, Tensor]:
    """Return SUVR within the head (2, k, j, i), reference regions' factors (2,) and SUVR by structure (2, COUNT)."""
    try:
        (image,), (factors,) = pet_synthesis.normalise_to_own_reference(x0, covariates, subject.structure)
    except ValueError as error:
        raise Refused(f"{error}: the image does not show the cerebellum, or the model fails on it") from error
    return image * subject.inside, factors, pet_synthesis.compute_regional_suvr(image, covariates, subject.structure)


def _sample_seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")


def estimate_what_if(subject: Subject, other: pet_synthesis.Covariates, model: Model) -> Tensor:
    """Return the posterior mean in SUVR (2, k, j, i) for other covariates than the patient's."""
    x0 = _compute(
        model, lambda: pet_synthesis.predict_mean(model.network, subject.make_conditions(other, model.device))
    )
    return _normalise(x0, subject, other)[0]


@dataclass(frozen=True)
class _Delivery:
    """Form of the delivered images: on the T1w's grid, in SUVR or, with numbers withheld, in relative units."""

    t1w: Volume
    subject: Subject
    options: Options
    withheld: bool

    @property
    def unit(self) -> str:
        return "1" if self.withheld else "{SUVr}"

    @property
    def scale(self) -> str:
        return "relative" if self.withheld else "SUVR"

    @property
    def thickness_mm(self) -> float:
        return self.t1w.slice_thickness_mm or self.t1w.grid.spacing_mm[0]

    def make_volumes(self, images: Tensor) -> list[Volume]:
        """Return images (n, k, j, i) of the network's grid on the T1w's grid, zero outside the head."""
        grid, own = self.t1w.grid, self.subject.grid
        data = np.zeros((len(images), *grid.shape), np.float32)
        (k, j, i), shape = resampling.bounding_box(self.subject.inside.numpy(), own, grid)
        for first, last in resampling.iterate_slabs(shape):
            slab = resampling.subgrid(grid, (k + first, j, i), (last - first, shape[1], shape[2]))
            resampled = resampling.resample(images, own, slab).numpy()
            data[:, k + first : k + last, j : j + shape[1], i : i + shape[2]] = resampled
        return [Volume(each, grid, self.unit) for each in data]


def _images(e: PetEstimate, delivery: _Delivery) -> list[Finding]:
    mean, sd = delivery.make_volumes(e.mean), delivery.make_volumes(e.sd)
    images: list[Finding] = []
    for at, (target, tracer) in enumerate(zip(TARGETS, delivery.options.tracers, strict=True)):
        description = f"{target.capitalize()} PET ({tracer}) from T1w, {delivery.scale}"
        images.append(Image(f"{target} PET", mean[at], description, delivery.thickness_mm))
    for at, target in enumerate(TARGETS):
        description = f"Standard deviation of {target} PET, {delivery.options.samples} samples, {delivery.scale}"
        images.append(
            ParametricMap(
                f"standard deviation of {target} PET", sd[at], STANDARD_DEVIATION, description, delivery.thickness_mm
            )
        )
    return images


def _what_if_images(
    subject: Subject, covariates: pet_synthesis.Covariates, model: Model, delivery: _Delivery
) -> list[Finding]:
    """Return the what-if images, named so that they are not taken for this patient's; the own score is left out."""
    prompts = [parse_prompt(f"MMSE {mmse}") for mmse in dict.fromkeys(delivery.options.what_if_mmse)]
    if delivery.options.prompt:
        prompts.append(parse_prompt(delivery.options.prompt))
    images: list[Finding] = []
    for prompt in prompts:
        other = replace(covariates, **prompt.covariates)
        if other == covariates:
            continue
        words = f"WHAT IF {prompt.text} (not this patient's value)"
        volumes = delivery.make_volumes(estimate_what_if(subject, other, model))
        for target, volume in zip(TARGETS, volumes, strict=True):
            if target in prompt.targets:
                images.append(Image(f"{target} PET {words}", volume, f"{words}: {target} PET", delivery.thickness_mm))
    return images


def _measure_quality(e: PetEstimate, options: Options) -> list[Finding]:
    """Return the measurements that the output gate judges."""
    measurements: list[Finding] = []
    for at, (target, tracer) in enumerate(zip(TARGETS, options.tracers, strict=True)):
        reference = " and ".join(TRACERS[tracer].reference)
        measurements += [
            Measurement(
                f"reference factor of {target} PET", float(e.factors[at]), "1",
                f"Mean in the reference region ({reference}) by which the image was divided; 1.00 +- 0.05 is expected",
            ),
            Measurement(
                f"activity outside the brain of {target} PET", float(e.outside[at]), "1",
                "Mean in the cerebrospinal fluid over that in the brain: nothing binds there, about 0.6 spills over",
            ),
        ]  # fmt: skip
    return measurements


def _notes(sourced: contract.Covariates, options: Options, model: Model, withheld: bool) -> list[Finding]:
    notes: list[Finding] = []
    for name, (title, unit) in TITLES.items():
        each = getattr(sourced, name)
        value = "unknown" if each.value is None else f"{each.value:g} {unit}" if unit else str(each.value)
        notes.append(Note(f"covariate: {title}", f"{value} ({each.source})"))
    for target, tracer in zip(TARGETS, options.tracers, strict=True):
        low, high = WINDOWS_MIN[tracer]
        notes.append(Note(f"{target} tracer", f"{tracer}, as {low} to {high} minutes after injection (option)"))
    model_name = f"{model.name} {model.version}"
    if withheld:
        words = (
            "Withheld: SUVR by region, composites, Centiloid and the probability of amyloid. "
            f"{model_name} was trained on simulation only, where the link from anatomy to pathology was invented; the "
            'images are in relative units. clinical_numbers = "give" in [quality] asks for the numbers.'
        )
        notes.append(Note("clinical numbers", words))
    elif model.simulation_only:
        words = (
            f"Given because the site asks for them. {model_name} was trained on simulation only: they say nothing of"
        )
        notes.append(Note("clinical numbers", f"{words} this patient."))
    return notes


PIPELINE = Pipeline(
    name="pet_synthesis",
    title="Amyloid and tau PET from a T1w image",
    inputs=(Input("t1w", Volume), Input("covariates", contract.Covariates, required=False)),
    bundle="pet_synthesis",
    options_type=Options,
    run=run,
    helpers=("anatomy", "mri_prior"),
)
