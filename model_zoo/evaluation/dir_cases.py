"""Simulated MS patients of the test subjects, and the baselines of synthetic DIR on them.

Baselines have an advantage that a real one would not: every affine map from its own scale to the DIR's is fitted to the
very case, and the dictionary knows the case's protocols and the levels of its white matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from model_zoo.lesion_locations import Lesion, find_lesions
from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import anatomy, heads, ms
from model_zoo.simulate.heads import Atrophy, Variation
from model_zoo.simulate.lesions import SEVERITIES
from model_zoo.simulate.phantom import make_phantom
from model_zoo.simulate.volumes import Scan
from model_zoo.structures import CORTEX, number
from model_zoo.synthetic_dir import CLIP, prepare, scale, white_matter_level
from model_zoo.training.recipe import seeded

__all__ = ["Case", "build_case", "fit_affine", "fit_polynomial", "list_cases", "look_up_dir", "prepare_as_node"]

SHAPE = (168, 208, 168)
STRONG = Atrophy(0.3, 0.8, 0.12)
THICK = (5.0, 1.0, 1.0)
KINDS = (("few lesions", 10), ("many lesions", 60), ("strong atrophy", 25), ("5 mm slices", 25))


@dataclass(frozen=True)
class Case:
    """One simulated examination; volumes float (k, j, i), masks bool, ``lesions`` numbered in ``labels``.

    ``flair`` and ``t1w`` are scaled as the pipeline does; ``artefact`` numbers the FLAIR's artefacts.
    """

    subject: str
    kind: str
    flair: Tensor
    t1w: Tensor
    dir: Tensor
    structure: Tensor
    mask: Tensor
    labels: NDArray[np.int32]
    lesions: tuple[Lesion, ...]
    artefact: NDArray[np.int32]
    examination: ms.Examination

    @property
    def brain(self) -> Tensor:
        return self.structure > 0

    @property
    def cortex(self) -> Tensor:
        return torch.isin(self.structure, torch.tensor(CORTEX, dtype=torch.uint8)) & ~self.mask

    @property
    def white_matter(self) -> Tensor:
        """Normal-appearing white matter."""
        return (self.structure == number("cerebral white matter")) & ~self.mask


def list_cases(quick: bool) -> list[tuple[str, str, int]]:
    """Return the subject, kind and number of lesions of every case."""
    if quick:
        return [("phantom", *KINDS[2])]
    return [(subject, kind, count) for subject in anatomy.TEST for kind, count in KINDS]


def build_case(subject: str, kind: str, count: int, root: Path | None) -> Case:
    """Build the case of that name; the same at every call."""
    generator = seeded(2026, *(ord(letter) for letter in subject + kind))
    if subject == "phantom":
        head = make_phantom((64, 80, 64), 2.4)
    else:
        atrophy = STRONG if kind == "strong atrophy" else Atrophy()
        variation = Variation(elastic_mm=2.0)
        head = heads.draw_head(subject, generator, shape=SHAPE, variation=variation, atrophy=atrophy, root=root)
    patient = _crop_to_brain(ms.draw_patient(head, generator, count=count))
    spacing_mm = THICK if kind == "5 mm slices" else (1.0, 1.0, 1.0)
    scan = Scan(spacing_mm, noise_sd=0.02, bias=0.1)
    e = replace(ms.draw_examination(generator), flair_scan=scan, t1w_scan=replace(scan, spacing_mm=(1.0, 1.0, 1.0)))
    return _make_case(subject, kind, patient, e, ms.render_images(patient, e, generator))


def _crop_to_brain(patient: ms.Patient) -> ms.Patient:
    """Return the patient in the box of the brain."""
    inside = torch.nonzero(patient.head.structure > 0)
    low, high = inside.amin(0).tolist(), inside.amax(0).tolist()
    k, j, i = (
        slice(max(0, a - 6), min(n, b + 7)) for a, b, n in zip(low, high, patient.head.structure.shape, strict=True)
    )
    return patient.crop((k, j, i))


def _make_case(subject: str, kind: str, patient: ms.Patient, e: ms.Examination, x: ms.Images) -> Case:
    structure, mask = patient.head.structure, patient.lesions.mask
    labels, found = find_lesions(mask.numpy(), structure.numpy(), patient.head.spacing_mm)
    white = (structure == number("cerebral white matter")) & ~mask
    artefact, _ = ndimage.label(((patient.artefact > 0.15) & ~mask).numpy())
    brain = structure > 0
    flair = scale(x.flair, white_matter_level(x.flair, white)) * brain
    t1w = scale(x.t1w, white_matter_level(x.t1w, white)) * brain
    true = x.dir.clamp(0, CLIP) * brain
    return Case(subject, kind, flair, t1w, true, structure, mask, labels, found, artefact, e)


def prepare_as_node(case: Case, structure: Tensor) -> Case:
    """Return the case with inputs as the pipeline prepares them where the anatomy is ``structure``."""
    return replace(case, flair=prepare(case.flair, structure), t1w=prepare(case.t1w, structure))


def fit_affine(image: Tensor, case: Case) -> Tensor:
    """Return ``a image + b`` with the least squared error against the case's own DIR in its brain."""
    return _fit([image], case)


