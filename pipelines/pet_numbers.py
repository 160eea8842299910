"""What a synthetic amyloid and tau PET says in numbers: SUVR by region, Centiloid, the probability of amyloid.

Values are those of the delivered image, the posterior mean. Intervals: normal about that mean, with the standard
deviation that the network has learned to state beside it (a few samples tell it worse: by the card's table, intervals
from theirs hold less of the true posterior); of a share of the samples, Jeffreys' (Beta) interval, which says how much
K samples can tell. Both hold as far as the model's posterior does: the evaluation in its card tests that.

Centiloid (Klunk et al., Alzheimers Dement. 11, 2015) of the neocortical SUVR by the whole cerebellum: PiB
100 (SUVR - 1.009) / 1.067; florbetapir 175 SUVR - 182 (Navitsky et al., Alzheimers Dement. 14, 2018).
"""

from __future__ import annotations

from typing import Protocol

import torch
from scipy import stats
from torch import Tensor

from model_zoo.pet_synthesis import TARGETS, Covariates, composite_sd, composites
from model_zoo.physics.tracers import centiloid
from model_zoo.structures import STRUCTURES, Structure
from pipelines.codes import encode_structure
from pipelines.contract import Code, Finding, Interval, Measurement, Note

__all__ = ["LEVELS", "REGIONS", "SUVR_CODES", "AmyloidOptions", "measure_pet", "normal_interval"]

SUVR_CODES = {
    "amyloid": Code("SUVR_AMYLOID", "99DICOMNODE", "Standardized uptake value ratio of amyloid PET"),
    "tau": Code("SUVR_TAU", "99DICOMNODE", "Standardized uptake value ratio of tau PET"),
}
"""By target: two numbers of one region are two quantities. DICOM has no code for them; 126401 to 126406 are SUVs."""
CENTILOID = Code("CENTILOID", "99DICOMNODE", "Centiloid")
LEVELS = (0.80, 0.95)
REGIONS = tuple(s for s in STRUCTURES if s.tissue != "csf")
COMPOSITE = {"amyloid": "neocortex (frontal, parietal, temporal, cingulate, precuneus)", "tau": "temporal meta-region"}


class AmyloidOptions(Protocol):
    """What of the pipeline's options matters here."""

    @property
    def positive_centiloid(self) -> float: ...

    @property
    def abstain_between(self) -> tuple[float, float]: ...


def measure_pet(one: Tensor, sd: Tensor, sampled: Tensor, c: Covariates, options: AmyloidOptions) -> list[Finding]:
    """Of SUVR by structure: ``one`` (2, COUNT) of the delivered images, ``sd`` (2, COUNT) as the network states it,
    ``sampled`` (K, 2, COUNT) of the samples."""
    found: list[Finding] = []
    for at, target in enumerate(TARGETS):
        found += [_regional(s, target, one[at], sd[at]) for s in REGIONS if not one[at, s.number - 1].isnan()]
    middle, spread = composites(one), composite_sd(sd)
    for at, target in enumerate(TARGETS):
        found.append(
            Measurement(
                f"{target} composite SUVR", float(middle[at]), "{SUVr}", f"Mean of the {COMPOSITE[target]}",
                quantity=SUVR_CODES[target], intervals=_intervals(middle[at], spread[at]),
            )
        )  # fmt: skip
    return [*found, *_amyloid(float(middle[0]), float(spread[0]), composites(sampled)[:, 0], c, options)]


def _regional(s: Structure, target: str, one: Tensor, sd: Tensor) -> Measurement:
    value, site = one[s.number - 1], encode_structure(s)
    return Measurement(
        f"{target} SUVR of {s.name}", float(value), "{SUVr}", group=s.name, site=site, quantity=SUVR_CODES[target],
        intervals=_intervals(value, sd[s.number - 1]),
    )  # fmt: skip


def _intervals(middle: Tensor, sd: Tensor) -> tuple[Interval, ...]:
    """Of SUVR, which is never negative."""
    found = (normal_interval(float(middle), float(sd), level) for level in LEVELS)
    return tuple(Interval(each.level, max(each.low, 0.0), each.high) for each in found)


def normal_interval(middle: float, sd: float, level: float) -> Interval:
    """The central one of a normal density."""
    half = sd * float(stats.norm.ppf((1 + level) / 2))
    return Interval(level, middle - half, middle + half)


def _amyloid(suvr: float, sd: float, drawn: Tensor, c: Covariates, options: AmyloidOptions) -> list[Finding]:
    tracer = c.amyloid_tracer or "florbetapir"
    loads = torch.tensor([centiloid(tracer, float(each)) for each in drawn])
    load, load_sd = centiloid(tracer, suvr), sd * (centiloid(tracer, 1.0) - centiloid(tracer, 0.0))
    positive = int((loads >= options.positive_centiloid).sum())
    p, (low, high) = positive / len(loads), options.abstain_between
    abstains = low <= p <= high
    status = "undetermined" if abstains else ("positive" if p > high else "negative")
    why = f"; between {low:g} and {high:g} nothing is said" if abstains else ""
    return [
        Measurement(
            "Centiloid", load, "{CL}", f"Of the neocortical SUVR by whole cerebellum, {tracer}", quantity=CENTILOID,
            intervals=tuple(normal_interval(load, load_sd, level) for level in LEVELS),
        ),
        Measurement(
            "probability of amyloid", p, "1",
            f"Share of {len(loads)} samples with {options.positive_centiloid:g} CL and more",
            intervals=tuple(_of_share(positive, len(loads), level) for level in LEVELS),
        ),
        Measurement("amyloid status abstained", float(abstains), "1", f"1: the probability is in {low:g} to {high:g}"),
        Note("amyloid status", f"{status}: probability of amyloid {p:.2f} from {len(loads)} samples{why}"),
    ]  # fmt: skip


def _of_share(positive: int, count: int, level: float) -> Interval:
    """Jeffreys' interval of a share, closed at 0 and 1 where none or all are positive."""
    beta = stats.beta(positive + 0.5, count - positive + 0.5)
    low = 0.0 if positive == 0 else float(beta.ppf((1 - level) / 2))
    high = 1.0 if positive == count else float(beta.ppf((1 + level) / 2))
    return Interval(level, low, high)
