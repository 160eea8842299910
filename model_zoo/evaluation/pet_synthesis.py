"""Evaluation of amyloid and tau PET from a T1w: held-out anatomy, simulated patients, known truth.

The baselines see no image: a linear regression of each structure's mean on the covariates, and the population's means,
both fitted on training anatomy and painted on the structures of the subject. "Exact posterior" is the best that anybody
could know: the disease model's own posterior given all covariates and the true atrophy, as a composite SUVR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_zoo import pet_synthesis
from model_zoo.bundle import Model
from model_zoo.evaluation import Evaluation, Picture, Progress, Table
from model_zoo.evaluation.image_quality import psnr_db
from model_zoo.evaluation.pet_baselines import Baselines, regional_suvr
from model_zoo.evaluation.pet_intervals import make_coverage_table
from model_zoo.evaluation.pet_measures import MEASURES, composite_difference, mean_of_finite, measure_image
from model_zoo.pet_intervals import COMPOSITE, LEVELS, Factors, find_factors
from model_zoo.pet_synthesis import (
    SCHEDULES,
    TARGETS,
    Conditions,
    Covariates,
    composite_sd,
    composites,
    covariate_tokens,
    tracers_of,
)
from model_zoo.precision import autocast
from model_zoo.simulate import anatomy
from model_zoo.training import pet_synthesis as training
from model_zoo.training.pet_synthesis import Subject
from model_zoo.training.recipe import Source, seeded

__all__ = ["MEASURES", "draw_held_out_subjects", "evaluate", "measure_image"]

SEED = 40_400
FIRST_TRACERS, SECOND_TRACERS = ("florbetapir", "flortaucipir"), ("PiB", "MK-6240")
ONE, FOUR, FOUR_MEAN, FIFTEEN = (
    "ours, 1 step",
    "ours, 4 steps, a sample",
    "ours, 4 steps, mean",
    "ours, 15 steps, a sample",
)
REGRESSION, POPULATION = "regression on covariates", "population mean"
AS_DELIVERED, SAMPLED_SD = "1 step, learned sd", "1 step, sd of samples of 4 steps"
METHODS = (ONE, FOUR, FOUR_MEAN, FIFTEEN, REGRESSION, POPULATION)


@dataclass(frozen=True)
class _Plan:
    """``heads`` of each test subject, ``patients`` on each; ``draws`` of four steps; ``fit``: heads for baselines."""

    heads: int
    patients: int
    draws: int
    fit: int
    fit_patients: int
    interval_subjects: tuple[int, int]


FULL, QUICK = _Plan(8, 2, 6, 24, 6, (60, 8)), _Plan(1, 2, 2, 2, 8, (2, 2))


@dataclass(frozen=True)
class _Result:
    """One subject with every method's SUVR images (2, k, j, i).

    ``sampled``: the samples' composites (draws, 2); ``stated_sd``: the composite's (2,), by the network; ``factors``:
    of its intervals, by the bundle; ``exact``: the composite's draws (n, 2) of equal weight from the exact posterior.
    """

    subject: Subject
    images: dict[str, Tensor]
    sampled: Tensor
    stated_sd: Tensor
    factors: tuple[Factors, ...]
    exact: Tensor


def evaluate(model: Model, *, root: Path | None, quick: bool = False, progress: Progress) -> Evaluation:
    """Return tables by steps and baseline, intervals, wrong covariates, subgroups; pictures; seeds are fixed."""
    plan = QUICK if quick else FULL
    test, train = ((Source(s, root, phantom=quick)) for s in (anatomy.TEST, anatomy.TRAIN[:6]))
    progress(0.0, "fitting the baselines")
    fit = Baselines.fit(_draw_subjects(model, train, plan.fit, plan.fit_patients, SEED))
    subjects = draw_held_out_subjects(model, test, plan)
    results = []
    for at, subject in enumerate(subjects):
        progress(0.15 + 0.75 * at / len(subjects), f"subject {at + 1} of {len(subjects)}")
        results.append(_evaluate_subject(model, subject, fit, plan, SEED + 100 + at))
    progress(0.9, "other tracers, wrong covariates")
    others = _draw_subjects(model, test, plan.heads, 1, SEED + 2, SECOND_TRACERS)
    tables = (
        *(_quality_table(results, at) for at in range(len(TARGETS))), _interval_table(results),
        make_coverage_table(model, test, *plan.interval_subjects), _covariate_table(model, results),
        _tracer_table(model, others), _subgroup_table(results),
    )  # fmt: skip
    progress(1.0, "done")
    return Evaluation(tables, _make_pictures(results), _make_metrics(results), _describe_failures(results), WEAKER)


def draw_held_out_subjects(model: Model, test: Source, plan: _Plan = FULL) -> list[Subject]:
    """Return the simulated patients on held-out anatomy that the tables are about, on the bundle's grid."""
    return _draw_subjects(model, test, plan.heads * len(anatomy.TEST), plan.patients, SEED + 1)


