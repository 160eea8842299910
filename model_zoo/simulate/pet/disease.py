"""A latent causal model of Alzheimer's disease from which patients are drawn, and its exact Bayes posterior.

    age, sex, APOE e4 -> onset of amyloid accumulation -> amyloid load -> tau stage -> neurodegeneration -> atrophy
                                                   amyloid load, tau stage -> plasma p-tau217
                                           tau stage, neurodegeneration -> impairment -> MMSE, diagnosis

Every arrow has noise. Three courses: *typical*; *resilient*, in which tau does not cost neurons (A+N- cases); *other*,
in which neurons are lost without amyloid (vascular, TDP-43 and the like: A-N+ cases). With N+ from a neurodegeneration
of 0.40 and A+ from 24 CL, 18 % of the patients are A+N-, 14 % A-N+, 24 % A+N+ and 44 % A-N-. The model is a stated
assumption, not an estimate: it makes the link from anatomy to pathology known, so that a synthetic image's intervals
can be tested against the truth. Its group means are those of the ResDM paper's table 1 (amyloid and tau SUVR, MMSE);
the form of the arrows and all other constants are plausible defaults.

Equations, with s the logistic function, N(m, sd) normal noise, d the years since onset:
    onset = N(78 - 7 e4 - 1 [female], 11) years;  d = age - onset
    amyloid = N(-2, 9) + [course not other] exp(N(ln 82, 0.30)) s((d - 3) / 3.5)                        Centiloid
    tau = clip(1.6 s((age - 72) / 6) + [not other] 4 s((d - N(9, 4)) / 3.5) + N(0.1, 0.6), 0, 6)        Braak stage
    n = clip(0.10 + 0.008 (age - 65) + [typical] 0.70 (tau / 6)^1.2 + [other] U(0.25, 0.60) + N(0, 0.06), 0.02, 0.98)
    atrophy = maximum * s(logit(n) + N(0, sd)), for hippocampus, ventricles, cortex
    ln p-tau217 = ln 0.30 + 0.80 clip(amyloid / 100, 0, 1.2) + 0.70 (tau / 6) [not other] + N(0, 0.22)     pg/ml
    impairment = 0.8 n + 0.6 tau / 6 + N(0, 0.19);  MMSE = round(clip(29.6 - drop(impairment) + N(0, 0.9), 0, 30))
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from model_zoo.physics.tracers import TRACERS, composite_uptake
from model_zoo.simulate.heads import Atrophy

__all__ = [
    "COURSES",
    "DIAGNOSES",
    "Observed",
    "Patient",
    "Population",
    "Posterior",
    "draw_patient",
    "draw_population",
    "sample_posterior",
]

COURSES = ("typical", "resilient", "other")
COURSE_SHARES = (0.76, 0.12, 0.12)
E4_SHARES = (0.55, 0.36, 0.09)
FEMALE_SHARE = 0.52
DIAGNOSES = ("CN", "MCI", "AD")
DIAGNOSIS_LIMITS = (0.48, 0.74)

AGE_YEARS = (73.0, 6.0)
AMYLOID_POSITIVE_CL = 24.0
NEURODEGENERATION_POSITIVE = 0.40

MAXIMUM = {"hippocampus": 0.30, "ventricles": 0.80, "cortex": 0.12}
ATROPHY_SD = {"hippocampus": 0.35, "ventricles": 0.50, "cortex": 0.40}
PTAU217_SD = 0.22
MMSE_SD = 0.9


@dataclass(frozen=True)
class Patient:
    """One simulated patient: observed covariates, then latents.

    ``age_years``; ``sex`` "F" or "M"; ``e4``: number of APOE e4 alleles; ``mmse`` 0..30; ``ptau217_pg_ml``: plasma
    p-tau217; ``diagnosis`` CN, MCI or AD. Latent: ``course``; ``amyloid_cl``: load in Centiloid; ``tau_stage``:
    continuous Braak stage 0..6; ``neurodegeneration`` 0..1; ``atrophy``: fractions of volume, seen by MR only.
    """

    age_years: float
    sex: str
    e4: int
    mmse: int
    ptau217_pg_ml: float
    diagnosis: str
    course: str
    amyloid_cl: float
    tau_stage: float
    neurodegeneration: float
    atrophy: Atrophy

    def state(self, target: str) -> float:
        """Return the state that drives tracers of that target: amyloid, tau or metabolism."""
        return {"amyloid": self.amyloid_cl, "tau": self.tau_stage, "metabolism": self.neurodegeneration}[target]

    @property
    def group(self) -> str:
        """A+N+, A+N-, A-N+ or A-N-: load from 24 CL, neurodegeneration from 0.40."""
        a = "+" if self.amyloid_cl >= AMYLOID_POSITIVE_CL else "-"
        n = "+" if self.neurodegeneration >= NEURODEGENERATION_POSITIVE else "-"
        return f"A{a}N{n}"


@dataclass(frozen=True)
class Population:
    """Many patients: each field a tensor (n,), units as in ``Patient``; ``female`` bool; ``course``, ``diagnosis``
    indices into ``COURSES`` and ``DIAGNOSES``. ``mmse_mean`` is the score before its own noise and rounding.
    """

    age_years: Tensor
    female: Tensor
    e4: Tensor
    course: Tensor
    amyloid_cl: Tensor
    tau_stage: Tensor
    neurodegeneration: Tensor
    hippocampus: Tensor
    ventricles: Tensor
    cortex: Tensor
    ptau217_pg_ml: Tensor
    impairment: Tensor
    mmse_mean: Tensor
    mmse: Tensor
    diagnosis: Tensor

    def __len__(self) -> int:
        return len(self.age_years)

    def where(self, chosen: Tensor) -> Population:
        """Return the patients of a mask or of indices."""
        return Population(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def patient(self, index: int) -> Patient:
        """Return one patient."""
        p = {f.name: getattr(self, f.name)[index].item() for f in fields(self)}
        return Patient(
            age_years=p["age_years"],
            sex="F" if p["female"] else "M",
            e4=int(p["e4"]),
            mmse=int(p["mmse"]),
            ptau217_pg_ml=p["ptau217_pg_ml"],
            diagnosis=DIAGNOSES[int(p["diagnosis"])],
            course=COURSES[int(p["course"])],
            amyloid_cl=p["amyloid_cl"],
            tau_stage=p["tau_stage"],
            neurodegeneration=p["neurodegeneration"],
            atrophy=Atrophy(hippocampus=p["hippocampus"], ventricles=p["ventricles"], cortex=p["cortex"]),
        )


def draw_population(
    count: int,
    generator: torch.Generator,
    *,
    age_years: float | None = None,
    sex: str | None = None,
    e4: int | None = None,
) -> Population:
    """Draw ``count`` independent patients of the whole model; given causes are held at their value."""

    def normal(mean: float, sd: float) -> Tensor:
        return mean + sd * torch.randn(count, generator=generator)

    age = normal(*AGE_YEARS).clamp(50.0, 95.0)
    female = torch.rand(count, generator=generator) < FEMALE_SHARE
    alleles = torch.multinomial(torch.tensor(E4_SHARES), count, replacement=True, generator=generator)
    age = age if age_years is None else torch.full_like(age, age_years)
    female = female if sex is None else torch.full_like(female, sex == "F")
    alleles = alleles if e4 is None else torch.full_like(alleles, e4)
    course = torch.multinomial(torch.tensor(COURSE_SHARES), count, replacement=True, generator=generator)
    typical, other = course == 0, course == 2

    since_onset = age - normal(78.0, 11.0) + 7.0 * alleles + 1.0 * female
    plateau = normal(0.0, 0.30).exp() * 82.0
    amyloid = normal(-2.0, 9.0) + ~other * plateau * torch.sigmoid((since_onset - 3.0) / 3.5)
    tau_lag = normal(9.0, 4.0)
    tau = 1.6 * torch.sigmoid((age - 72.0) / 6.0) + ~other * 4.0 * torch.sigmoid((since_onset - tau_lag) / 3.5)
    tau = (tau + normal(0.1, 0.6)).clamp(0.0, 6.0)
    lost = typical * 0.70 * (tau / 6.0) ** 1.2 + other * (0.25 + 0.35 * torch.rand(count, generator=generator))
    n = (0.10 + 0.008 * (age - 65.0) + lost + normal(0.0, 0.06)).clamp(0.02, 0.98)
    atrophy = {part: MAXIMUM[part] * torch.sigmoid(torch.logit(n) + normal(0.0, ATROPHY_SD[part])) for part in MAXIMUM}
    ptau217 = (_log_ptau217(amyloid, tau, other) + normal(0.0, PTAU217_SD)).exp()
    impairment = 0.8 * n + 0.6 * tau / 6.0 + normal(0.0, 0.19)
    mmse_mean = 29.6 - _mmse_loss(impairment)
    mmse = (mmse_mean + normal(0.0, MMSE_SD)).clamp(0.0, 30.0).round()
    diagnosis = torch.bucketize(impairment, torch.tensor(DIAGNOSIS_LIMITS))
    return Population(
        age, female, alleles, course, amyloid, tau, n, **atrophy, ptau217_pg_ml=ptau217, impairment=impairment,
        mmse_mean=mmse_mean, mmse=mmse, diagnosis=diagnosis,
    )  # fmt: skip


def _log_ptau217(amyloid: Tensor, tau: Tensor, other: Tensor) -> Tensor:
    load = (amyloid / 100.0).clamp(0.0, 1.2)
    return torch.log(torch.tensor(0.30)) + 0.80 * load + 0.70 * (tau / 6.0) * ~other


def _mmse_loss(impairment: Tensor) -> Tensor:
    """Return the points of MMSE lost: few below an impairment of one half, then faster."""
    return 0.6 * impairment + 13.0 * (impairment - 0.5).clamp_min(0.0) ** 1.3


def draw_patient(generator: torch.Generator) -> Patient:
    """Draw one patient."""
    return draw_population(1, generator).patient(0)


@dataclass(frozen=True)
class Observed:
    """Known covariates of a patient; None where unknown. Units as in ``Patient``."""

    age_years: float | None = None
    sex: str | None = None
    e4: int | None = None
    mmse: int | None = None
    ptau217_pg_ml: float | None = None
    atrophy: Atrophy | None = None


@dataclass(frozen=True)
class Posterior:
    """Weighted draws ``population`` of p(latents | observed); ``weights`` (n,) sum to one."""

    population: Population
    weights: Tensor

    @property
    def effective_size(self) -> float:
        """1 / sum of squared weights: how many independent draws these are worth."""
        return float(1.0 / self.weights.square().sum())

    def suvr(self, tracer: str) -> Tensor:
        """Return the composite SUVR (n,) of each draw for that tracer."""
        target = TRACERS[tracer].target
        state = {"amyloid": "amyloid_cl", "tau": "tau_stage", "metabolism": "neurodegeneration"}[target]
        return composite_uptake(TRACERS[tracer], getattr(self.population, state))

    def mean(self, values: Tensor) -> float:
        """Return the posterior mean of a quantity (n,) of the draws."""
        return float((self.weights * values).sum())

    def quantiles(self, values: Tensor, at: tuple[float, ...]) -> tuple[float, ...]:
        """Return the posterior quantiles of a quantity (n,) of the draws: (0.1, 0.9) bound the central 80 %."""
        order = values.argsort()
        cumulative = self.weights[order].cumsum(0)
        found = torch.searchsorted(cumulative, torch.tensor(at, dtype=cumulative.dtype)).clamp(max=len(values) - 1)
        return tuple(values[order][found].tolist())


def sample_posterior(observed: Observed, generator: torch.Generator, *, count: int = 100_000) -> Posterior:
    """Return p(latents | observed) by importance sampling: draws of the model given the causes, weighted by the
    likelihood.

    Exact as ``count`` grows. MMSE, p-tau217 and the three atrophies are independent given the latents, so the weight
    is the product of their densities. Atrophy is taken as known exactly; a T1w image tells less, so an interval from
    an image is at least as wide on average.
    """
    p = draw_population(count, generator, age_years=observed.age_years, sex=observed.sex, e4=observed.e4)
    log_weight = torch.zeros(count, dtype=torch.float64)
    if observed.ptau217_pg_ml is not None:
        mean = _log_ptau217(p.amyloid_cl, p.tau_stage, p.course == COURSES.index("other"))
        log_weight += _log_normal(torch.tensor(observed.ptau217_pg_ml).log(), mean, PTAU217_SD)
    if observed.mmse is not None:
        log_weight += _log_score(observed.mmse, p.mmse_mean)
    if observed.atrophy is not None:
        for part, sd in ATROPHY_SD.items():
            share = torch.tensor(getattr(observed.atrophy, part) / MAXIMUM[part]).clamp(1e-4, 1 - 1e-4)
            log_weight += _log_normal(torch.logit(share), torch.logit(p.neurodegeneration), sd)
    return Posterior(p, torch.softmax(log_weight, 0))


def _log_normal(x: Tensor, mean: Tensor, sd: float) -> Tensor:
    return -0.5 * ((x - mean).double() / sd) ** 2


def _log_score(mmse: int, mean: Tensor) -> Tensor:
    """Return log P(score) of a normal rounded to whole points and cut to 0..30."""

    def below(edge: float) -> Tensor:
        found: Tensor = torch.special.ndtr((edge - mean.double()) / MMSE_SD)
        return found

    low = torch.zeros_like(mean, dtype=torch.float64) if mmse <= 0 else below(mmse - 0.5)
    high = torch.ones_like(mean, dtype=torch.float64) if mmse >= 30 else below(mmse + 0.5)
    return (high - low).clamp_min(1e-300).log()
