"""Evaluation of the anatomy model: on simulated heads of held-out maps, and on real scans.

Simulated: Dice against the head that the image was made of, per kind of scan, per structure and per subgroup, beside a
baseline that takes the label map of another subject with its brain's box laid on this one's. Real: Dice of brain and of
grey plus white matter against the ICBM 2009a template's, registered to the scan; no person has drawn these masks, so
they show gross failure, not accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.anatomy import apply_mixture, has_refinement
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.evaluation import Evaluation, Picture, Progress, Table
from model_zoo.evaluation.head_labels import label_structures, score_groups
from model_zoo.evaluation.real_heads import RealScan, real_table, score_real_scans
from model_zoo.imaging import scale_between_quantiles
from model_zoo.mixture import Mixture
from model_zoo.physics import sequences
from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.sequences import Flair, Mprage, SpinEcho
from model_zoo.simulate import anatomy, heads
from model_zoo.simulate.acquisition import reduce_resolution
from model_zoo.simulate.heads import Atrophy, Head, Variation
from model_zoo.simulate.lesions import draw_lesions, remove_lesions
from model_zoo.simulate.phantom import make_phantom
from model_zoo.simulate.volumes import Scan, draw_tissue_maps, render_contrast_agnostic, render_signal, simulate_scan
from model_zoo.structures import BRAIN, COUNT, STRUCTURES, TISSUE_GROUPS
from model_zoo.training.recipe import seeded

__all__ = ["evaluate"]

SHAPE = (192, 224, 192)
SHARP = Scan((1.0, 1.0, 1.0), noise_sd=0.03, bias=0.1)
THICK = Scan((5.0, 1.0, 1.0), noise_sd=0.03, bias=0.1)
LOW_FIELD = Scan((5.0, 1.6, 1.6), noise_sd=0.10, bias=0.1)
BASELINE_SUBJECT = "01"
NONE = Atrophy()


@dataclass(frozen=True)
class Kind:
    """One kind of scan: ``sequence`` None is SynthSeg's free contrast; ``lesions``: their number."""

    name: str
    sequence: sequences.Sequence | None
    scan: Scan = SHARP
    lesions: int = 0
    atrophy: Atrophy = NONE
    face: bool = True


KINDS = (
    Kind("T1w MPRAGE 1 mm", Mprage()),
    Kind("T2w 1 mm", SpinEcho()),
    Kind("FLAIR 1 mm", Flair()),
    Kind("free contrast", None),
    Kind("T1w 1 x 1 x 5 mm", Mprage(), THICK),
    Kind("FLAIR 1 x 1 x 5 mm", Flair(), THICK),
    Kind("T1w low field 1.6 x 1.6 x 5 mm", Mprage(), LOW_FIELD),
    Kind("T1w with 40 lesions", Mprage(), lesions=40),
    Kind("FLAIR with 40 lesions", Flair(), lesions=40),
    Kind("T1w, no face", Mprage(), face=False),
    Kind("T1w, strong atrophy", Mprage(), atrophy=Atrophy(0.3, 0.8, 0.12)),
    Kind("FLAIR, strong atrophy", Flair(), atrophy=Atrophy(0.3, 0.8, 0.12)),
)


@dataclass(frozen=True)
class _Scored:
    kind: Kind
    subject: str
    image: Tensor
    truth: Tensor
    found: Tensor
    scores: dict[int, float]


def evaluate(model: Model, *, root: Path | None, quick: bool = False, progress: Progress) -> Evaluation:
    """Score every kind of scan of both test subjects and the kit's real scans; ``quick``: two kinds of one phantom."""
    kinds = KINDS[:2] if quick else KINDS
    subjects = (("phantom",) if quick else anatomy.TEST)  # fmt: skip
    scored: list[_Scored] = []
    for n, kind in enumerate(kinds):
        for m, subject in enumerate(subjects):
            progress((n + m / len(subjects)) / (len(kinds) + 2), kind.name)
            scored.append(_score_kind(model, kind, subject, seeded(2026, n, m), root))
    progress(len(kinds) / (len(kinds) + 2), "real scans")
    real = [] if quick else score_real_scans(model, root or data_root())
    baseline = None if quick else _score_baseline(root)
    tables = [_kind_table(scored, baseline), _structure_table(scored), _subgroup_table(scored)]
    if not quick:
        tables += _limit_tables(scored, model)
    if real:
        tables.append(real_table(real))
    pictures = [] if quick else [*_make_pictures(scored), _make_real_picture(real)]
    return Evaluation(tuple(tables), tuple(pictures), _make_metrics(scored, real), _describe_failures(scored), LIMITS)


