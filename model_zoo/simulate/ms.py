"""Simulated MS patients as a scanner would see them: FLAIR and T1w, and the DIR that nobody acquired.

A patient is a head with lesions and artefacts; an examination is one drawing of tissue values and protocols. The true
DIR nulls the examination's own white matter and CSF, has no noise, and is told in units of its mean grey matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.sequences import DIR_TE_MS, DIR_TR_MS, Dir, Sequence, SpinEcho
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import axes, patient_lesions
from model_zoo.simulate.acquisition import uniform
from model_zoo.simulate.contrasts import draw_sequence
from model_zoo.simulate.flair_brightness import blur_rims, draw_bright_tissue
from model_zoo.simulate.heads import Head
from model_zoo.simulate.lesions import Lesions, draw_artefacts, draw_lesions, draw_lesions_from_mask, remove_lesions
from model_zoo.simulate.volumes import Scan, draw_scan, draw_tissue_maps, render_signal, simulate_scan
from model_zoo.structures import CORTEX, COUNT, number

__all__ = [
    "Examination",
    "Images",
    "Patient",
    "draw_examination",
    "draw_patient",
    "make_examination_harder",
    "make_patient_harder",
    "render_images",
]

NAWM = (900 / 850, 75 / 70, 0.72 / 0.70)
"""T1, T2 and PD of the normal-appearing white matter of MS patients relative to healthy white matter."""

TRANSFER_R1 = (1 / 850, 1 / 4300)
"""R1 in 1/ms of tissue that the transfer of magnetisation lowers in full (white matter), and not at all (fluid)."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Patient:
    """``head`` without its label map's lesions, ``lesions`` to be laid upon it, ``artefact`` (k, j, i) of its FLAIR."""

    head: Head
    lesions: Lesions
    artefact: Tensor

    def crop(self, box: Box) -> Patient:
        """Return the same patient in a part of the head."""
        head = replace(self.head, tissue=self.head.tissue[box], structure=self.head.structure[box])
        return Patient(head, self.lesions.crop(box), self.artefact[box])


@dataclass(frozen=True)
class Examination:
    """Tissue values (classes, structures), the sequences and how they were acquired, and the DIR's unit.

    ``transfer``: share of white matter's signal that FLAIR loses by magnetisation transfer, to which its many pulses
    lead (Melki & Mulkern, Magn. Reson. Med. 24, 1992): cortex and lesions lose less and are brighter beside it.
    """

    p: TissueParameters
    flair: Sequence
    t1w: Sequence
    dir: Dir
    flair_scan: Scan
    t1w_scan: Scan
    unit: float
    flair_level: float
    t1w_level: float
    texture_sd: float = 0.03
    blur_mm: float = 0.5
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    transfer: float = 0.0


@dataclass(frozen=True)
class Images:
    """Float (k, j, i) on the patient's grid: ``flair`` and ``t1w`` in units of white matter, ``dir`` of grey matter.

    ``maps``: T1, T2 and PD without partial volume.
    """

    flair: Tensor
    t1w: Tensor
    dir: Tensor
    maps: TissueParameters


def draw_patient(
    head: Head, generator: torch.Generator, *, count: int | None = None, masks: float = 0.3, root: Path | None = None
) -> Patient:
    """Return a patient with this head; ``masks``: how often lesions come from a real patient's mask (never a held-out
    one).

    ``count``: how many lesions, by default negative binomial; given, no mask is used.
    """
    if count is None and uniform(generator, 0, 1) < masks:
        known = [p for p in patient_lesions.list_patients(root) if p not in patient_lesions.HELD_OUT]
        mask = patient_lesions.place_patient_mask(head, known[int(uniform(generator, 0, len(known)))], root)
        lesions = draw_lesions_from_mask(head, mask, generator)
    else:
        lesions = draw_lesions(head, generator, count=count)
    return Patient(remove_lesions(head), lesions, draw_artefacts(head, generator, most=10) * ~lesions.mask)


