"""PET image of a tracer, in SUVR, from a head and a patient's state.

    image = h * sum_r (v_r(state) + sd_r n_r) g(x) f_r(x) + noise,   divided by its mean in the reference region

f_r: partial-volume fractions of the regions; v_r: true uptake, such that the image's regional means are those of the
tracer's table where that was measured on images (``compute_true_uptake``); sd_r: of the table; n_r: the subject's own
deviation per region; g: a smooth field of sd 3 % (asymmetry, perfusion); h: the scanner's Gaussian point-spread
function, FWHM 4 to 8 mm; noise: proportional to the square root of the image, 5 mm wide. Off-target binding sits in the
choroid plexus (ventricle next to thalamus and hippocampus), the meninges (csf next to the skull; for MK-6240 in half of
the subjects) and, by the table, striatum, pallidum and nigra.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.physics.suvr import reference_mean
from model_zoo.physics.tracers import EXTRA_REGIONS, REGIONS, Tracer, uptake, uptake_sd
from model_zoo.simulate.heads import Head, draw_smooth_field_3d, gaussian_blur_3d
from model_zoo.structures import CORTEX, COUNT, STRUCTURES, number

__all__ = [
    "compute_block_fractions",
    "compute_true_uptake",
    "draw_uptake",
    "label_binding_regions",
    "render_activity",
    "take_majority",
]

FWHM_PER_SD = 2.3548
EXTRA = {name: COUNT + 1 + at for at, name in enumerate(EXTRA_REGIONS)}
MENINGES_MM = 2.0
PLEXUS_MM = 3.0
FIELD_SD = 0.03

MIXING: dict[tuple[str, ...], dict[str, float]] = {
    tuple(structure.name for structure in STRUCTURES if structure.number in CORTEX): {
        "own": 0.46,
        "cerebral white matter": 0.23,
        "csf": 0.20,
        "meninges": 0.07,
        "extracerebral": 0.04,
    },
    ("hippocampus", "amygdala"): {
        "own": 0.58,
        "cerebral white matter": 0.20,
        "csf": 0.12,
        "parahippocampal cortex": 0.10,
    },
    ("cerebral white matter",): {"own": 0.64, "frontal cortex": 0.12, "temporal cortex": 0.12, "csf": 0.12},
    ("thalamus", "caudate", "putamen", "pallidum", "ventral diencephalon"): {
        "own": 0.60,
        "cerebral white matter": 0.26,
        "insula": 0.05,
        "csf": 0.09,
    },
    ("cerebellar cortex",): {
        "own": 0.72,
        "cerebellar white matter": 0.10,
        "csf": 0.10,
        "meninges": 0.04,
        "extracerebral": 0.04,
    },
    ("cerebellar white matter",): {"own": 0.65, "cerebellar cortex": 0.29, "csf": 0.06},
    ("brain stem",): {"own": 0.82, "csf": 0.18},
}
"""What a structure's mean on a 2 to 3 mm grid after a 6 mm point-spread function consists of: the rows of a
geometric transfer matrix (Rousset et al. 1998), averaged over four training heads; other regions are all their own."""
NOISE_FWHM_MM = 5.0


def label_binding_regions(head: Head) -> Tensor:
    """Return the regions of ``tracers.REGIONS``: uint8 (k, j, i), 0 air, else the region's place plus one."""
    labels = head.structure.clone()
    labels[(head.structure == 0) & (head.tissue > 0)] = EXTRA["extracerebral"]
    neighbours = (head.structure == number("thalamus")) | (head.structure == number("hippocampus"))
    plexus = _dilate(neighbours, PLEXUS_MM / head.spacing_mm) & (head.structure == number("lateral ventricles"))
    labels[plexus] = EXTRA["choroid plexus"]
    outermost = _dilate(head.structure == 0, MENINGES_MM / head.spacing_mm) & (head.structure == number("csf"))
    labels[outermost] = EXTRA["meninges"]
    return labels


def _dilate(mask: Tensor, radius_vox: float) -> Tensor:
    """Return the mask dilated by a cube of that half width, at least one voxel."""
    reach = max(1, round(radius_vox))
    grown = mask.to(torch.float32)[None, None]
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = 2 * reach + 1
        grown = functional.max_pool3d(grown, kernel, stride=1, padding=[reach if n > 1 else 0 for n in kernel])
    return grown[0, 0] > 0


