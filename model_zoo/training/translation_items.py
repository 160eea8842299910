"""Items of the recipe ``translation``: prepared subjects, simulated or from a table, and patches drawn from them.

A subject holds scaled sources and the targets that it has. A patch has one target, and of the other sources a random
part, never none. Simulated targets are free of noise, of the bias field and of the scan's resolution.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.simulate import ms
from model_zoo.simulate.acquisition import uniform
from model_zoo.simulate.contrasts import draw_sequence
from model_zoo.simulate.lesions import Lesions
from model_zoo.simulate.volumes import Scan, draw_scan, draw_tissue_maps, render_signal, simulate_scan
from model_zoo.training.brain_box import find_box_with_margin
from model_zoo.training.cohort import Cohort, Row
from model_zoo.training.dir_losses import weigh_lesions
from model_zoo.training.labels import displace_labels
from model_zoo.training.recipe import Source, seeded
from model_zoo.translation import network
from model_zoo.translation.plan import Plan, PlannedSource, PlannedTarget, find_unsupported
from model_zoo.translation.preparation import find_inside, scale_series

if TYPE_CHECKING:
    from model_zoo.training.translation import Configuration

__all__ = [
    "OUTSIDE",
    "PreparedSubject",
    "draw_box",
    "draw_index",
    "draw_patch",
    "draw_subject",
    "list_possible_targets",
    "prepare_row",
    "scan_contrasts",
]

SEQUENCES = {"t1w": "mprage", "t2w": "t2w", "flair": "flair", "pd": "pd", "dir": "dir"}
"""Sequence of the simulator for each contrast."""
HOLE_BLUR = (0.3, 1.0)
"""Blur of series with holes, in voxels: of voxels from 1.5 down to about 0.6 mm."""
WARP_CELLS = 24
WITHOUT_LESIONS = 0.4
COVARIATES_UNKNOWN = 0.2
"""Share of patches that do not see a covariate which the subject has."""
OUTSIDE = 0.05
"""Weight of voxels outside the body or the structures."""
_TRIES = 64


@dataclass(frozen=True)
class PreparedSubject:
    """One subject: half-precision volumes (k, j, i) of one grid.

    ``sources`` and ``targets``: scaled, by name; ``inside`` and ``emphasis``: weights; ``brightness`` as
    ``network.measure_brightness`` gives it for all sources; ``covariates``: known values by name.
    """

    sources: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    inside: Tensor
    emphasis: Tensor
    brightness: Tensor
    covariates: Mapping[str, float | str]


def draw_subject(c: Configuration, source: Source, generator: torch.Generator) -> PreparedSubject:
    """Return one subject of the user's table, or one of the simulated examinations in use at this step."""
    if source.cohort is not None:
        return _draw_row(c.plan, c.least_shape, source.cohort, generator)
    which = int(torch.randint(c.examinations, (1,), generator=generator, device=generator.device))
    return _make_examination(source, c, source.step // c.renew + which)


def draw_patch(c: Configuration, subject: PreparedSubject, generator: torch.Generator) -> dict[str, Tensor]:
    """Return one item of a batch: ``input``, ``target``, ``weight``, ``emphasis`` (channels, k, j, i), the conditions,
    and ``span`` of the target's values.
    """
    plan = c.plan
    target = _choose_target(plan, subject, generator)
    chosen = _choose_sources(plan, subject, target, generator)
    box = draw_box(c, subject, generator)
    volumes = {name: subject.sources[name][box].float() for name in chosen}
    middle = slice(plan.slices // 2, plan.slices // 2 + 1) if plan.slices else slice(None)
    item = {
        "input": network.stack_sources(plan, volumes),
        "target": subject.targets[target.name][box].float()[middle][None],
        "weight": torch.where(subject.inside[box] > 0.5, 1.0, OUTSIDE)[middle][None],
        "emphasis": subject.emphasis[box].float()[middle][None],
    }
    turned = [axis for axis in ((2, 3) if plan.slices else (1, 2, 3)) if uniform(generator, 0, 1) < 0.5]
    flipped = {name: x.flip(turned).contiguous() for name, x in item.items()}
    return flipped | _make_conditions(plan, subject, target, chosen, generator)


def _make_conditions(
    plan: Plan, subject: PreparedSubject, target: PlannedTarget, chosen: list[str], generator: torch.Generator
) -> dict[str, Tensor]:
    rows = subject.brightness.reshape(len(plan.sources), -1)
    present = torch.tensor([float(source.name in chosen) for source in plan.sources])
    known = {
        name: value for name, value in subject.covariates.items() if uniform(generator, 0, 1) >= COVARIATES_UNKNOWN
    }
    return {
        "target_code": network.one_hot_code(plan, target.name),
        "brightness": (rows * present[:, None]).flatten(),
        "tokens": network.covariate_tokens(plan, known),
        "span": torch.tensor(target.parsed_scale.span),
    }


def _choose_target(plan: Plan, subject: PreparedSubject, generator: torch.Generator) -> PlannedTarget:
    """Return a target that the subject has, with sources beside it that hold it."""
    possible = list_possible_targets(plan, subject.sources.keys(), subject.targets.keys())
    return possible[draw_index(len(possible), generator)]


def list_possible_targets(plan: Plan, sources: Collection[str], targets: Collection[str]) -> list[PlannedTarget]:
    """Return the targets that a subject with these series can teach: sources beside the target hold what it shows."""
    found = []
    for target in plan.targets:
        own = [s for s in plan.sources if s.name in sources and (plan.holes or s.name != target.name)]
        if target.name in targets and own and (plan.holes or plan.accepted_risk or not find_unsupported(own, target)):
            found.append(target)
    return found


def _choose_sources(
    plan: Plan, subject: PreparedSubject, target: PlannedTarget, generator: torch.Generator
) -> list[str]:
    """Return the required sources and a random part of the others, of a random size: one or more in all.

    Parts that do not hold what the target shows are drawn again, since the pipeline refuses them.
    """
    own = [source for source in plan.sources if source.name in subject.sources and source.name != target.name]
    for _ in range(_TRIES):
        chosen = _draw_part(own, generator)
        if plan.accepted_risk or not find_unsupported(chosen, target):
            return [source.name for source in chosen]
    return [source.name for source in own]


def _draw_part(own: list[PlannedSource], generator: torch.Generator) -> list[PlannedSource]:
    required = [source for source in own if source.required]
    free = [source for source in own if not source.required]
    least = 0 if required else 1
    count = least + draw_index(len(free) + 1 - least, generator)
    order = torch.randperm(len(free), generator=generator, device=generator.device).tolist()
    return [*required, *(free[at] for at in order[:count])]


def draw_index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator, device=generator.device))


