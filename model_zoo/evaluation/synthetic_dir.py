"""Evaluation of synthetic DIR on simulated patients of the test subjects, against lookup, image arithmetic and FLAIR.

The reference is the simulator's DIR without noise, 1 in grey matter; PSNR and SSIM with a data range of 2 within the
brain. A lesion is found where any voxel of it is segmented; a component that touches no lesion is a false one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr
from torch import Tensor

from model_zoo import registry, similarity
from model_zoo.bundle import BundleError, Model
from model_zoo.evaluation import Evaluation, Picture, Progress, Table
from model_zoo.evaluation.dir_cases import (
    Case,
    build_case,
    fit_affine,
    fit_polynomial,
    list_cases,
    look_up_dir,
    prepare_as_node,
)
from model_zoo.evaluation.dir_contrast import Contrasts, add_scan_noise, contrast_table, measure_contrasts
from model_zoo.evaluation.head_labels import label_structures
from model_zoo.lesion_decision import LesionCriteria
from model_zoo.lesion_locations import LOCATIONS
from model_zoo.physics.sequences import DIR_TE_MS, DIR_TR_MS, Dir
from model_zoo.synthetic_dir import CLIP, SyntheticDir, compute_first_guess, predict, render
from model_zoo.training.recipe import seeded

__all__ = ["evaluate"]

RANGE = 2.0
OURS, ALONE = "this model, FLAIR + T1w", "this model, FLAIR only"
SPECK_VOXELS = 5
FALSE_BRIGHT = 0.3
"""DIR above the true one, in units of grey matter, that counts as a false lesion where FLAIR has an artefact."""

Values = dict[str, float]
Rows = list[tuple[str | float, ...]]


@dataclass(frozen=True)
class _Scored:
    """One case with the numbers of every method, and the model's own prediction with its uncertainty."""

    case: Case
    images: dict[str, Tensor]
    numbers: dict[str, Values]
    found: dict[str, Values]
    artefacts: dict[str, Values]
    contrasts: Contrasts
    sd: dict[str, float] = field(default_factory=dict)
    prediction: SyntheticDir | None = None


def evaluate(model: Model, *, root: Path | None, quick: bool = False, progress: Progress) -> Evaluation:
    """Score eight simulated examinations of the two test subjects (``quick``: one phantom), N = 20 passes on two of
    them.
    """
    scored: list[_Scored] = []
    listed = list_cases(quick)
    for n, (subject, kind, count) in enumerate(listed):
        progress(n / len(listed), f"subject {subject}, {kind}")
        passes = (2 if quick else 20) if kind == "strong atrophy" else 1
        case = build_case(subject, kind, count, root)
        structure = case.structure if quick else _find_structures(case)
        scored.append(_score_case(model, prepare_as_node(case, structure), structure, passes))
    tables = (
        _method_table(scored),
        _lesion_table(scored),
        contrast_table([s.contrasts for s in scored]),
        _artefact_table(scored),
        _uncertainty_table(scored),
    )
    worst = min(scored, key=lambda s: s.numbers[OURS]["psnr_db"])
    pictures = () if quick else tuple(_make_pictures(scored, worst))
    return Evaluation(
        (*tables, _subgroup_table(scored)),
        pictures,
        _make_metrics(scored),
        _describe_failures(scored, worst),
        _describe_limits(scored),
    )


def _find_structures(case: Case) -> Tensor:
    """Return structures as the shipped anatomy model finds them in the T1w, or the true ones where none is shipped."""
    try:
        model = registry.load("anatomy")
    except BundleError:
        return case.structure
    return label_structures(model, case.t1w / CLIP)


def _score_case(model: Model, case: Case, structure: Tensor, passes: int) -> _Scored:
    device = torch.device(model.device)
    flair, t1w = case.flair.to(device), case.t1w.to(device)

    def run(second: Tensor | None, n: int, tissues: Tensor = structure) -> SyntheticDir:
        at = tissues.to(device)
        p = predict(model.network, flair, second, at, passes=n, generator=seeded(0))
        return SyntheticDir(*(v.cpu() for v in (p.dir, p.sd, p.epistemic, p.lesion, p.maps)))

    both, alone = run(t1w, passes), run(None, 1)
    images = {
        OURS: both.dir * case.brain,
        ALONE: alone.dir * case.brain,
        "this model, told the true anatomy": run(t1w, 1, case.structure).dir * case.brain,
        "its maps, rendered by the equation": _render_predicted_maps(both, case),
        "its first guess: quadratic by the tissues": compute_first_guess(case.flair, case.t1w, structure, robust=True)
        * case.brain,
        "lookup with the true protocols": look_up_dir(case, seeded(1)),
        "cubic in FLAIR and T1w, fitted to the case": fit_polynomial(case),
        "FLAIR / T1w": fit_affine(case.flair / case.t1w.clamp(min=0.2), case),
        "FLAIR² / T1w": fit_affine(case.flair**2 / case.t1w.clamp(min=0.2), case),
        "FLAIR²": fit_affine(case.flair**2, case),
        "FLAIR": fit_affine(case.flair, case),
    }
    segmented = {
        OURS: _decide_lesions(both, case, structure),
        ALONE: _decide_lesions(alone, case, structure),
        "FLAIR + T1w, probability above 0.5": (both.lesion > 0.5) & case.brain,
        "FLAIR above its best threshold": _segment_by_best_threshold(case),
    }
    return _Scored(
        case,
        images,
        {name: _measure_image(x, case) for name, x in images.items()},
        {name: score_lesions(mask, case) for name, mask in segmented.items()},
        {name: score_artefacts(images[name], segmented[name], case) for name in (OURS, ALONE)},
        measure_contrasts(_select_images(case, images), case),
        _measure_sd(both, case) if passes > 1 else {},
        both,
    )