def _draw_subjects(
    model: Model, source: Source, heads: int, patients: int, seed: int, tracers: tuple[str, str] = FIRST_TRACERS
) -> list[Subject]:
    """Return simulated subjects on the bundle's grid; heads take the source's subjects in turn."""
    k, j, i = model.settings["shape"]
    c = replace(training.CONFIGURATIONS["smoke"], spacing_mm=float(model.settings["spacing_mm"]), shape=(k, j, i))
    subjects: list[Subject] = []
    for at in range(heads):
        generator = seeded(seed, at)
        one = replace(source, subjects=(source.subjects[at % len(source.subjects)],))
        sharing = training.draw_patients_sharing_atrophy(patients, generator)
        subjects += training.simulate_subjects(
            training.draw_head(c, one, sharing[0], generator), sharing, generator, tracers=tracers
        )
    return subjects


def _make_conditions(subject: Subject, covariates: Covariates) -> Conditions:
    return Conditions(subject.y0[None, None], covariate_tokens(covariates)[None], subject.maps[None])


def _predict_in_one_step(model: Model, subject: Subject, covariates: Covariates) -> Tensor:
    """Return the posterior mean (2, k, j, i) in SUVR, given these covariates."""
    c = _make_conditions(subject, covariates)
    return _convert_to_suvr(subject, _run_network(lambda: pet_synthesis.predict_mean(model.network, c)))[0]