LIMITS = """Borders between cortical regions follow a registered atlas, not each person's folds, in training and in this
table alike. The model has seen twelve anatomies. Tumours, resections, infants and other species are outside of it:
a region of more than 10 ml that is unlike its mirror image holds the result. Lesions of both sides or of the midline,
smaller ones, and phantoms of a brain's size are not recognised by it.
Age and sex of the label maps' subjects are not known, so there is no table by them; atrophy stands in for age."""


def _score_kind(model: Model, kind: Kind, subject: str, generator: torch.Generator, root: Path | None) -> _Scored:
    head = _draw_head(kind, subject, generator, root)
    image = render_contrast_agnostic(head, generator) if kind.sequence is None else _render_scan(head, kind, generator)
    labels = label_structures(model, image)
    return _Scored(kind, subject, image, head.structure, labels, score_groups(labels, head.structure))


def _draw_head(kind: Kind, subject: str, generator: torch.Generator, root: Path | None) -> Head:
    if subject == "phantom":
        return make_phantom((64, 64, 64), 3.0)
    variation = Variation(face=kind.face)
    return heads.draw_head(subject, generator, shape=SHAPE, variation=variation, atrophy=kind.atrophy, root=root)


def _render_scan(head: Head, kind: Kind, generator: torch.Generator) -> Tensor:
    if kind.sequence is None:
        raise ValueError("a free contrast has no sequence")
    maps = draw_tissue_maps(
        remove_lesions(head), TissueParameters.table().draw_regional(generator, COUNT + 1), generator
    )
    if kind.lesions:
        maps = draw_lesions(head, generator, count=kind.lesions).apply_to(maps)
    return scale_between_quantiles(simulate_scan(render_signal(maps, kind.sequence, head), head, kind.scan, generator))


GROUP_COLUMNS = ("brain", "grey matter", "white matter", "csf", "mean of structures", "worst structure")


def _mean_cells(scores: Iterable[dict[int, float]]) -> tuple[float | str, ...]:
    """Return the means of the groups, of all structures, and the structure with the lowest mean."""
    several = list(scores)
    mean = {n: float(np.mean([s[n] for s in several if n in s])) for n in several[0]}
    structures = {n: value for n, value in mean.items() if n > 0}
    worst = min(structures, key=lambda n: structures[n])
    groups = tuple(mean[-key] for key in range(1, 5))
    return (*groups, float(np.mean(list(structures.values()))), f"{STRUCTURES[worst - 1].name} {structures[worst]:.2f}")


def _kind_table(scored: Sequence[_Scored], baseline: list[dict[int, float]] | None) -> Table:
    names = list(dict.fromkeys(s.kind.name for s in scored))
    rows = [(name, *_mean_cells(s.scores for s in scored if s.kind.name == name)) for name in names]
    rows.append(("all", *_mean_cells(s.scores for s in scored)))
    if baseline:
        rows.append(("baseline: another subject's map, boxes matched", *_mean_cells(baseline)))
    note = "Dice, mean of the two held-out maps with random deformation; brain is all structures but fluid outside."
    return Table("Dice on held-out simulated heads, by kind of scan", ("scan", *GROUP_COLUMNS), tuple(rows), note)


def _structure_table(scored: Sequence[_Scored]) -> Table:
    rows = []
    for s in STRUCTURES:
        values = [each.scores[s.number] for each in scored if s.number in each.scores]
        if values:
            rows.append((s.name, float(np.mean(values)), float(np.min(values))))
    return Table("Dice by structure", ("structure", "mean", "lowest"), tuple(rows))


