"""Evaluation of ``mr_contrasts`` on simulated MS patients of the test subjects: every set of sources to every target.

The reference is the simulator's contrast without noise, 1 in white matter; PSNR with a peak of 2, within the structures
that the anatomy model finds in the T1w. Baselines: ``contrast_cases``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from statistics import fmean

import torch

from model_zoo import registry
from model_zoo.bundle import BundleError, Model
from model_zoo.evaluation import Evaluation, Picture, Progress, Table
from model_zoo.evaluation.contrast_cases import (
    ContrastCase,
    fit_cubic,
    list_subsets,
    match_source,
    predict_target,
    score_image,
    simulate_case,
)
from model_zoo.simulate import anatomy
from model_zoo.translation import plan as plans
from model_zoo.translation.plan import Plan

__all__ = ["evaluate"]

LESIONS = (10, 60)
OURS, CUBIC, MATCHED = "this model", "cubic, fitted to the case", "nearest source, histogram matched"

Scores = Mapping[str, Mapping[str, float]]
"""Scores of one image by the method's name."""


def evaluate(model: Model, *, root: Path | None, quick: bool = False, progress: Progress) -> Evaluation:
    """Score four simulated examinations of the two test subjects (``quick``: one phantom)."""
    plan = plans.parse(model.settings["plan"])
    listed = [("phantom", 12)] if quick else [(subject, count) for subject in anatomy.TEST for count in LESIONS]
    found: dict[tuple[str, tuple[str, ...]], list[Scores]] = {}
    case = None
    for n, (subject, count) in enumerate(listed):
        progress(n / len(listed), f"subject {subject}, {count} lesions")
        case = simulate_case(plan, subject, count, None if quick else _load_anatomy(), root)
        for target in case.targets:
            for subset in list_subsets(plan, target):
                found.setdefault((target, subset), []).append(_score(model, plan, case, target, subset))
    pictures = () if quick or case is None else (_make_picture(model, plan, case),)
    return Evaluation(
        (_image_table(found, len(listed)), _lesion_table(found)),
        pictures,
        _make_metrics(found),
        _describe_failures(found),
        "Simulated heads only: contrasts follow signal equations with spread, and no vendor's reconstruction. The mean "
        "of what a target can be is smooth: noise and texture that the sources do not determine are missing by design. "
        "Real patients: `python -m benchmarks.real_contrasts`.",
    )


def _load_anatomy() -> Model | None:
    try:
        return registry.load("anatomy")
    except BundleError:
        return None


def _score(model: Model, plan: Plan, case: ContrastCase, target: str, subset: tuple[str, ...]) -> Scores:
    p = predict_target(model, plan, case, target, subset)
    span, inside = plan.find_target(target).parsed_scale.span, case.inside
    within = ((p.mean - case.targets[target]).abs() <= 2 * p.sd)[inside].float().mean()
    images = {OURS: p.mean, CUBIC: fit_cubic(case, target, subset), MATCHED: match_source(case, target, subset)}
    scores = {name: score_image(x, case, target, span) for name, x in images.items()}
    scores[OURS]["within_2_sd"] = float(within)
    return scores


def _mean(scores: Sequence[Scores], method: str, key: str) -> float:
    values = [s[method][key] for s in scores if not isnan(s[method][key])]
    return fmean(values) if values else nan


def _name(target: str, subset: tuple[str, ...]) -> str:
    return f"{' + '.join(subset)} to {target}"


def _image_table(found: Mapping[tuple[str, tuple[str, ...]], Sequence[Scores]], count: int) -> Table:
    rows: tuple[tuple[str | float, ...], ...] = tuple(
        (
            _name(*which),
            *(_mean(scores, method, "psnr_db") for method in (OURS, CUBIC, MATCHED)),
            *(_mean(scores, method, "ssim") for method in (OURS, CUBIC, MATCHED)),
            _mean(scores, OURS, "within_2_sd"),
        )
        for which, scores in found.items()
    )
    columns = (
        "sources to target", "PSNR dB", "cubic", "matched", "SSIM", "cubic", "matched", "within 2 sd",
    )  # fmt: skip
    note = (
        f"Mean of {count} simulated examinations against the contrast without noise. Cubic: of the sources, fitted to "
        "the very target. Matched: the nearest source with the target's own histogram. Within 2 sd: 0.94 if right."
    )
    return Table("Every set of sources to every target", columns, rows, note)


def _lesion_table(found: Mapping[tuple[str, tuple[str, ...]], Sequence[Scores]]) -> Table:
    rows: tuple[tuple[str | float, ...], ...] = tuple(
        (
            _name(*which),
            *(_mean(scores, method, "lesion_psnr_db") for method in (OURS, CUBIC, MATCHED)),
            *(_mean(scores, method, "contrast") for method in (OURS, CUBIC, MATCHED)),
        )
        for which, scores in found.items()
    )
    columns = ("sources to target", "PSNR dB", "cubic", "matched", "contrast", "cubic", "matched")
    note = "Contrast: of lesions to the white matter within 5 mm, as a share of the true one. 1 is right."
    return Table("Lesions", columns, rows, note)


def _make_metrics(found: Mapping[tuple[str, tuple[str, ...]], Sequence[Scores]]) -> dict[str, float]:
    numbers: dict[str, list[float]] = {}
    for (target, _), scores in found.items():
        for key in ("psnr_db", "ssim", "within_2_sd", "contrast"):
            value = _mean(scores, OURS, key)
            if not isnan(value):
                numbers.setdefault(key, []).append(value)
                numbers.setdefault(f"{target}_{key}", []).append(value)
    return {name: round(fmean(values), 4) for name, values in sorted(numbers.items())}


def _describe_failures(found: Mapping[tuple[str, tuple[str, ...]], Sequence[Scores]]) -> str:
    lost = [
        _name(*which)
        for which, scores in found.items()
        if _mean(scores, OURS, "psnr_db") < max(_mean(scores, m, "psnr_db") for m in (CUBIC, MATCHED))
    ]
    faint = [_name(*which) for which, scores in found.items() if _mean(scores, OURS, "contrast") < 0.8]
    return (
        f"A baseline has the higher PSNR in {len(lost)} of {len(found)} translations: {', '.join(lost) or 'none'}.\n\n"
        f"Lesions keep less than 80 % of their contrast in {len(faint)} of {len(found)}: {', '.join(faint) or 'none'}."
    )


def _make_picture(model: Model, plan: Plan, case: ContrastCase) -> Picture:
    from matplotlib.figure import Figure

    k = int(case.lesions.sum(dim=(1, 2)).argmax())
    figure = Figure(figsize=(12, 3 * len(case.targets)))
    for row, target in enumerate(case.targets):
        subsets = list_subsets(plan, target)
        p, alone = (predict_target(model, plan, case, target, subset) for subset in (subsets[-1], subsets[0]))
        span = plan.find_target(target).parsed_scale.span
        panels = {
            f"true {target}": case.targets[target],
            f"from {' + '.join(subsets[-1])}": p.mean,
            f"from {' + '.join(subsets[0])}": alone.mean,
            "standard deviation × 5": 5 * p.sd,
        }
        for column, (title, x) in enumerate(panels.items()):
            axes = figure.add_subplot(len(case.targets), len(panels), row * len(panels) + column + 1)
            axes.imshow(torch.where(case.inside, x, 0.0)[k].numpy(), cmap="gray", vmin=0, vmax=span)
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    return Picture("contrasts", f"{case.name}: slice with most lesions; synthetic columns two to four.", figure)
