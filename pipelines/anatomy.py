"""Structures of the brain from any MR image of the head: place, volume and the confidence of the network.

Input: ``head`` (:class:`pipelines.contract.Volume`), any contrast, orientation and resolution that covers the brain.
Output: one segmentation of the 23 structures of ``model_zoo.structures`` on the image's own grid, their volumes in
millilitres with those of brain and cranial cavity, and per structure the mean of the largest class probability.

Model: bundle ``anatomy``, 3D U-Nets trained on simulation only after SynthSeg (Billot et al., Med. Image Anal. 86,
2023), applied as ``model_zoo.anatomy`` describes, with a refinement at 1 mm. Probabilities, not labels, are resampled
to the image's own grid, averaged over the extent of thick slices, and to isotropic 1 mm, where volumes are counted, so
that they do not depend on the slices' thickness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from model_zoo import out_of_distribution
from model_zoo.anatomy import EmptyImage, has_refinement, segment
from model_zoo.asymmetry import measure_asymmetric_region
from model_zoo.structures import BRAIN, COUNT, STRUCTURES, TISSUE_GROUPS, Structure, number
from pipelines import resampling
from pipelines.codes import ANATOMICAL_STRUCTURE, MEAN, PROBABILITY, VOLUME, encode_structure
from pipelines.codes import BRAIN as BRAIN_CODE
from pipelines.contract import (
    Case,
    Code,
    Finding,
    Grid,
    Input,
    Measurement,
    Pipeline,
    Progress,
    Refused,
    Segment,
    Segmentation,
    Volume,
)

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = [
    "PIPELINE",
    "Anatomy",
    "Options",
    "check_head",
    "check_magnitude",
    "measure_brain",
    "measure_structures",
    "run",
    "score_out_of_distribution",
    "segment_head",
]

CRANIAL_CAVITY = Code("1101003", "SCT", "Cranial Cavity")

HEAD_WORDS = ("HEAD", "BRAIN", "SKULL", "CEREB", "CRANI", "NEURO")
"""Words of which the body part, where stated, must contain one."""
LEAST_CONFIDENCE = 0.7
"""Least mean of the largest class probability of a structure that is not of low confidence."""
NO_MAGNITUDES = frozenset({"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"})
"""Values of the image type that mark an image as no magnitude."""
SMALLEST_EXTENT_MM = 100.0
LARGEST_SPACING_MM = 8.0
LABEL_SPACING_MM = 1.0

COLORS = MappingProxyType({
    "cerebral white matter": (235, 235, 225), "frontal cortex": (205, 62, 78), "sensorimotor cortex": (230, 148, 34),
    "parietal cortex": (236, 203, 60), "precuneus": (150, 190, 60), "cingulate cortex": (180, 100, 160),
    "temporal cortex": (70, 130, 180), "parahippocampal cortex": (30, 160, 150), "occipital cortex": (120, 80, 170),
    "insula": (255, 192, 130), "lateral ventricles": (60, 30, 140), "third and fourth ventricles": (42, 130, 214),
    "csf": (60, 60, 100), "cerebellar cortex": (225, 140, 120), "cerebellar white matter": (220, 248, 164),
    "thalamus": (0, 140, 20), "caudate": (122, 186, 220), "putamen": (236, 13, 176), "pallidum": (12, 48, 255),
    "hippocampus": (220, 216, 20), "amygdala": (103, 255, 255), "brain stem": (119, 159, 176),
    "ventral diencephalon": (165, 42, 42),
})  # fmt: skip
"""Recommended display colours (red, green, blue)."""


class Options(BaseModel):
    """Options of a route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    structures: tuple[str, ...] = Field(default=(), description="names of the structures to deliver; empty: all")
    least_confidence: float = Field(
        default=LEAST_CONFIDENCE,
        ge=0,
        le=1,
        description="mean probability below which a structure is marked as of low confidence",
    )

    @field_validator("structures")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                number(name)
            except KeyError as error:
                raise ValueError(str(error.args[0])) from None
        return names

    @property
    def selected_structures(self) -> tuple[Structure, ...]:
        return tuple(s for s in STRUCTURES if not self.structures or s.name in self.structures)