def _subgroup_table(scored: Sequence[_Scored]) -> Table:
    groups: list[tuple[str, list[_Scored]]] = [
        (f"map {subject}", [s for s in scored if s.subject == subject])
        for subject in sorted({s.subject for s in scored})
    ]
    groups += [
        ("no atrophy, no lesions added", [s for s in scored if s.kind.atrophy == NONE and s.kind.lesions == 0]),
        ("strong atrophy", [s for s in scored if s.kind.atrophy != NONE]),
        ("40 lesions", [s for s in scored if s.kind.lesions > 0]),
        ("sharp, 1 mm", [s for s in scored if s.kind.scan == SHARP]),
        ("5 mm slices", [s for s in scored if s.kind.scan != SHARP]),
    ]
    rows = [(name, *_mean_cells(s.scores for s in chosen)) for name, chosen in groups if chosen]
    return Table("Dice by subgroup", ("subgroup", *GROUP_COLUMNS), tuple(rows))


def _limit_tables(scored: Sequence[_Scored], model: Model) -> list[Table]:
    """Return the Dice that the scans' resolution and contrast allow."""
    coarse = [s for s in scored if s.kind.scan != SHARP]
    note = (
        "Dice with the truth of the truth itself, brought to the scan's resolution and back as the image is, without "
        "noise: the tissue and in it the structure with the largest share. No bound, but what no contrast shows."
    )
    title = "What the resolution leaves of the truth"
    tables = [_limit_table(title, note, coarse, lambda s: _label_at_resolution(s.truth, s.kind.scan))]
    if has_refinement(model):
        note = (
            "Dice where the first network's answer is replaced by the true shares of the structures in the voxels of "
            "its grid: what the image's intensities add to these, without a second look. No bound either."
        )
        title = "What a first look without error would give"
        tables.append(_limit_table(title, note, scored, lambda s: _label_by_true_shares(s, model)))
    return tables


def _limit_table(title: str, note: str, scored: Sequence[_Scored], found: Callable[[_Scored], Tensor]) -> Table:
    rows = []
    for name in dict.fromkeys(s.kind.name for s in scored):
        cells = _mean_cells([score_groups(found(s), s.truth) for s in scored if s.kind.name == name])
        rows.append((name, *cells))
    return Table(title, ("scan", *GROUP_COLUMNS), tuple(rows), note)


def _label_by_true_shares(s: _Scored, model: Model) -> Tensor:
    """Return the likeliest structures by true shares on the first network's grid, of twice the image's spacing."""
    step = 2 * round(float(model.settings["spacing_mm"]))
    shares = [functional.avg_pool3d((s.truth == n).float()[None], step) for n in range(COUNT + 1)]
    p = functional.interpolate(torch.stack(shares, dim=1), scale_factor=2, mode="trilinear", align_corners=False)
    mixed = apply_mixture(p[0], s.image, Mixture(**model.settings["mixture"]))
    return mixed.argmax(dim=0).to(s.truth.dtype)


def _label_at_resolution(truth: Tensor, scan: Scan) -> Tensor:
    """Return for each voxel of ``scan`` the structure it holds most of, among those of the tissue that it holds most
    of.
    """
    tissues = [(0,), *TISSUE_GROUPS.values()]
    order = torch.tensor([n for numbers in tissues for n in numbers])
    shares = [reduce_resolution((truth == n).float(), scan.spacing_mm, 0.0, seeded(2026)) for n in order.tolist()]
    parts = torch.split(torch.stack(shares), [len(numbers) for numbers in tissues])
    winner = torch.stack([part.sum(dim=0) for part in parts]).argmax(dim=0)
    in_tissue = torch.cat([part.masked_fill(winner != n, -1) for n, part in enumerate(parts)])
    return order.to(truth.dtype)[in_tissue.argmax(dim=0)]


def _score_baseline(root: Path | None) -> list[dict[int, float]]:
    """Return the Dice of a training subject's structures against each test subject's, brain boxes aligned."""
    moving = heads.make_plain_head(BASELINE_SUBJECT, shape=SHAPE, root=root).structure
    found = []
    for subject in anatomy.TEST:
        truth = heads.make_plain_head(subject, shape=SHAPE, root=root).structure
        found.append(score_groups(_match_boxes(moving, truth), truth))
    return found