def draw_examination(generator: torch.Generator) -> Examination:
    """Draw tissue values with their spread, white matter mostly as in MS, clinical protocols and acquisitions."""
    p = TissueParameters.table()
    white, csf, cortex = (list(TISSUES).index(name) for name in ("white matter", "csf", "cortex"))
    if uniform(generator, 0, 1) < 0.7:
        for values, factor in zip((p.t1_ms, p.t2_ms, p.pd), NAWM, strict=True):
            values[white] *= factor
    p = p.draw_regional(generator, COUNT + 1)
    at = white, number("cerebral white matter")
    dir_ = Dir.nulling(DIR_TR_MS, float(p.t1_ms[at]), float(p.t1_ms[csf].mean()), DIR_TE_MS)
    spin_echo = uniform(generator, 0, 1) < 0.2
    t1w = draw_sequence("mprage", generator)
    if spin_echo:
        t1w = SpinEcho(uniform(generator, 400, 700), uniform(generator, 9, 16))
    flair = draw_sequence("flair", generator)
    shift = [uniform(generator, -0.4, 0.4) if uniform(generator, 0, 1) < 0.3 else 0.0 for _ in range(3)]
    return Examination(
        p,
        flair,
        t1w,
        dir_,
        draw_scan(generator, thick=0.2, motion=0.1),
        draw_scan(generator, thick=0.2, motion=0.1),
        unit=float(dir_.signal(p).abs()[cortex, list(CORTEX)].mean()),
        flair_level=float(flair.signal(p)[at].abs()) * (1 + 0.04 * uniform(generator, -1, 1)),
        t1w_level=float(t1w.signal(p)[at].abs()) * (1 + 0.04 * uniform(generator, -1, 1)),
        texture_sd=uniform(generator, 0.01, 0.05),
        blur_mm=uniform(generator, 0.4, 0.7),
        shift_mm=(shift[0], shift[1], shift[2]),
    )


def make_patient_harder(patient: Patient, generator: torch.Generator) -> Patient:
    """Return the patient with hazy rims and bright normal tissue on FLAIR (``flair_brightness``)."""
    lesions = patient.lesions
    if uniform(generator, 0, 1) >= 0.15:
        lesions = blur_rims(lesions, patient.head, generator)
    bright = draw_bright_tissue(patient.head, generator) * (lesions.extent < 0.02)
    return replace(patient, lesions=lesions, artefact=patient.artefact + bright)


def make_examination_harder(e: Examination, generator: torch.Generator, *, thick: float = 0.35) -> Examination:
    """Return the examination with magnetisation transfer, noise and, in a share ``thick``, axial slices of 3 to 5 mm.

    T1w has the slices of the FLAIR in half of these. White matter, to which the units refer, is darker by the transfer.
    """
    transfer = uniform(generator, 0.0, 0.35)
    scan = replace(e.flair_scan, noise_sd=uniform(generator, 0.01, 0.08))
    e = replace(e, transfer=transfer, flair_level=e.flair_level * (1 - transfer), flair_scan=scan)
    if uniform(generator, 0, 1) >= thick:
        return e
    spacing_mm = uniform(generator, 3.0, 5.0), 1.0, 1.0
    e = replace(e, flair_scan=replace(e.flair_scan, spacing_mm=spacing_mm))
    if uniform(generator, 0, 1) < 0.5:
        e = replace(e, t1w_scan=replace(e.t1w_scan, spacing_mm=spacing_mm))
    return e


def _transfer_magnetisation(p: TissueParameters, transfer: float) -> TissueParameters:
    """Return the maps with the proton density that FLAIR sees.

    A tissue loses by its macromolecules, to which R1 = 1 / T1 rises linearly.
    """
    white, fluid = TRANSFER_R1
    share = ((1 / p.t1_ms.clamp(min=1.0) - fluid) / (white - fluid)).clamp(0, 1.2)
    return replace(p, pd=p.pd * (1 - transfer * share))


def render_images(patient: Patient, e: Examination, generator: torch.Generator) -> Images:
    """Render the examination ``e`` of ``patient`` on the patient's grid; only FLAIR carries the artefacts.

    T1w is off by ``e.shift_mm`` along each axis: what a rigid registration leaves.
    """
    head = patient.head
    maps = patient.lesions.apply_to(draw_tissue_maps(head, e.p, generator, texture_sd=e.texture_sd))
    t1w, true = (render_signal(maps, s, head, blur_mm=e.blur_mm) for s in (e.t1w, e.dir))
    flair = render_signal(_transfer_magnetisation(maps, e.transfer), e.flair, head, blur_mm=e.blur_mm)
    flair = flair / e.flair_level + patient.artefact.to(flair)
    t1w = _shift(t1w / e.t1w_level, tuple(mm / head.spacing_mm for mm in e.shift_mm))
    return Images(
        simulate_scan(flair, head, e.flair_scan, generator),
        simulate_scan(t1w, head, e.t1w_scan, generator),
        true / e.unit,
        maps,
    )


def _shift(x: Tensor, voxels: tuple[float, ...]) -> Tensor:
    for axis, shift in enumerate(voxels):
        if shift:
            n = x.shape[axis]
            x = axes.apply_along(x, axes.interpolation_matrix(n, n, 1.0, shift).to(x), axis)
    return x
