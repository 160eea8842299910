"""A random brain for PET: a head of the source, a patient of the disease model, a tracer."""

from __future__ import annotations

import math
from typing import Any

import torch

from model_zoo.physics.tracers import TRACERS
from model_zoo.simulate.heads import Head
from model_zoo.simulate.pet import disease, low_dose
from model_zoo.simulate.pet.activity import render_activity
from model_zoo.simulate.pet.low_dose import ScannedObject
from model_zoo.training.recipe import Source

__all__ = ["draw_brain", "draw_head", "inject_tracer"]

BRAIN_MM = 208.0
FDG_SHARE = 0.5


def draw_brain(
    source: Source,
    generator: torch.Generator,
    *,
    spacing_mm: float,
    finer: int,
    tracer: str | None = None,
    patient: disease.Patient | None = None,
) -> ScannedObject:
    """Draw a brain in a cube of 208 mm: ``patient`` None draws one of the disease model, ``tracer`` None half FDG."""
    if tracer is None:
        others = [name for name in TRACERS if name != "FDG"]
        at = int(torch.randint(len(others), (1,), generator=generator))
        tracer = "FDG" if float(torch.rand(1, generator=generator)) < FDG_SHARE else others[at]
    patient = patient or disease.draw_patient(generator)
    head = draw_head(source, generator, patient, spacing_mm=spacing_mm, finer=finer)
    return inject_tracer(head, generator, patient, tracer=tracer, finer=finer)


def draw_head(
    source: Source, generator: torch.Generator, patient: disease.Patient, *, spacing_mm: float, finer: int
) -> Head:
    """Draw the patient's head in a cube of 208 mm, ``finer`` times as fine as an image of ``spacing_mm``."""
    n = 2 * math.ceil(BRAIN_MM / spacing_mm / 2) * finer
    return source.draw_head(
        generator, shape=(n, n, n), spacing_mm=spacing_mm / finer, **_atrophy_options(source, patient)
    )


def inject_tracer(
    head: Head, generator: torch.Generator, patient: disease.Patient, *, tracer: str, finer: int
) -> ScannedObject:
    """Return the patient's head with a tracer's activity."""
    kind = TRACERS[tracer]
    image = render_activity(head, kind, patient.state(kind.target), generator, fwhm_mm=0.0, noise=0.0)
    return low_dose.make_brain(head, image, finer)


def _atrophy_options(source: Source, patient: disease.Patient) -> dict[str, Any]:
    return {} if source.phantom else {"atrophy": patient.atrophy}