def fit_polynomial(case: Case) -> Tensor:
    """Return the cubic polynomial of FLAIR and T1w with the least squared error against the case's own DIR in its
    brain.
    """
    f, t = case.flair, case.t1w
    return _fit([f, t, f * f, f * t, t * t, f**3, f * f * t, f * t * t, t**3], case)


def _fit(terms: list[Tensor], case: Case) -> Tensor:
    inside = case.brain
    columns = [torch.ones_like(case.flair), *terms]
    A = torch.stack([c[inside] for c in columns], dim=1).double()
    weights = torch.linalg.lstsq(A, case.dir[inside].double()[:, None]).solution[:, 0].tolist()
    found = sum((w * c for w, c in zip(weights, columns, strict=True)), torch.zeros_like(case.flair))
    return found.clamp(0, CLIP) * inside


def look_up_dir(case: Case, generator: torch.Generator, *, entries: int = 400_000, bins: int = 160) -> Tensor:
    """Return DIR by lookup: the mean over simulated mixtures of two tissues that have a voxel's FLAIR and T1w.

    Tissues are drawn with the simulator's spread and, for lesions, its line of severities; signals by the case's own
    protocols; a table of ``bins``^2 cells over [0, 4]^2, smoothed by the images' noise, empty ones by their neighbours.
    """
    a, b = _draw_tissues(entries, generator), _draw_tissues(entries, generator)
    f = torch.rand(entries, generator=generator)
    f = torch.where(torch.rand(entries, generator=generator) < 0.7, torch.ones(()), f)
    e = case.examination
    mixed = [(f * s.signal(a) + (1 - f) * s.signal(b)).abs() for s in (e.flair, e.t1w, e.dir)]
    flair, t1w, true = (
        (v / unit).clamp(0, CLIP) for v, unit in zip(mixed, (e.flair_level, e.t1w_level, e.unit), strict=True)
    )
    cell = _find_cells(flair, bins) * bins + _find_cells(t1w, bins)
    total = torch.zeros(bins * bins).index_add_(0, cell, true).reshape(bins, bins).numpy()
    count = torch.zeros(bins * bins).index_add_(0, cell, torch.ones(entries)).reshape(bins, bins).numpy()
    width = 0.02 * bins / CLIP
    total, count = (ndimage.gaussian_filter(v, width) for v in (total, count))
    known = count > 0.05
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    table = torch.from_numpy((total / np.maximum(count, 1e-6))[tuple(nearest)])
    return table[_find_cells(case.flair, bins), _find_cells(case.t1w, bins)].float() * case.brain


def _find_cells(values: Tensor, bins: int) -> Tensor:
    return (values * (bins / CLIP)).long().clamp(0, bins - 1)


def _draw_tissues(n: int, generator: torch.Generator) -> TissueParameters:
    """Return ``n`` random tissues of the brain by how much of it they are, with the simulator's spread."""
    shares = {
        "white matter": 0.4, "cortex": 0.35, "csf": 0.08, "thalamus": 0.02, "caudate": 0.01, "putamen": 0.01,
        "hippocampus": 0.02, "brain stem": 0.03, "cerebellar cortex": 0.05, "lesion": 0.03,
    }  # fmt: skip
    table = TissueParameters.table()
    names = list(TISSUES)
    which = torch.multinomial(torch.tensor(list(shares.values())), n, replacement=True, generator=generator)
    row = torch.tensor([names.index(name) for name in shares])[which]
    values = torch.stack([table.t1_ms[row], table.t2_ms[row], table.pd[row]]).log()
    ends = torch.tensor([SEVERITIES["mild"], SEVERITIES["black hole"]]).log()
    severity = torch.lerp(ends[0][:, None], ends[1][:, None], torch.rand(n, generator=generator))
    values = torch.where(row == names.index("lesion"), severity, values)
    t1, t2, pd = torch.exp(values + 0.085 * torch.randn(values.shape, generator=generator))
    return TissueParameters(t1, t2, pd.clamp(max=1.1))