def draw_box(c: Configuration, subject: PreparedSubject, generator: torch.Generator) -> tuple[slice, slice, slice]:
    """Draw the box of a patch about a voxel inside; half of them about one with emphasis, where there is any."""
    special = subject.emphasis if uniform(generator, 0, 1) < 0.5 and bool(subject.emphasis.any()) else subject.inside
    shape = special.shape
    at = _draw_voxel(special, generator)
    starts = [
        min(max(0, m + int(uniform(generator, -n / 3, n / 3)) - n // 2), size - n)
        for m, n, size in zip(at, c.patch_shape, shape, strict=True)
    ]
    k, j, i = (slice(start, start + n) for start, n in zip(starts, c.patch_shape, strict=True))
    return k, j, i


def _draw_voxel(mask: Tensor, generator: torch.Generator) -> list[int]:
    """Return a random voxel (k, j, i) of the mask, by trials, or by a list of its voxels where it is small."""
    for _ in range(_TRIES):
        at = [draw_index(n, generator) for n in mask.shape]
        if float(mask[at[0], at[1], at[2]]) > 0:
            return at
    inside = torch.nonzero(mask)
    return [n // 2 for n in mask.shape] if not len(inside) else inside[draw_index(len(inside), generator)].tolist()


@lru_cache(maxsize=8)
def _make_patient(source: Source, c: Configuration, which: int) -> ms.Patient:
    """Return one patient of the run, who depends on the configuration and ``which`` only."""
    generator = seeded(c.seed, 7, which)
    subject = replace(source, subjects=c.list_subjects(source))
    head = subject.draw_head(generator, shape=c.head_shape, spacing_mm=c.plan.spacing_mm)
    healthy = uniform(generator, 0, 1) < WITHOUT_LESIONS
    masks = 0.0 if source.phantom else 0.3
    patient = ms.draw_patient(head, generator, count=0 if healthy else None, masks=masks, root=source.root)
    return patient.crop(find_box_with_margin(patient.head.structure, c.margin, c.least_shape))


@lru_cache(maxsize=40)
def _make_examination(source: Source, c: Configuration, which: int) -> PreparedSubject:
    """Return one simulated examination of the run, which depends on the configuration and ``which`` only."""
    generator = seeded(c.seed, 8, which)
    patient = _make_patient(source, c, which // c.per_patient)
    structure = displace_labels(patient.head.structure, uniform(generator, 0.0, 1.2), WARP_CELLS, generator)
    if c.plan.holes:
        images, lesions = _scan_for_holes(patient, c.plan, generator)
        return _prepare(c.plan, images, images, structure, weigh_lesions(lesions), c.least_shape, {})
    kinds = {each.name: each.kind for each in (*c.plan.targets, *c.plan.sources)}
    images, truth, lesions = scan_contrasts(patient, kinds, generator)
    return _prepare(c.plan, images, truth, structure, weigh_lesions(lesions), c.least_shape, {}, is_ideal=True)


def _scan_for_holes(patient: ms.Patient, plan: Plan, generator: torch.Generator) -> tuple[dict[str, Tensor], Lesions]:
    """Return a scan of a plan with holes by name, and the lesions; "other" is any contrast.

    One voxel is one sample, so that each slice has its own noise; the blur is drawn in voxels.
    """
    source = plan.sources[0]
    kind = source.kind if source.kind in SEQUENCES else list(SEQUENCES)[draw_index(len(SEQUENCES), generator)]
    scan = replace(draw_scan(generator, thick=0.0, motion=0.1), spacing_mm=(plan.spacing_mm,) * 3)
    blur_mm = plan.spacing_mm * uniform(generator, *HOLE_BLUR)
    images, _, lesions = scan_contrasts(patient, {source.name: kind}, generator, scan, blur_mm)
    return images, lesions


def scan_contrasts(
    patient: ms.Patient,
    kinds: Mapping[str, str],
    generator: torch.Generator,
    scan: Scan | None = None,
    blur_mm: float | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Lesions]:
    """Return scans by name, the same contrasts without noise, and the patient's lesions as drawn for them.

    ``kinds``: contrast of each name; ``scan``: one acquisition for all, by default one drawn for each; ``blur_mm``: by
    default that of the examination.
    """
    e, head = ms.draw_examination(generator), patient.head
    lesions = patient.lesions.redraw_severities(generator)
    maps = lesions.apply_to(draw_tissue_maps(head, e.p, generator, texture_sd=e.texture_sd))
    images, truth = {}, {}
    for name, kind in kinds.items():
        clean = render_signal(maps, draw_sequence(SEQUENCES[kind], generator), head, blur_mm=blur_mm or e.blur_mm)
        truth[name] = clean
        image = clean / clean.max() + (patient.artefact.to(clean) if kind == "flair" else 0.0)
        images[name] = simulate_scan(image, head, scan or draw_scan(generator, thick=0.2, motion=0.1), generator)
    return images, truth, lesions


def _prepare(
    plan: Plan,
    images: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    structure: Tensor | None,
    emphasis: Tensor | None,
    least: tuple[int, int, int],
    covariates: Mapping[str, float | str],
    *,
    is_ideal: bool = False,
) -> PreparedSubject:
    """Scale the images of a subject and fill them up to the size of a patch; ``is_ideal``: ``truth`` is no scan."""
    mm = plan.spacing_mm
    sources = {s.name: scale_series(s, images[s.name], structure, mm)[0] for s in plan.sources if s.name in images}
    targets = {
        t.name: scale_series(t, truth[t.name], structure, mm, is_ideal=is_ideal)[0]
        for t in plan.targets
        if t.name in truth
    }
    inside = find_inside(plan, sources | targets, structure)
    brightness = network.measure_brightness(plan, sources, structure)
    if emphasis is None:
        emphasis = torch.zeros_like(inside)

    def fill(x: Tensor) -> Tensor:
        missing = [max(0, n - size) for n, size in zip(least, x.shape, strict=True)]
        return functional.pad(x.half(), [side for n in reversed(missing) for side in (0, n)])

    return PreparedSubject(
        {name: fill(x) for name, x in sources.items()},
        {name: fill(x) for name, x in targets.items()},
        fill(inside),
        fill(emphasis),
        brightness,
        covariates,
    )


@dataclass(frozen=True)
class _RowKey:
    """A row of a table with its plan; equal where table, line, plan and smallest size are."""

    plan: Plan
    least: tuple[int, int, int]
    digest: str
    line: int
    cohort: Cohort = field(compare=False)
    row: Row = field(compare=False)


def prepare_row(plan: Plan, least: tuple[int, int, int], cohort: Cohort, row: Row) -> PreparedSubject:
    """Return the subject of a row. Raises ValueError that names the line and the fault."""
    return _prepare_row(_RowKey(plan, least, cohort.digest, row.line, cohort, row))


@lru_cache(maxsize=24)
def _prepare_row(key: _RowKey) -> PreparedSubject:
    plan, row = key.plan, key.row

    def read(name: str) -> Tensor:
        return key.cohort.read_volume(row, name, plan.spacing_mm).values

    images = {name: read(name) for name in plan.names if name in row.images}
    structure = read("structures").round().to(torch.uint8) if "structures" in row.images else None
    emphasis = (read("lesions") > 0.5).float() if "lesions" in row.images else None
    known: dict[str, float | str] = {**row.numbers, **row.words}
    covariates = {name: value for name, value in known.items() if name in plan.covariates}
    try:
        network.covariate_tokens(plan, covariates)
        return _prepare(plan, images, images, structure, emphasis, key.least, covariates)
    except ValueError as error:
        raise ValueError(f"line {row.line}: {error}") from error


def _draw_row(plan: Plan, least: tuple[int, int, int], cohort: Cohort, generator: torch.Generator) -> PreparedSubject:
    usable = [row for row in cohort.rows if list_possible_targets(plan, row.images, row.images)]
    if not usable:
        raise ValueError("no row has a target and another series that is a source")
    return prepare_row(plan, least, cohort, usable[draw_index(len(usable), generator)])