def compute_block_fractions(labels: Tensor, classes: int, shrink: int) -> Tensor:
    """Return the share of each label 0..classes-1 in blocks of ``shrink``^3 voxels: float (classes, k, j, i)."""
    k, j, i = (n // shrink for n in labels.shape)
    blocks = labels[: k * shrink, : j * shrink, : i * shrink].reshape(k, shrink, j, shrink, i, shrink)
    blocks = blocks.permute(1, 3, 5, 0, 2, 4).reshape(shrink**3, -1).to(torch.int64)
    counts = torch.zeros(classes, blocks.shape[1], device=labels.device)
    counts.scatter_add_(0, blocks, torch.ones_like(blocks, dtype=torch.float32))
    return counts.reshape(classes, k, j, i) / shrink**3


def take_majority(labels: Tensor, shrink: int) -> Tensor:
    """Return the most frequent label of each block of ``shrink``^3 voxels: uint8 (k, j, i); the smaller one of two
    equals.
    """
    if shrink == 1:
        return labels
    return compute_block_fractions(labels, int(labels.max()) + 1, shrink).argmax(dim=0).to(torch.uint8)


def render_activity(
    head: Head,
    tracer: Tracer,
    state: float,
    generator: torch.Generator,
    *,
    regions: Tensor | None = None,
    structure: Tensor | None = None,
    shrink: int = 1,
    fwhm_mm: float | None = None,
    noise: float = 0.03,
    spread: float = 1.0,
) -> Tensor:
    """Return the SUVR image float (k, j, i) of one subject on the head's grid, or one ``shrink`` times coarser.

    ``state``: the patient's, in the tracer's ``state_unit`` (``Patient.state(tracer.target)``). ``regions`` of
    ``label_binding_regions`` and ``structure``, the numbers on the delivered grid, where the caller has them.
    ``fwhm_mm``: None draws 4 to 8. ``noise``: relative sd at SUVR 1 once blurred; ``spread``: multiplies the
    between-subject sds and the smooth field, 0 for the table's own values. Blurring happens on the delivered grid,
    as the blocks' averages commute with it.
    """
    labels = label_binding_regions(head) if regions is None else regions
    values = torch.cat([torch.zeros(1), draw_uptake(tracer, state, generator, spread)])
    image = values[labels.to(torch.int64)]
    if shrink > 1:
        image = functional.avg_pool3d(image[None, None], shrink)[0, 0]
    shape = (image.shape[0], image.shape[1], image.shape[2])
    image = image * torch.exp(FIELD_SD * spread * draw_smooth_field_3d(shape, 5, generator))
    if fwhm_mm is None:
        fwhm_mm = float(torch.empty(1).uniform_(4.0, 8.0, generator=generator))
    image = _blur(image, fwhm_mm, head.spacing_mm * shrink)
    grain = _blur(torch.randn(shape, generator=generator), NOISE_FWHM_MM, head.spacing_mm * shrink)
    image = (image + noise * image.sqrt() * grain / grain.std()).clamp_min(0.0)
    structure = take_majority(head.structure, shrink) if structure is None else structure
    return image / reference_mean(image, structure, tracer)


def compute_true_uptake(tracer: Tracer, state: float) -> Tensor:
    """Return the uptake (regions,) before partial volume whose image has the table's regional means: inverse of
    ``MIXING``, where

    the table's numbers were measured on images.

    White matter keeps the true value of the first knot times the table's own growth: what its measured mean gains
    with disease beyond that is spill-in from the cortex.
    """
    first, now = uptake(tracer, tracer.knots[0]), uptake(tracer, state)
    if not tracer.measured:
        return now
    mixing = _make_mixing_matrix()
    white = REGIONS.index("cerebral white matter")
    before: Tensor = torch.linalg.solve(mixing, first)
    known = now.clone()
    known[white] = before[white] * now[white] / first[white]
    mixing[white] = torch.eye(len(REGIONS))[white]
    found: Tensor = torch.linalg.solve(mixing, known)
    return found


def _make_mixing_matrix() -> Tensor:
    matrix = torch.eye(len(REGIONS))
    for names, row in MIXING.items():
        for name in names:
            at = REGIONS.index(name)
            matrix[at, at] = row["own"]
            for other, share in row.items():
                if other != "own":
                    matrix[at, REGIONS.index(other)] += share
    return matrix


def draw_uptake(tracer: Tracer, state: float, generator: torch.Generator, spread: float) -> Tensor:
    """Return the SUVR (regions,) of one subject: the state's, plus this subject's deviations; meninges bind or not."""
    values = compute_true_uptake(tracer, state)
    values = values + spread * uptake_sd(tracer) * torch.randn(len(values), generator=generator)
    binds = float(torch.rand(1, generator=generator)) < tracer.meninges_probability
    if tracer.meninges_probability > 0 and not binds:
        values[REGIONS.index("meninges")] = values[REGIONS.index("csf")]
    return values.clamp_min(0.05)


def _blur(image: Tensor, fwhm_mm: float, spacing_mm: float) -> Tensor:
    sigma = fwhm_mm / FWHM_PER_SD / spacing_mm
    return gaussian_blur_3d(image, (sigma, sigma, sigma))