def _select_images(case: Case, images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the images on which the contrast of lesions is measured."""
    true = {"true DIR": case.dir, "true DIR as acquired": add_scan_noise(case)}
    return true | {name: images[name] for name in (OURS, ALONE)} | {"FLAIR": case.flair}


def _decide_lesions(p: SyntheticDir, case: Case, structure: Tensor) -> Tensor:
    """Return the lesions that the pipeline reports."""
    return torch.from_numpy(LesionCriteria().select(p.lesion.numpy(), case.flair.numpy(), structure.numpy()).mask)


def _render_predicted_maps(p: SyntheticDir, case: Case) -> Tensor:
    """Return DIR by its equation on the predicted maps, with their own white matter and grey matter."""
    t1_ms = 1000 * p.maps[1].exp()
    white = float(t1_ms[case.white_matter].median())
    x = render(p.maps, Dir.nulling(DIR_TR_MS, white, te_ms=DIR_TE_MS))
    return (x / x[case.cortex].mean()).clamp(0, CLIP) * case.brain


def _measure_image(x: Tensor, case: Case) -> Values:
    masks = {"brain": case.brain, "lesions": case.mask, "cortex": case.cortex}
    return {
        "psnr_db": similarity.psnr(x, case.dir, RANGE, case.brain),
        "ssim": similarity.ssim(x, case.dir, RANGE, case.brain),
        **{f"mae_{name}": similarity.mean_absolute_error(x, case.dir, mask) for name, mask in masks.items()},
    }


def _find_components(mask: Tensor) -> tuple[NDArray[np.int32], list[int]]:
    """Return the connected components of at least five voxels and their numbers."""
    labels, count = ndimage.label(mask.numpy(), np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return labels, [n for n in range(1, count + 1) if sizes[n] >= SPECK_VOXELS]


def score_lesions(mask: Tensor, case: Case) -> Values:
    """Return lesions hit by location, components that are no lesion, and the Dice of the masks."""
    inside = mask.numpy()
    hit = {lesion.label for lesion in case.lesions} & set(np.unique(case.labels[inside]).tolist())
    labels, components = _find_components(mask)
    true = set(np.unique(labels[case.mask.numpy()]).tolist())
    values = {
        "recall": len(hit) / max(1, len(case.lesions)),
        "precision": sum(n in true for n in components) / max(1, len(components)),
        "false": float(sum(n not in true for n in components)),
        "dice": similarity.dice(mask, case.mask),
    }
    for place in LOCATIONS:
        here = [lesion.label for lesion in case.lesions if lesion.location == place]
        if here:
            values[f"recall_{place}"] = len(hit & set(here)) / len(here)
    return values


def _segment_by_best_threshold(case: Case) -> Tensor:
    """Return FLAIR above the threshold of the best F1 of lesions on this very case, within white matter and lesions."""

    def f1(mask: Tensor) -> float:
        values = score_lesions(mask, case)
        return 2 * values["recall"] * values["precision"] / max(1e-6, values["recall"] + values["precision"])

    where = case.white_matter | case.mask
    masks = [(case.flair > t) & where for t in (1.15, 1.25, 1.35, 1.45, 1.6)]
    return max(masks, key=f1)


def score_artefacts(x: Tensor, mask: Tensor, case: Case) -> Values:
    """Return the share of FLAIR artefacts with a false bright spot on DIR, and with a segmented lesion."""
    excess, segmented = (x - case.dir).numpy(), mask.numpy()
    numbers = [n for n in range(1, int(case.artefact.max()) + 1) if (case.artefact == n).sum() >= SPECK_VOXELS]
    bright = [float(excess[case.artefact == n].mean()) > FALSE_BRIGHT for n in numbers]
    called = [bool(segmented[case.artefact == n].any()) for n in numbers]
    return {"count": float(len(numbers)), "bright": float(sum(bright)), "called": float(sum(called))}


def _measure_sd(p: SyntheticDir, case: Case) -> dict[str, float]:
    """Return the rank correlation of the sd and its parts with the absolute error, and the mean sd in lesions and
    artefacts.
    """
    brain = case.brain.numpy()
    error = np.abs((p.dir - case.dir).numpy())[brain][::7]
    aleatoric = torch.sqrt((p.sd**2 - p.epistemic**2).clamp(min=0))
    parts = {"total": p.sd, "over dropout passes": p.epistemic, "Laplace scale": aleatoric}
    values = {name: _rank_correlation(error, part.numpy()[brain][::7]) for name, part in parts.items()}
    for name, mask in (("in lesions", case.mask.numpy()), ("in artefacts", case.artefact > 0), ("in brain", brain)):
        values[f"sd {name}"] = float(p.sd.numpy()[mask].mean()) if mask.any() else float("nan")
        values[f"epistemic sd {name}"] = float(p.epistemic.numpy()[mask].mean()) if mask.any() else float("nan")
    return values


def _rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return Spearman's rank correlation; not a number where one input is constant."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _method_table(scored: Sequence[_Scored]) -> Table:
    keys = ("psnr_db", "ssim", "mae_brain", "mae_lesions", "mae_cortex")
    rows: Rows = [(name, *(_mean([s.numbers[name][k] for s in scored]) for k in keys)) for name in scored[0].images]
    note = (
        f"Mean of {len(scored)} simulated examinations; structures by the shipped anatomy model where not said "
        "otherwise; FLAIR and T1w without their bias fields. Lookup and fits know of the case what nobody would: its "
        "protocols, or the true DIR itself by least squares."
    )
    columns = ("method", "PSNR dB", "SSIM", "MAE brain", "MAE lesions", "MAE cortex")
    return Table("Synthetic DIR against the true one", columns, tuple(rows), note)


def _lesion_table(scored: Sequence[_Scored]) -> Table:
    keys = ("recall", "precision", "dice", "false", *(f"recall_{place}" for place in LOCATIONS))
    rows: Rows = [
        (name, *(_mean([s.found[name].get(k, float("nan")) for s in scored]) for k in keys)) for name in scored[0].found
    ]
    columns = ("segmentation", "recall", "precision", "Dice", "false per scan", *LOCATIONS)
    return Table("Lesions found, and recall by location", columns, tuple(rows), f"{_count_lesions(scored)} lesions.")


def _count_lesions(scored: Sequence[_Scored]) -> int:
    return sum(len(s.case.lesions) for s in scored)


def _artefact_table(scored: Sequence[_Scored]) -> Table:
    rows: Rows = []
    for name in (OURS, ALONE):
        total = max(1.0, sum(s.artefacts[name]["count"] for s in scored))
        shares = (sum(s.artefacts[name][k] for s in scored) / total for k in ("bright", "called"))
        rows.append((name, int(total), *shares))
    columns = ("input", "artefacts", "share falsely bright on DIR", "share segmented as a lesion")
    note = f"FLAIR-bright spots without any change of tissue; bright: more than {FALSE_BRIGHT} above the true DIR."
    return Table("FLAIR artefacts", columns, tuple(rows), note)


def _uncertainty_table(scored: Sequence[_Scored]) -> Table:
    known = [s.sd for s in scored if s.sd]
    rows = tuple((name, _mean([sd[name] for sd in known])) for name in known[0]) if known else ()
    note = "The first three: Spearman's rank correlation of the sd with the absolute error over the brain's voxels."
    return Table("Uncertainty, N = 20 dropout passes, variances by Welford", ("quantity", "value"), rows, note)


def _subgroup_table(scored: Sequence[_Scored]) -> Table:
    groups = {f"{s.case.kind}": [t for t in scored if t.case.kind == s.case.kind] for s in scored}
    groups |= {f"subject {s.case.subject}": [t for t in scored if t.case.subject == s.case.subject] for s in scored}
    rows: Rows = []
    for name, chosen in groups.items():
        numbers = [s.numbers[OURS] for s in chosen]
        lookup = [s.numbers["lookup with the true protocols"]["psnr_db"] for s in chosen]
        found = [s.found[OURS] for s in chosen]
        rows.append(
            (
                name,
                *(_mean([n[k] for n in numbers]) for k in ("psnr_db", "mae_lesions")),
                _mean(lookup),
                *(_mean([f[k] for f in found]) for k in ("recall", "precision", "dice")),
            )
        )
    columns = ("subgroup", "PSNR dB", "MAE lesions", "PSNR dB of lookup", "recall", "precision", "Dice")
    note = "FLAIR + T1w. Age and sex of the label maps' subjects are not known; atrophy is simulated."
    return Table("By subgroup", columns, tuple(rows), note)


def _make_metrics(scored: Sequence[_Scored]) -> dict[str, float]:
    found = {
        f"{prefix}{k}": round(_mean([s.numbers[name][k] for s in scored]), 4)
        for prefix, name in (("", OURS), ("flair_only_", ALONE))
        for k in ("psnr_db", "ssim", "mae_brain", "mae_lesions", "mae_cortex")
    }
    return found | {f"lesion_{k}": round(_mean([s.found[OURS][k] for s in scored]), 4) for k in ("recall", "precision")}


def _describe_failures(scored: Sequence[_Scored], worst: _Scored) -> str:
    missed = {place: _mean([1 - s.found[OURS].get(f"recall_{place}", np.nan) for s in scored]) for place in LOCATIONS}
    most = max((p for p in missed if not np.isnan(missed[p])), key=lambda p: missed[p], default="none")
    return (
        f"Lowest PSNR: {worst.numbers[OURS]['psnr_db']:.1f} dB, subject {worst.case.subject}, {worst.case.kind}. "
        f"Most often missed: {most} lesions ({100 * missed.get(most, 0.0):.0f} %)."
    )


def _describe_limits(scored: Sequence[_Scored]) -> str:
    """Return the methods that won against the model, by PSNR or in lesions, and the limits of the simulation."""
    lines = []
    for key, sign, title in (("psnr_db", 1, "PSNR"), ("mae_lesions", -1, "error in lesions")):
        means = {name: sign * _mean([s.numbers[name][key] for s in scored]) for name in scored[0].images}
        better = [name for name in means if means[name] > means[OURS]]
        lines.append(f"- {title}: {', '.join(better) + ' did better' if better else 'no method did better'}.")
    lines.append(
        "- With a T1w the DIR is, where no lesion is, the mean of network and first guess; the sd is the network's."
    )
    lines.append(
        "- The tests use the simulator that it was trained with: the gap to real scanners is not known. "
        "Flow, magnetisation transfer and B1 errors are not simulated; real DIR has noise and its own artefacts."
    )
    lines.append(
        "- The pipeline `ms_lesions` delivers the lesion channel of this model without the DIR: what is said here "
        "about lesions holds for it."
    )
    return "\n".join(lines)


def _make_pictures(scored: Sequence[_Scored], worst: _Scored) -> list[Picture]:
    typical = sorted(scored, key=lambda s: s.numbers[OURS]["psnr_db"])[len(scored) // 2]
    return [
        Picture("typical", f"Typical: subject {typical.case.subject}, {typical.case.kind}.", _draw_figure(typical)),
        Picture("worst-case", f"Lowest PSNR: subject {worst.case.subject}, {worst.case.kind}.", _draw_figure(worst)),
    ]


def _draw_figure(s: _Scored) -> Any:
    """Return a figure of two axial slices: inputs, true and synthetic DIR, error, sd, lesions true (red) and found
    (green).
    """
    from matplotlib.figure import Figure

    load = s.case.mask.float().sum((1, 2)) + (torch.from_numpy(s.case.artefact) > 0).float().sum((1, 2))
    slices = (int(load.argmax()), int(s.case.mask.shape[0] * 0.55))
    p = s.prediction
    if p is None:
        raise ValueError("a case without a prediction has no picture")
    panels = [
        ("FLAIR", s.case.flair, "gray", 2.0),
        ("T1w", s.case.t1w, "gray", 1.5),
        ("true DIR", s.case.dir, "gray", 2.0),
        ("synthetic DIR", s.images[OURS], "gray", 2.0),
        ("FLAIR only", s.images[ALONE], "gray", 2.0),
        ("error", (s.images[OURS] - s.case.dir).abs(), "magma", 0.6),
        ("sd", p.sd * s.case.brain, "magma", 0.6),
    ]
    figure = Figure(figsize=(2.1 * len(panels), 5.0), layout="constrained")
    for row, k in zip(figure.subplots(2, len(panels)), slices, strict=True):
        for axis, (title, x, colours, top) in zip(row, panels, strict=True):
            axis.imshow(x[k].numpy(), cmap=colours, vmin=0, vmax=top)
            axis.set_title(title, fontsize=8)
            axis.axis("off")
        row[0].contour(s.case.mask[k].numpy(), [0.5], colors="red", linewidths=0.6)
        row[3].contour((p.lesion[k] > 0.5).numpy(), [0.5], colors="lime", linewidths=0.6)
    return figure