@dataclass(frozen=True)
class Anatomy:
    """Structures of one head.

    ``labels`` uint8 and ``confidence`` float32 (the largest class probability) (k, j, i) on ``grid``, isotropic LPS of
    1 mm about the brain; ``image_labels`` uint8 (k, j, i) on the grid of the image. 0 is background, else a structure's
    number.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    grid: Grid
    image_labels: NDArray[np.uint8]

    def mask(self, *names: str) -> NDArray[np.bool_]:
        """Return the mask of the named structures, or of the brain without names, on the image's own grid."""
        return np.isin(self.image_labels, [number(name) for name in names] or BRAIN)

    def mean_confidence(self, structure: Structure) -> float:
        """Return the mean of the largest class probability in the structure; zero where it was not found."""
        mask = self.labels == structure.number
        return float(self.confidence[mask].mean()) if mask.any() else 0.0

    def volume_ml(self, *numbers: int) -> float:
        """Return the volume of the structures with these numbers together."""
        return float(np.isin(self.labels, numbers).sum() * np.prod(self.grid.spacing_mm) / 1000)


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Segment and measure. Only the noise by which the prior is tested is random."""
    head = case["head"]
    if not isinstance(head, Volume):
        raise Refused("anatomy takes an MR image, not k-space")
    check_head(head, case.facts)
    anatomy = segment_head(head, model, progress)
    found = [_segmentation(anatomy, head, options), *measure_structures(anatomy, options)]
    return [*found, *score_out_of_distribution(anatomy, head, model, seed, options.least_confidence)]


def check_magnitude(facts: Mapping[str, Any], name: str = "this") -> None:
    """Raise Refused where the image type of an MR image is no magnitude. ``name``: of the input, for the reason."""
    if parts := NO_MAGNITUDES & {str(each) for each in np.atleast_1d(facts.get("image_type", ()))}:
        raise Refused(f"{name} is no magnitude but a phase image or part of the signal ({min(parts)})")


def check_head(head: Volume, facts: object = None) -> None:
    """Raise Refused unless header and grid allow the image to be one of a whole brain."""
    header = facts if isinstance(facts, dict | MappingProxyType) else {}
    modality, body_part = str(header.get("modality", "MR")), str(header.get("body_part", "")).upper()
    if modality != "MR":
        raise Refused(f"anatomy reads MR images of the head; this one's modality is {modality}")
    if body_part and not any(known in body_part for known in HEAD_WORDS):
        raise Refused(f"anatomy reads MR images of the head; this one's body part is {body_part}")
    check_magnitude(header)
    extent_mm = [n * spacing for n, spacing in zip(head.grid.shape, head.grid.spacing_mm, strict=True)]
    if min(extent_mm) < SMALLEST_EXTENT_MM:
        extent = " x ".join(f"{each:.0f}" for each in extent_mm)
        raise Refused(f"the image covers {extent} mm; a brain needs at least {SMALLEST_EXTENT_MM:g} mm each way")
    if max(head.grid.spacing_mm) > LARGEST_SPACING_MM:
        raise Refused(
            f"slices {max(head.grid.spacing_mm):.1f} mm apart are too coarse; at most {LARGEST_SPACING_MM:g} mm"
        )
    if not np.isfinite(head.data).all() or float(np.ptp(head.data)) == 0:
        raise Refused("the image is uniform or holds values that are no numbers")


def segment_head(volume: Volume, model: Model, progress: Progress = lambda fraction, step: None) -> Anatomy:
    """Segment ``volume`` on isotropic LPS voxels and on its own grid. Raises Refused for an empty image."""
    with torch.no_grad():
        progress(0.0, "resampling")
        data = _shift_air_to_zero(volume).to(model.device)
        p, brain_mask, grid = _segment_window(data, volume.grid, model, progress)
        spacing_mm = float(model.settings.get("label_spacing_mm", LABEL_SPACING_MM))
        fine = grid if has_refinement(model) else resampling.axis_aligned(grid, spacing_mm)
        labels, confidence = _resample_classes(
            p, brain_mask, grid, fine, lambda done: progress(0.6 + 0.1 * done, "structures")
        )
        image_labels, _ = _resample_classes(
            p, brain_mask, grid, volume.grid, lambda done: progress(0.7 + 0.3 * done, "own grid")
        )
    return Anatomy(labels, confidence, fine, image_labels)


def _shift_air_to_zero(volume: Volume) -> Tensor:
    """Return the image (1, k, j, i) with air at about zero, so that the zeros outside of it are air."""
    floor = np.float32(np.quantile(volume.data.ravel()[::7], 0.005))
    return torch.from_numpy(volume.data - floor)[None]


def _segment_window(
    data: Tensor, own: Grid, model: Model, progress: Progress
) -> tuple[Tensor, NDArray[np.bool_], Grid]:
    """Return the class probabilities (class, k, j, i) of a window about the brain, the brain's mask, and their grid."""
    spacing_mm = float(model.settings["spacing_mm"])
    coarse = resampling.axis_aligned(own, spacing_mm)

    def make_grid(start: tuple[int, int, int], shape: tuple[int, int, int], scale: int) -> Grid:
        grid = resampling.subgrid(coarse, start, shape)
        return grid if scale == 1 else resampling.axis_aligned(grid, spacing_mm / scale)

    def sample_window(start: tuple[int, int, int], shape: tuple[int, int, int]) -> Tensor:
        return resampling.resample(data, own, make_grid(start, shape, 2))[0]

    image = resampling.resample(data, own, coarse)[0]
    try:
        result = segment(image, sample_window, model, lambda done, step: progress(0.1 + 0.5 * done, step))
    except EmptyImage as error:
        raise Refused(str(error)) from error
    k, j, i = (n // result.scale for n in result.p.shape[1:])
    return result.p, result.component.cpu().numpy(), make_grid(result.start, (k, j, i), result.scale)


def _resample_classes(
    p: Tensor, mask: NDArray[np.bool_], grid: Grid, onto: Grid, progress: Callable[[float], None]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the likeliest class of each voxel of ``onto`` and its probability, averaged over the voxel's extent."""
    labels, confidence = np.zeros(onto.shape, np.uint8), np.zeros(onto.shape, np.float32)
    (k, j, i), shape = resampling.bounding_box(mask, grid, onto)
    for first, last in resampling.iterate_slabs(shape):
        slab = resampling.subgrid(onto, (k + first, j, i), (last - first, shape[1], shape[2]))
        share, label = resampling.resample(p, grid, slab).max(dim=0)
        slab_slices = (slice(k + first, k + last), slice(j, j + shape[1]), slice(i, i + shape[2]))
        labels[slab_slices], confidence[slab_slices] = label.to(torch.uint8).cpu().numpy(), share.cpu().numpy()
        progress(last / shape[0])
    return labels, confidence


def _segmentation(anatomy: Anatomy, head: Volume, options: Options) -> Segmentation:
    """Return the segmentation, its segments numbered from 1 without gaps in the order of the table."""
    lookup = np.zeros(COUNT + 1, np.uint8)
    segments = []
    for n, s in enumerate(options.selected_structures, start=1):
        lookup[s.number] = n
        kind = encode_structure(s)
        segments.append(Segment(n, s.name.capitalize(), ANATOMICAL_STRUCTURE, kind, s.tissue, COLORS[s.name]))
    thickness = head.slice_thickness_mm or head.grid.spacing_mm[0]
    return Segmentation(
        "anatomy", lookup[anatomy.image_labels], head.grid, tuple(segments), "Structures of the brain", thickness
    )


def measure_brain(anatomy: Anatomy) -> list[Finding]:
    """Return the volumes of brain and cranial cavity in millilitres."""
    on = f"on isotropic voxels of {anatomy.grid.spacing_mm[0]:g} mm"
    brain_ml, intracranial_ml = anatomy.volume_ml(*BRAIN), anatomy.volume_ml(*range(1, COUNT + 1))
    return [
        Measurement("brain volume", brain_ml, "ml", f"Without outer CSF, {on}", site=BRAIN_CODE),
        Measurement("intracranial volume", intracranial_ml, "ml", f"Brain and CSF, {on}", site=CRANIAL_CAVITY),
    ]


def measure_structures(anatomy: Anatomy, options: Options) -> list[Finding]:
    """Return volumes in millilitres and confidences, with their meanings."""
    on = f"on isotropic voxels of {anatomy.grid.spacing_mm[0]:g} mm"
    measurements = measure_brain(anatomy)
    measurements += [
        Measurement(f"{name} volume", anatomy.volume_ml(*own), "ml") for name, own in TISSUE_GROUPS.items()
    ]
    uncertain = []
    for s in options.selected_structures:
        confidence = anatomy.mean_confidence(s)
        label, site = s.name.capitalize(), encode_structure(s)
        ml, meaning = anatomy.volume_ml(s.number), "Mean of the largest class probability"
        measurements.append(Measurement("volume", ml, "ml", f"Counted {on}", label, site, VOLUME))
        measurements.append(
            Measurement("confidence", confidence, "1", meaning, label, site, PROBABILITY, derivation=MEAN)
        )
        uncertain += [s.name] if confidence < options.least_confidence else []
    meaning = f"Mean largest class probability below {options.least_confidence:g} or nothing found: "
    measurements.append(
        Measurement(
            "structures of low confidence", float(len(uncertain)), "1", meaning + (", ".join(uncertain) or "none")
        )
    )
    return measurements


def score_out_of_distribution(
    anatomy: Anatomy, head: Volume, model: Model, seed: int, least_confidence: float = LEAST_CONFIDENCE
) -> list[Finding]:
    """Measure how far the head departs from those of the training.

    The measures are the volumes of its structures, the share of structures of low confidence, the largest region that
    is unlike its mirror image and, where the prior is loaded (helper ``mri_prior``), the prior's error on the image.
    """
    image = resampling.resample(_shift_air_to_zero(head), head.grid, anatomy.grid)[0].numpy()
    asymmetric_ml = measure_asymmetric_region(anatomy.labels, image, anatomy.grid.spacing_mm[0])
    uncertain = sum(anatomy.mean_confidence(s) < least_confidence for s in STRUCTURES)
    volumes_ml = {s.number: anatomy.volume_ml(s.number) for s in STRUCTURES}
    measurements: list[Finding] = [
        Measurement(
            "anatomy deviation", out_of_distribution.anatomy_score(volumes_ml), "1",
            "Departure of the structures' volumes from the simulated heads of the training; about 1 is usual",
        ),
        Measurement(
            "share of structures of low confidence", uncertain / len(STRUCTURES), "1",
            f"Of all structures: mean largest class probability below {least_confidence:g} or nothing found",
        ),
        Measurement(
            "asymmetric region", asymmetric_ml, "ml",
            "Largest region that is unlike its mirror image, as tumours, infarcts and cavities are; usually below "
            f"{out_of_distribution.HOLD_ABOVE['asymmetric region']:g} ml",
        ),
    ]  # fmt: skip
    if prior := model.helpers.get("mri_prior"):
        score = out_of_distribution.denoising_score(prior.denoiser, _shift_air_to_zero(head)[0].to(prior.device), seed)
        meaning = "By how many standard deviations the prior of MR images recovers this one worse than simulated ones"
        measurements.append(Measurement("denoising deviation", score, "1", meaning))
    return measurements


PIPELINE = Pipeline(
    name="anatomy",
    title="Structures of the brain from any MR image of the head",
    inputs=(Input("head", Volume),),
    bundle="anatomy",
    options_type=Options,
    run=run,
    helpers=("mri_prior",),
)
