"""Test cases of the standard-dose model: held-out brains and unseen torsos, with region maps from MR or CT.

A head's labels are those that the shipped anatomy model finds in its simulated T1w of 1.5 mm, off by up to 1 mm along
each axis as a registration leaves them; a torso's are its tissues by CT number. The object's own are the best possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import ct_tissues, registry
from model_zoo.bundle import BundleError
from model_zoo.evaluation.head_labels import label_structures
from model_zoo.imaging import scale_between_quantiles
from model_zoo.physics.mr import TissueParameters
from model_zoo.simulate import anatomy
from model_zoo.simulate.contrasts import draw_sequence
from model_zoo.simulate.heads import Head
from model_zoo.simulate.pet import disease, low_dose
from model_zoo.simulate.pet.disease import Patient
from model_zoo.simulate.pet.low_dose import REGIONS, ScannedObject
from model_zoo.simulate.pet.torso import draw_torso
from model_zoo.simulate.volumes import Scan, draw_tissue_maps, render_signal, simulate_scan
from model_zoo.structures import COUNT
from model_zoo.training.pet_brains import draw_head, inject_tracer
from model_zoo.training.recipe import Source, seeded

__all__ = [
    "REFERENCE_SUV",
    "SEED",
    "Case",
    "compute_region_shares",
    "make_cases",
    "make_quick_cases",
    "select_region_maps",
]

REFERENCE_SUV = {"FDG": 6.0, "florbetapir": 1.2, "flortaucipir": 1.0}
"""SUV of the reference region, which turns the simulated ratio into SUV: plausible, not measured."""
SEED = 20_260
NAMES = REGIONS + ct_tissues.NAMES
HEAD_MM = 3.0


@dataclass(frozen=True)
class Case:
    """``kind``: "brain" or "torso"; ``name``: tracer or part of the body; ``groups``: of the subgroup table.

    ``region_shares``: share of each voxel in each region of NAMES by MR or CT (r, k, j, i).
    """

    kind: str
    name: str
    groups: tuple[str, ...]
    found: ScannedObject
    region_shares: Tensor
    seed: int


def make_cases(root: Path | None) -> Iterator[Case]:
    """Return two held-out heads with three tracers each, and three torsos that no training seed draws."""
    for at, (subject, tracer) in enumerate((s, t) for t in REFERENCE_SUV for s in anatomy.TEST):
        generator = seeded(SEED, at)
        patient = disease.draw_patient(generator)
        head = draw_head(Source((subject,), root), generator, patient, spacing_mm=HEAD_MM, finer=2)
        found = inject_tracer(head, generator, patient, tracer=tracer, finer=2)
        shares = _label_by_mr(head, found, seeded(SEED, at, 2))
        yield Case(
            "brain",
            tracer,
            _list_groups(tracer, patient),
            _scale_to_suv(found, REFERENCE_SUV[tracer]),
            shares,
            SEED + at,
        )
    for at, z_mm in enumerate((110.0, 290.0, 420.0)):
        body = draw_torso(
            seeded(SEED, 100 + at), shape=(96, 160, 216), spacing_mm=2.0, middle_mm=(0.0, 0.0, z_mm), lesions=8
        )
        part = ("pelvis", "abdomen", "thorax")[at]
        found = low_dose.make_torso(body, 2)
        yield Case("torso", part, ("torso", f"torso, {part}"), found, _label_by_ct(found), SEED + 100 + at)


def make_quick_cases() -> Iterator[Case]:
    """Return one small torso."""
    body = draw_torso(seeded(SEED), shape=(24, 80, 104), spacing_mm=4.0, middle_mm=(0.0, 0.0, 290.0), lesions=4)
    found = low_dose.make_torso(body, 2)
    yield Case("torso", "abdomen", ("torso",), found, _label_by_ct(found), SEED)


def compute_region_shares(labels: Tensor, finer: int = 1) -> Tensor:
    """Return the shares of the regions of NAMES (r, k, j, i) in blocks of finer^3 of ``labels``, numbered as they are,
    from 1.
    """
    masks = ((labels == number).float() for number in range(1, len(NAMES) + 1))
    return torch.stack([functional.avg_pool3d(mask[None], finer)[0] for mask in masks])


def select_region_maps(shares: Tensor, names: Sequence[str]) -> Tensor | None:
    """Return the maps of ``names``, in their order, or None for a network without regions."""
    return None if not names else shares[[NAMES.index(name) for name in names]]


def _list_groups(tracer: str, patient: Patient) -> tuple[str, ...]:
    age = "below 73 years" if patient.age_years < 73 else "73 years and above"
    loss = "below" if patient.atrophy.hippocampus < 0.1 else "from"
    return "brain", f"brain, {tracer}", f"brain, {age}", f"brain, hippocampal loss {loss} 10 %"


def _scale_to_suv(found: ScannedObject, factor: float) -> ScannedObject:
    return ScannedObject(
        factor * found.activity, found.mu_per_cm, found.regions, found.lesion, found.spacing_mm, found.finer
    )


def _label_by_ct(found: ScannedObject) -> Tensor:
    hu = ct_tissues.attenuation_to_hounsfield(found.mu_per_cm.cpu().numpy())
    tissues = torch.from_numpy(ct_tissues.remove_thin_lung(ct_tissues.classify(hu)))
    return compute_region_shares(torch.where(tissues > 0, tissues + len(REGIONS), tissues), found.finer)


def _label_by_mr(head: Head, found: ScannedObject, generator: torch.Generator) -> Tensor:
    """Return tissues by the structures that the anatomy model finds in an MPRAGE, or the true ones without a model."""
    try:
        model = registry.load("anatomy")
    except BundleError:
        return compute_region_shares(found.regions)
    p = TissueParameters.table().draw_regional(generator, COUNT + 1)
    t1w = render_signal(draw_tissue_maps(head, p, generator), draw_sequence("mprage", generator), head)
    t1w = scale_between_quantiles(simulate_scan(t1w, head, Scan((head.spacing_mm,) * 3), generator))
    fine = round(found.spacing_mm)
    shape = [fine * n for n in found.regions.shape]
    at_1_mm = functional.interpolate(t1w[None, None], size=shape, mode="trilinear", align_corners=False)[0, 0]
    off = (torch.randint(3, (3,), generator=generator) - 1).tolist()
    structures = label_structures(model, at_1_mm).roll(off, (0, 1, 2))
    return compute_region_shares(low_dose.map_regions(structures), fine)