def _run_network(work: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad(), autocast("cpu"):
        return work()


def _convert_to_suvr(subject: Subject, x0: Tensor) -> Tensor:
    """Return network images (b, 2, k, j, i) as SUVR by their own reference regions."""
    return pet_synthesis.normalise_to_own_reference(x0, subject.covariates, subject.structure)[0]


def _evaluate_subject(model: Model, subject: Subject, fit: Baselines, plan: _Plan, seed: int) -> _Result:
    c, network = _make_conditions(subject, subject.covariates), model.network
    many = c.repeat(plan.draws)
    four = _convert_to_suvr(
        subject, _run_network(lambda: pet_synthesis.draw_samples(network, many, SCHEDULES[4], seeded(seed)))
    )
    last = _convert_to_suvr(
        subject, _run_network(lambda: pet_synthesis.draw_samples(network, c, SCHEDULES[15], seeded(seed)))
    )
    images = {
        ONE: _predict_in_one_step(model, subject, subject.covariates),
        FOUR: four[0],
        FOUR_MEAN: four.mean(0),
        FIFTEEN: last[0],
        REGRESSION: fit.predict_by_regression(subject),
        POPULATION: fit.predict_population_mean(subject),
    }
    sampled = torch.stack([composites(regional_suvr(subject, image)) for image in four])
    with torch.no_grad():
        sd = composite_sd(pet_synthesis.predict_regional_sd(network, c, subject.covariates))
    factors = tuple(find_factors(model.settings, tracer, COMPOSITE) for tracer in tracers_of(subject.covariates))
    return _Result(subject, images, sampled, sd, factors, fit.draw_exact_posterior(subject, seed))


def _composite_error(result: _Result, method: str, at: int) -> float:
    """Return the composite SUVR of a method's image minus the true image's."""
    return composite_difference(result.subject, result.images[method], at)


def _quality_table(results: Sequence[_Result], at: int) -> Table:
    rows: list[tuple[str | float, ...]] = []
    for method in METHODS:
        cells = zip(*(measure_image(r.subject, r.images[method], at) for r in results), strict=True)
        rows.append((method, *(round(mean_of_finite(cell), 3) for cell in cells)))
    exact = [
        abs(float(r.exact[:, at].mean() - composites(regional_suvr(r.subject, r.subject.pet))[at])) for r in results
    ]
    rows.append(("exact posterior", "", "", "", "", round(mean_of_finite(exact), 3)))
    name = f"{TARGETS[at]} ({FIRST_TRACERS[at]}), {len(results)} patients on held-out anatomy"
    return Table(
        name, ("method", *MEASURES), tuple(rows), "Within the skull. A single sample is not meant to be near the truth."
    )


def _interval(r: _Result, kind: str, level: float, at: int) -> tuple[float, float]:
    """Return the central interval of the composite SUVR.

    It comes from samples (Student's t) about their mean or about the one-step mean; about that from the sd that the
    network states and the bundle's factors, as the pipeline delivers it; or from the exact posterior.
    """
    from scipy.stats import t

    tail = (1 + level) / 2
    if kind == "exact posterior":
        low, high = torch.quantile(r.exact[:, at], torch.tensor([1 - tail, tail])).tolist()
        return low, high
    one = float(composites(regional_suvr(r.subject, r.images[ONE]))[at])
    if kind == AS_DELIVERED:
        half = r.factors[at][LEVELS.index(level)] * float(r.stated_sd[at])
        return one - half, one + half
    if kind == "4 steps":
        n = len(r.sampled)
        middle, half = r.sampled[:, at].mean(), r.sampled[:, at].std() * math.sqrt(1 + 1 / n) * t.ppf(tail, n - 1)
    else:
        middle, half = torch.tensor(one), r.sampled[:, at].std() * t.ppf(tail, len(r.sampled) - 1)
    return float(middle - half), float(middle + half)


def _coverage(results: Sequence[_Result], kind: str, level: float, at: int) -> tuple[float, float, float]:
    """Return the share of true composites inside the interval, share of the exact posterior's draws, and the mean
    width.
    """
    inside, of_exact, widths = [], [], []
    for r in results:
        low, high = _interval(r, kind, level, at)
        truth = float(composites(regional_suvr(r.subject, r.subject.pet))[at])
        inside.append(float(low <= truth <= high))
        of_exact.append(float(((r.exact[:, at] >= low) & (r.exact[:, at] <= high)).float().mean()))
        widths.append(high - low)
    return mean_of_finite(inside), mean_of_finite(of_exact), mean_of_finite(widths)


def _interval_table(results: Sequence[_Result]) -> Table:
    rows: list[tuple[str | float, ...]] = []
    for kind in ("4 steps", SAMPLED_SD, AS_DELIVERED, "exact posterior"):
        for level in LEVELS:
            cells = [value for at in range(len(TARGETS)) for value in _coverage(results, kind, level, at)]
            rows.append((f"{kind}, {level:.0%}", *(round(value, 3) for value in cells)))
    names = (f"{target}: {name}" for target in TARGETS for name in ("truths inside", "exact posterior inside", "width"))
    note = (
        f"Sampling error of a share of 0.8 of the truths: {math.sqrt(0.16 / len(results)):.2f}; a truth is one "
        "draw of the patient's exact posterior, whose draws the next column counts."
    )
    return Table("Intervals of the composite SUVR", ("interval", *names), tuple(rows), note)


def _make_wrong_covariates(c: Covariates) -> dict[str, Covariates]:
    blank = Covariates(c.amyloid_tracer, c.tau_tracer)
    age, mmse, plasma = c.age_years or 73.0, c.mmse or 27.0, c.ptau217_pg_ml or 0.5
    return {
        "right": c,
        "none but the tracer": blank,
        "wrong age (15 years off)": replace(c, age_years=age - 15 if age > 73 else age + 15),
        "wrong sex": replace(c, sex="M" if c.sex == "F" else "F"),
        "wrong MMSE (20 for 26 and more, else 30)": replace(c, mmse=20.0 if mmse >= 26 else 30.0),
        "wrong APOE (0 for carriers, else 2)": replace(c, e4=0 if c.e4 else 2),
        "wrong p-tau217 (factor 2.5)": replace(c, ptau217_pg_ml=plasma / 2.5 if plasma > 0.5 else plasma * 2.5),
        "unknown p-tau217": replace(c, ptau217_pg_ml=None),
    }


def _covariate_table(model: Model, results: Sequence[_Result]) -> Table:
    errors: dict[str, list[Tensor]] = {}
    for r in results:
        truth = composites(regional_suvr(r.subject, r.subject.pet))
        for name, covariates in _make_wrong_covariates(r.subject.covariates).items():
            image = _predict_in_one_step(model, r.subject, covariates)
            errors.setdefault(name, []).append(composites(regional_suvr(r.subject, image)) - truth)
    rows = tuple((name, _mae(found, 0), _mae(found, 1)) for name, found in errors.items())
    columns = ("covariates", "amyloid composite: mean |error| SUVR", "tau composite: mean |error| SUVR")
    return Table("Sensitivity to wrong covariates (1 step)", columns, rows)


def _mae(errors: Sequence[Tensor], at: int) -> float:
    return round(mean_of_finite([abs(float(e[at])) for e in errors]), 3)


def _tracer_table(model: Model, subjects: Sequence[Subject]) -> Table:
    cells: list[list[tuple[float, float]]] = [[], []]
    for s in subjects:
        image = _predict_in_one_step(model, s, s.covariates)
        error = composites(regional_suvr(s, image)) - composites(regional_suvr(s, s.pet))
        for at in range(2):
            psnr = psnr_db(image[at], s.pet[at], s.maps.sum(0) > 0.5)
            cells[at].append((psnr, abs(float(error[at]))))
    rows = tuple(
        (name, round(mean_of_finite([p for p, _ in cells[at]]), 2), round(mean_of_finite([e for _, e in cells[at]]), 3))
        for at, name in enumerate(SECOND_TRACERS)
    )
    return Table("The other tracers (1 step)", ("tracer", "PSNR dB", "composite: mean |error| SUVR"), rows)


def _list_groups(subject: Subject) -> tuple[str, ...]:
    p = subject.patient
    return (
        "age below 73" if p.age_years < 73 else "age from 73",
        "women" if p.sex == "F" else "men",
        "hippocampus -15 % and more" if p.atrophy.hippocampus >= 0.15 else "hippocampus less than -15 %",
        p.group,
        p.diagnosis,
    )


def _subgroup_table(results: Sequence[_Result]) -> Table:
    names = sorted({group for r in results for group in _list_groups(r.subject)})
    rows: list[tuple[str | float, ...]] = []
    for name in names:
        chosen = [r for r in results if name in _list_groups(r.subject)]
        cells = [
            mean_of_finite([abs(_composite_error(r, method, at)) for r in chosen])
            for at in range(2)
            for method in (ONE, REGRESSION)
        ]
        rows.append((name, len(chosen), *(round(cell, 3) for cell in cells)))
    columns = ("group", "patients", "amyloid, 1 step", "amyloid, regression", "tau, 1 step", "tau, regression")
    note = "Mean |error| of the composite SUVR. A+N- and A-N+ are the discordant cases."
    return Table("Subgroups", columns, tuple(rows), note)


def _make_metrics(results: Sequence[_Result]) -> dict[str, float]:
    found: dict[str, float] = {}
    for at, target in enumerate(TARGETS):
        inside = [r.subject.maps.sum(0) > 0.5 for r in results]
        psnr = [psnr_db(r.images[ONE][at], r.subject.pet[at], m) for r, m in zip(results, inside, strict=True)]
        found[f"{target}_psnr_db"] = round(mean_of_finite(psnr), 2)
        found[f"{target}_composite_mae_suvr"] = round(
            mean_of_finite([abs(_composite_error(r, ONE, at)) for r in results]), 4
        )
        found[f"{target}_regression_composite_mae_suvr"] = round(
            mean_of_finite([abs(_composite_error(r, REGRESSION, at)) for r in results]), 4
        )
        found[f"{target}_coverage_80"] = round(_coverage(results, "4 steps", 0.80, at)[0], 3)
    return found


def _find_worst(results: Sequence[_Result]) -> _Result:
    return max(results, key=lambda r: abs(_composite_error(r, ONE, 0)) + abs(_composite_error(r, ONE, 1)))


def _describe_failures(results: Sequence[_Result]) -> str:
    worst = _find_worst(results)
    p = worst.subject.patient
    return (
        f"The worst patient: {p.group}, {p.diagnosis}, {p.course} course; composite error "
        f"{_composite_error(worst, ONE, 0):+.2f} SUVR amyloid, {_composite_error(worst, ONE, 1):+.2f} SUVR tau. "
        "Discordant patients, whose anatomy and covariates point the other way than their pathology, are where the "
        "mean is wrong by nature: only the interval can be right. Off-target binding (choroid plexus, striatum, "
        "meninges) differs between subjects for no visible reason and is averaged."
    )


WEAKER = (
    "One step gives the mean of all patients who could look like this: smoother than any scan, and without a single "
    "patient's deviations. Most of what is known of the load comes from the covariates, plasma p-tau217 before all; "
    "the T1w adds where binding sits and little about how much. All of it holds in the simulator only: the link from "
    "anatomy to pathology was invented there."
)


def _make_pictures(results: Sequence[_Result]) -> tuple[Picture, ...]:
    ranked = sorted(results, key=lambda r: abs(_composite_error(r, ONE, 0)) + abs(_composite_error(r, ONE, 1)))
    typical, worst = ranked[len(ranked) // 2], ranked[-1]
    panels = "T1w, truth, one step, a sample of four steps, regression; amyloid above, tau below, 0 to 2.5 SUVR"
    return (
        Picture(
            "typical",
            f"The median patient by composite error ({typical.subject.patient.group}): {panels}",
            _draw_figure(typical),
        ),
        Picture(
            "worst-case",
            f"The patient with the largest error ({worst.subject.patient.group}): {panels}",
            _draw_figure(worst),
        ),
    )


def _draw_figure(r: _Result) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(2, 5)
    middle = r.subject.y0.shape[0] // 2 + 2
    for at in range(2):
        images = (
            r.subject.y0,
            r.subject.pet[at] * (r.subject.maps.sum(0) > 0),
            *(r.images[m][at] for m in (ONE, FOUR, REGRESSION)),
        )
        for axis, image, title in zip(axes[at], images, ("T1w", "truth", ONE, FOUR, REGRESSION), strict=True):
            grey = title == "T1w"
            axis.imshow(
                image[middle].float().numpy(), cmap="gray" if grey else "turbo", vmin=0, vmax=1 if grey else 2.5
            )
            axis.set_title(title if at == 0 else "", fontsize=9)
            axis.set_axis_off()
    return figure
