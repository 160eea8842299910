"""Contrast, and contrast over noise, of lesions on synthetic DIR, on the true DIR and on FLAIR.

CNR as it is measured on acquired images (real ones: DIR 22.4, synthetic DIR 22.0, FLAIR 16.7, Finck et al. 2020):

    (mean of the lesion - mean of normal-appearing white matter) / sd of normal-appearing white matter,

that white matter at least 3 mm inside, without lesions and the FLAIR's artefacts. The true DIR stands twice: as the
simulator makes it, without noise, where only the tissue's texture bounds it, and as acquired (``add_scan_noise``).
"Local": (mean of the lesion - mean of its surroundings) / sd of these, all brain without lesions and outer fluid within
2 to 5 mm: how far a lesion stands out of its surroundings, folds of bright cortex on DIR included.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from model_zoo.evaluation import Table
from model_zoo.evaluation.dir_cases import Case
from model_zoo.lesion_locations import LOCATIONS
from model_zoo.structures import number
from model_zoo.training.recipe import seeded

__all__ = ["Contrasts", "add_scan_noise", "contrast_table", "measure_contrasts"]

INSIDE_MM, ARTEFACT_MM = 3, 2
NEAR_MM, FAR_MM = 2, 5
REACH = 16

Contrasts = dict[str, dict[str, list[tuple[float, float, float]]]]
"""By image and location of every lesion: contrast with white matter, CNR, local CNR (nan with few surroundings)."""


def add_scan_noise(case: Case) -> Tensor:
    """Return the true DIR (k, j, i) with the noise of the examination's FLAIR: same voxels, same receiver, Rician."""
    e = case.examination
    sd = e.flair_scan.noise_sd * float(case.flair[case.brain].mean()) * e.flair_level / e.unit
    real, imaginary = sd * torch.randn((2, *case.dir.shape), generator=seeded(3))
    return torch.hypot(case.dir + real, imaginary) * case.brain


def measure_contrasts(images: Mapping[str, Tensor], case: Case) -> Contrasts:
    """Measure every lesion on every image (k, j, i) of a case."""
    voxels = {name: x.numpy() for name, x in images.items()}
    white = _select_white_matter(case)
    found: Contrasts = {name: {place: [] for place in LOCATIONS} for name in images}
    for lesion in case.lesions:
        box = tuple(slice(max(0, int(c) - REACH), int(c) + REACH + 1) for c in lesion.centre)
        inside = case.labels[box] == lesion.label
        around = _select_surroundings(case, box, inside)
        for name, x in voxels.items():
            values, near = x[box][inside], x[box][around]
            contrast = float(values.mean() - x[white].mean())
            local = float((values.mean() - near.mean()) / max(near.std(), 1e-3)) if len(near) > 20 else float("nan")
            found[name][lesion.location].append((contrast, contrast / max(float(x[white].std()), 1e-3), local))
    return found


def _select_white_matter(case: Case) -> NDArray[np.bool_]:
    """Return the normal-appearing white matter, away from everything else."""
    artefact = ndimage.binary_dilation(case.artefact > 0, iterations=ARTEFACT_MM)
    found: NDArray[np.bool_] = ndimage.binary_erosion(case.white_matter.numpy(), iterations=INSIDE_MM) & ~artefact
    return found


def _select_surroundings(case: Case, box: tuple[slice, ...], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    usable = case.brain & ~case.mask & (case.structure != number("csf"))
    distance = ndimage.distance_transform_edt(~inside)
    found: NDArray[np.bool_] = usable.numpy()[box] & (distance >= NEAR_MM) & (distance <= FAR_MM)
    return found


def contrast_table(cases: list[Contrasts]) -> Table:
    """Return the medians over the lesions of all cases by image, measure and location."""
    rows: list[tuple[str | float, ...]] = []
    for at, measure in enumerate(("contrast", "CNR", "local CNR")):
        for name in cases[0]:
            found = [[v[at] for c in cases for v in c[name][place]] for place in LOCATIONS]
            everywhere = [v for values in found for v in values]
            rows.append((f"{measure}, {name}", *(_median(v) for v in (*found, everywhere))))
    columns = ("measure and image", *LOCATIONS, "all lesions")
    note = (
        "Medians over lesions. CNR: contrast with normal-appearing white matter over its standard deviation; local "
        f"CNR: with the brain within {NEAR_MM} to {FAR_MM} mm. The acquired DIR has the noise of the FLAIR."
    )
    return Table("Contrast and contrast-to-noise ratio of lesions by location", columns, tuple(rows), note)


def _median(values: list[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.median(known)) if known else float("nan")
