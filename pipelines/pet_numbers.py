"""Numbers of synthetic amyloid and tau PET: SUVR by region, Centiloid, probability of amyloid.

Values are those of the delivered image, the posterior mean. Intervals are about that mean, in units of the standard
deviation that the network has learned to predict (a few samples estimate it worse: by the card's table, intervals from
their spread hold less of the true posterior); their widths come from the errors on validation subjects
(``model_zoo.pet_intervals``). For a share of the samples it is Jeffreys' (Beta) interval, which shows
how much K samples can tell. Both are as valid as the model's posterior, which the evaluation in its card tests.

Centiloid (Klunk et al., Alzheimers Dement. 11, 2015) of the neocortical SUVR by the whole cerebellum: PiB
100 (SUVR - 1.009) / 1.067; florbetapir 175 SUVR - 182 (Navitsky et al., Alzheimers Dement. 14, 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from scipy.special import betaincinv
from torch import Tensor

from model_zoo.pet_intervals import COMPOSITE, LEVELS, Factors, count_subjects, find_factors
from model_zoo.pet_synthesis import TARGETS, Covariates, composite_sd, composites, tracers_of
from model_zoo.physics.tracers import centiloid
from model_zoo.structures import STRUCTURES, Structure
from pipelines.codes import encode_structure
from pipelines.contract import Code, Finding, Interval, Measurement, Note

__all__ = ["REGIONS", "SUVR_CODES", "AmyloidOptions", "measure_pet"]

SUVR_CODES = {
    "amyloid": Code("SUVR_AMYLOID", "99DICOMNODE", "Standardized uptake value ratio of amyloid PET"),
    "tau": Code("SUVR_TAU", "99DICOMNODE", "Standardized uptake value ratio of tau PET"),
}
"""Quantity of each target: two numbers of one region are two quantities. DICOM has SUVs (126401 to 126406), no SUVR."""
CENTILOID = Code("CENTILOID", "99DICOMNODE", "Centiloid")
REGIONS = tuple(s for s in STRUCTURES if s.tissue != "csf")
COMPOSITE_MEANING = {
    "amyloid": "neocortex (frontal, parietal, temporal, cingulate, precuneus)",
    "tau": "temporal meta-region",
}


class AmyloidOptions(Protocol):
    """Options of the pipeline on the amyloid status."""

    @property
    def positive_centiloid(self) -> float: ...

    @property
    def abstain_between(self) -> tuple[float, float]: ...


def measure_pet(
    mean: Tensor, sd: Tensor, samples: Tensor, c: Covariates, options: AmyloidOptions, settings: Mapping[str, Any]
) -> list[Finding]:
    """Return regional SUVR, composites and amyloid status, with intervals.

    SUVR by structure: ``mean`` (2, COUNT) of the delivered images, ``sd`` (2, COUNT) as the network predicts it,
    ``samples`` (K, 2, COUNT) of the samples. ``settings``: the bundle's, which may hold the factors of the intervals.
    """
    findings: list[Finding] = []
    tracers = tracers_of(c)
    for at, (target, tracer) in enumerate(zip(TARGETS, tracers, strict=True)):
        findings += [
            _measure_region(s, target, mean[at], sd[at], find_factors(settings, tracer, s.name))
            for s in REGIONS
            if not mean[at, s.number - 1].isnan()
        ]
    middle, spread = composites(mean), composite_sd(sd)
    factors = [find_factors(settings, tracer, COMPOSITE) for tracer in tracers]
    for at, target in enumerate(TARGETS):
        findings.append(
            Measurement(
                f"{target} composite SUVR", float(middle[at]), "{SUVr}", f"Mean of the {COMPOSITE_MEANING[target]}",
                quantity=SUVR_CODES[target], intervals=_suvr_intervals(middle[at], spread[at], factors[at]),
            )
        )  # fmt: skip
    amyloid = _measure_amyloid(float(middle[0]), float(spread[0]), factors[0], samples, c, options)
    notes = [_describe_widths(target, tracer, settings) for target, tracer in zip(TARGETS, tracers, strict=True)]
    return [*findings, *amyloid, *notes]


def _describe_widths(target: str, tracer: str, settings: Mapping[str, Any]) -> Note:
    """Say what the widths of a target's intervals come from."""
    subjects = count_subjects(settings, tracer)
    origin = f"from the errors on {subjects} validation subjects" if subjects else "assumed, errors being normal"
    return Note(f"intervals of {target}", f"Half widths are the predicted standard deviation times a factor: {origin}.")


def _measure_region(s: Structure, target: str, mean: Tensor, sd: Tensor, factors: Factors) -> Measurement:
    value, site = mean[s.number - 1], encode_structure(s)
    return Measurement(
        f"{target} SUVR of {s.name}", float(value), "{SUVr}", group=s.name, site=site, quantity=SUVR_CODES[target],
        intervals=_suvr_intervals(value, sd[s.number - 1], factors),
    )  # fmt: skip


def _suvr_intervals(middle: Tensor, sd: Tensor, factors: Factors) -> tuple[Interval, ...]:
    """Return the intervals of an SUVR, cut at zero because it is never negative."""
    intervals = _intervals(float(middle), float(sd), factors)
    return tuple(Interval(interval.level, max(interval.low, 0.0), interval.high) for interval in intervals)


def _intervals(middle: float, sd: float, factors: Factors) -> tuple[Interval, ...]:
    return tuple(
        Interval(level, middle - factor * sd, middle + factor * sd)
        for level, factor in zip(LEVELS, factors, strict=True)
    )


def _measure_amyloid(
    suvr: float, sd: float, factors: Factors, samples: Tensor, c: Covariates, options: AmyloidOptions
) -> list[Finding]:
    tracer = tracers_of(c)[0]
    loads = torch.tensor([centiloid(tracer, float(each)) for each in composites(samples)[:, 0]])
    load, load_sd = centiloid(tracer, suvr), sd * (centiloid(tracer, 1.0) - centiloid(tracer, 0.0))
    positive = int((loads >= options.positive_centiloid).sum())
    p, (low, high) = positive / len(loads), options.abstain_between
    abstains = low <= p <= high
    status = "undetermined" if abstains else ("positive" if p > high else "negative")
    reason = f"; between {low:g} and {high:g} nothing is said" if abstains else ""
    return [
        Measurement(
            "Centiloid", load, "{CL}", f"Of the neocortical SUVR by whole cerebellum, {tracer}", quantity=CENTILOID,
            intervals=_intervals(load, load_sd, factors),
        ),
        Measurement(
            "probability of amyloid", p, "1",
            f"Share of {len(loads)} samples with {options.positive_centiloid:g} CL and more",
            intervals=tuple(_share_interval(positive, len(loads), level) for level in LEVELS),
        ),
        Measurement("amyloid status abstained", float(abstains), "1", f"1: the probability is in {low:g} to {high:g}"),
        Note("amyloid status", f"{status}: probability of amyloid {p:.2f} from {len(loads)} samples{reason}"),
    ]  # fmt: skip


def _share_interval(positive: int, count: int, level: float) -> Interval:
    """Return Jeffreys' interval of a share, closed at 0 and 1 where none or all are positive."""
    a, b = positive + 0.5, count - positive + 0.5
    low = 0.0 if positive == 0 else float(betaincinv(a, b, (1 - level) / 2))
    high = 1.0 if positive == count else float(betaincinv(a, b, (1 + level) / 2))
    return Interval(level, low, high)