def _match_boxes(moving: Tensor, fixed: Tensor) -> Tensor:
    """Stretch ``moving`` so that the box of its brain is that of ``fixed``; nearest voxel."""
    axes = []
    boxes = [_brain_box(x) for x in (moving, fixed)]
    for axis, n in enumerate(fixed.shape):
        (low, high), (to_low, to_high) = boxes[0][axis], boxes[1][axis]
        at = low + (torch.arange(n) - to_low) * (high - low) / (to_high - to_low)
        axes.append(at.round().long().clamp(0, moving.shape[axis] - 1))
    return moving[axes[0]][:, axes[1]][:, :, axes[2]]


def _brain_box(structure: Tensor) -> list[tuple[int, int]]:
    inside = torch.isin(structure, torch.tensor(BRAIN, dtype=structure.dtype)).nonzero()
    return list(zip(inside.amin(0).tolist(), inside.amax(0).tolist(), strict=True))


def _make_metrics(scored: Sequence[_Scored], real: Sequence[RealScan]) -> dict[str, float]:
    cells = _mean_cells(s.scores for s in scored)
    found = {
        f"dice_{name.replace(' ', '_')}": round(float(v), 4) for name, v in zip(GROUP_COLUMNS[:5], cells, strict=False)
    }
    for column in ("brain", "tissue"):
        if real:
            found[f"real_dice_{column}"] = round(float(np.mean([getattr(r, column) for r in real])), 4)
    return found


def _describe_failures(scored: Sequence[_Scored]) -> str:
    worst = min(scored, key=lambda s: float(np.mean([v for n, v in s.scores.items() if n > 0])))
    mean = float(np.mean([v for n, v in worst.scores.items() if n > 0]))
    which = f"{worst.kind.name}, map {worst.subject}, shown below"
    return f"The lowest mean over structures of one scan is {mean:.2f}: {which}."


def _make_pictures(scored: Sequence[_Scored]) -> list[Picture]:
    ordered = sorted(scored, key=lambda s: float(np.mean([v for n, v in s.scores.items() if n > 0])))
    worst, middle = ordered[0], ordered[len(ordered) // 2]
    return [
        _make_picture("typical", f"Typical: {middle.kind.name}, map {middle.subject}: image, truth, found.", middle),
        _make_picture("worst-case", f"Worst: {worst.kind.name}, map {worst.subject}: image, truth, found.", worst),
    ]


def _make_picture(name: str, caption: str, s: _Scored) -> Picture:
    panels = [("image", s.image, "gray"), ("truth", s.truth, "nipy_spectral"), ("found", s.found, "nipy_spectral")]
    return Picture(name, caption, _draw_figure([panels]))


def _make_real_picture(real: Sequence[RealScan]) -> Picture:
    ordered = sorted(real, key=lambda r: r.tissue)
    rows = [
        [(f"{r.name}, tissue Dice {r.tissue:.2f}", r.image, "gray"), ("found", r.found, "nipy_spectral")]
        for r in (ordered[0], ordered[-1])
    ]
    return Picture("real", "Real scans: lowest and highest agreement with the template.", _draw_figure(rows))


def _draw_figure(rows: Sequence[Sequence[tuple[str, Tensor, str]]]) -> Any:
    """Return the axial and sagittal planes through the middle of each panel, one row per list."""
    from matplotlib.figure import Figure

    columns = 2 * len(rows[0])
    figure = Figure(figsize=(2.4 * columns, 2.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, panels in zip(axes, rows, strict=True):
        for n, (title, x, colours) in enumerate(panels):
            top = COUNT if colours != "gray" else float(x.float().quantile(0.99)) if x.numel() < 1e6 else float(x.max())
            planes = (x[x.shape[0] // 2], x.flip(0)[:, :, x.shape[2] // 2 + 4])
            for axis, plane in zip(line[2 * n : 2 * n + 2], planes, strict=True):
                axis.imshow(plane.numpy(), cmap=colours, vmin=0, vmax=top, interpolation="nearest")
                axis.axis("off")
            line[2 * n].set_title(title, fontsize=8, loc="left")
    return figure
