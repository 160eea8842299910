"""Any MR image of the head to its structures: where each lies, how large it is, and how sure the network is.

Input: ``head`` (:class:`pipelines.contract.Volume`), any contrast, orientation and resolution that covers the brain.
Output: one segmentation of the 23 structures of ``model_zoo.structures`` on the image's own grid, their volumes in
millilitres with those of brain and cranial cavity, and per structure the mean of the largest class probability.

Model: bundle ``anatomy``, a 3D U-Net on isotropic LPS voxels whose 0.5th to 99.5th percentile is 0 to 1, trained on
simulation only after SynthSeg (Billot et al., Med. Image Anal. 86, 2023). Its mean over the image and its mirror image
is taken: structures are bilateral. Probabilities, not labels, are brought back to the own grid, averaged over the
extent of thick slices. Volumes are counted on the network's grid, so they do not depend on the slices' thickness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from model_zoo.simulate.volumes import normalised
from model_zoo.structures import BRAIN, COUNT, STRUCTURES, TISSUE_GROUPS, Structure, number
from pipelines import resampling
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
    from model_zoo.registry import Model

__all__ = ["PIPELINE", "Anatomy", "Options", "check", "measure", "run", "segment"]

ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")

HEAD_WORDS = ("HEAD", "BRAIN", "SKULL", "CEREB", "CRANI", "NEURO")
"""One of these must be in the body part, where one is stated."""
SMALLEST_EXTENT_MM = 100.0
LARGEST_SPACING_MM = 8.0
MARGIN_MM = 8.0
TALLEST_MM = 230.0
"""From the vertex down: what lies below is neck."""

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
"""Red, green, blue: what viewers are asked to show."""


class Options(BaseModel):
    """What a route may set. ``structures``: names of those to deliver; empty: all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    structures: tuple[str, ...] = ()
    least_confidence: float = Field(default=0.7, ge=0, le=1)

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
    def wanted(self) -> tuple[Structure, ...]:
        return tuple(s for s in STRUCTURES if not self.structures or s.name in self.structures)


@dataclass(frozen=True)
class Anatomy:
    """Structures of one head.

    ``labels`` uint8 and ``confidence`` float32 (the largest class probability) (k, j, i) on ``grid``, the network's;
    ``own_labels`` uint8 (k, j, i) on the grid of the image. 0 is background, else a structure's number.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    grid: Grid
    own_labels: NDArray[np.uint8]

    def mask(self, *names: str) -> NDArray[np.bool_]:
        """On the image's own grid, where one of the named structures is; without names, the brain."""
        return np.isin(self.own_labels, [number(name) for name in names] or BRAIN)

    def volume_ml(self, *numbers: int) -> float:
        """Of the structures with these numbers together."""
        return float(np.isin(self.labels, numbers).sum() * np.prod(self.grid.spacing_mm) / 1000)


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Segment and measure; nothing is random."""
    head = case["head"]
    if not isinstance(head, Volume):
        raise Refused("anatomy takes an MR image, not k-space")
    check(head, case.facts)
    anatomy = segment(head, model, progress)
    return [_segmentation(anatomy, head, options), *measure(anatomy, options)]


def check(head: Volume, facts: object = None) -> None:
    """Raise Refused unless the image can be one of a whole brain, as far as its header and its lattice tell."""
    told = facts if isinstance(facts, dict | MappingProxyType) else {}
    modality, part = str(told.get("modality", "MR")), str(told.get("body_part", "")).upper()
    if modality != "MR":
        raise Refused(f"anatomy reads MR images of the head; this one's modality is {modality}")
    if part and not any(word in part for word in HEAD_WORDS):
        raise Refused(f"anatomy reads MR images of the head; this one's body part is {part}")
    if {"P", "PHASE", "PHASE MAP"} & set(np.atleast_1d(told.get("image_type", ()))):
        raise Refused("this is a phase image; anatomy needs magnitudes")
    extent_mm = [n * spacing for n, spacing in zip(head.grid.shape, head.grid.spacing_mm, strict=True)]
    if min(extent_mm) < SMALLEST_EXTENT_MM:
        told_mm = " x ".join(f"{each:.0f}" for each in extent_mm)
        raise Refused(f"the image covers {told_mm} mm; a brain needs at least {SMALLEST_EXTENT_MM:g} mm each way")
    if max(head.grid.spacing_mm) > LARGEST_SPACING_MM:
        raise Refused(
            f"slices {max(head.grid.spacing_mm):.1f} mm apart are too coarse; at most {LARGEST_SPACING_MM:g} mm"
        )
    if not np.isfinite(head.data).all() or float(np.ptp(head.data)) == 0:
        raise Refused("the image is uniform or holds values that are no numbers")


def segment(volume: Volume, model: Model, progress: Progress = lambda fraction, step: None) -> Anatomy:
    """Labels of ``volume`` on the network's isotropic LPS grid and on its own. Raises Refused for an empty image."""
    with torch.no_grad():
        progress(0.0, "resampling")
        image, grid = _prepared(volume, model)
        progress(0.1, "network")
        p = _probabilities(model, image)
        progress(0.6, "structures")
        labels = p.argmax(dim=0).to(torch.uint8).cpu().numpy()
        kept = _largest(labels > 0)
        outside = torch.from_numpy(~kept).to(p.device)
        p[:, outside] = 0
        p[0, outside] = 1
        confidence = p.amax(dim=0).cpu().numpy()
        labels[~kept] = 0
        own = _brought_back(p, labels > 0, grid, volume.grid, lambda done: progress(0.65 + 0.35 * done, "own grid"))
    return Anatomy(labels, confidence, grid, own)


def _prepared(volume: Volume, model: Model) -> tuple[Tensor, Grid]:
    """The head (k, j, i) in [0, 1] on isotropic LPS voxels, sizes multiples of the network's stride."""
    floor = float(np.quantile(volume.data.ravel()[::7], 0.005))
    data = torch.from_numpy(volume.data - np.float32(floor)).to(model.device)[None]
    grid = resampling.upright(volume.grid, float(model.settings["spacing_mm"]))
    image = resampling.sample(data, volume.grid, grid)[0]
    start, stop = _head(image, grid.spacing_mm[0])
    stride = int(model.network.stride)  # type: ignore[arg-type]  # a module's attributes are untyped
    low, high = (percentile / 100 for percentile in model.settings.get("percentiles", (0.5, 99.5)))
    image = normalised(image[start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]].contiguous(), low, high)
    shape = tuple(-(-n // stride) * stride for n in image.shape)
    pads = [(whole - n) // 2 for whole, n in zip(shape, image.shape, strict=True)]
    sides = [(pad, whole - n - pad) for pad, whole, n in zip(pads, shape, image.shape, strict=True)]
    image = functional.pad(image, [side for pair in reversed(sides) for side in pair])
    first = (start[0] - pads[0], start[1] - pads[1], start[2] - pads[2])
    return image, resampling.part(grid, first, (shape[0], shape[1], shape[2]))


def _head(image: Tensor, spacing_mm: float) -> tuple[list[int], list[int]]:
    """First and last-but-one index (k, j, i) of what is brighter than air, with a margin, without the neck."""
    flat = image.flatten()[::31].float()
    bright = image > 0.15 * torch.quantile(flat, 0.98)
    margin = round(MARGIN_MM / spacing_mm)
    starts, stops = [], []
    for axis in range(3):
        share = bright.float().mean(dim=tuple(a for a in range(3) if a != axis))
        inside = torch.nonzero(share > 0.02 * share.max())
        if not len(inside):
            raise Refused("the image holds no object brighter than air")
        starts.append(max(int(inside[0]) - margin, 0))
        stops.append(min(int(inside[-1]) + 1 + margin, image.shape[axis]))
    starts[0] = max(starts[0], stops[0] - round(TALLEST_MM / spacing_mm))
    return starts, stops


def _probabilities(model: Model, image: Tensor) -> Tensor:
    """Mean class probabilities (class, k, j, i) of the image and its mirror image."""
    x = image[None, None].contiguous(memory_format=torch.channels_last_3d)
    p = _softmax(model.network(x)[0].float())
    p += _softmax(model.network(x.flip(-1))[0].float()).flip(-1)
    return p.div_(2)


def _softmax(logits: Tensor) -> Tensor:
    """In place: there are many classes on many voxels."""
    logits = logits.sub_(logits.amax(dim=0)).exp_()
    return logits.div_(logits.sum(dim=0))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def _brought_back(
    p: Tensor, mask: NDArray[np.bool_], grid: Grid, own: Grid, progress: Callable[[float], None]
) -> NDArray[np.uint8]:
    """The likeliest class of each voxel of ``own``, from the probabilities averaged over its extent."""
    labels = np.zeros(own.shape, np.uint8)
    (k, j, i), shape = resampling.box(mask, grid, own)
    for first, last in resampling.slabs(shape):
        slab = resampling.part(own, (k + first, j, i), (last - first, shape[1], shape[2]))
        found = resampling.sample(p, grid, slab).argmax(dim=0).to(torch.uint8)
        labels[k + first : k + last, j : j + shape[1], i : i + shape[2]] = found.cpu().numpy()
        progress(last / shape[0])
    return labels


def _segmentation(anatomy: Anatomy, head: Volume, options: Options) -> Segmentation:
    """Segments are numbered from 1 without gaps, in the order of the table."""
    lookup = np.zeros(COUNT + 1, np.uint8)
    segments = []
    for n, s in enumerate(options.wanted, start=1):
        lookup[s.number] = n
        kind = Code(s.code_value, s.code_scheme, s.code_meaning)
        segments.append(Segment(n, s.name.capitalize(), ANATOMICAL_STRUCTURE, kind, s.tissue, COLORS[s.name]))
    thickness = head.slice_thickness_mm or head.grid.spacing_mm[0]
    return Segmentation(
        "anatomy", lookup[anatomy.own_labels], head.grid, tuple(segments), "Structures of the brain", thickness
    )


def measure(anatomy: Anatomy, options: Options) -> list[Finding]:
    """Volumes in millilitres and confidences, with what they mean."""
    on = f"on the network's {anatomy.grid.spacing_mm[0]:g} mm grid"
    found: list[Finding] = [
        Measurement("brain volume", anatomy.volume_ml(*BRAIN), "ml", f"Without outer CSF, {on}"),
        Measurement("intracranial volume", anatomy.volume_ml(*range(1, COUNT + 1)), "ml", f"Brain and CSF, {on}"),
    ]
    found += [Measurement(f"{name} volume", anatomy.volume_ml(*own), "ml") for name, own in TISSUE_GROUPS.items()]
    doubtful = []
    for s in options.wanted:
        here = anatomy.labels == s.number
        sure = float(anatomy.confidence[here].mean()) if here.any() else 0.0
        found.append(Measurement(f"volume of {s.name}", anatomy.volume_ml(s.number), "ml"))
        found.append(Measurement(f"confidence of {s.name}", sure, "1"))
        doubtful += [s.name] if sure < options.least_confidence else []
    meaning = f"Mean largest class probability below {options.least_confidence:g} or nothing found: "
    found.append(
        Measurement(
            "structures of low confidence", float(len(doubtful)), "1", meaning + (", ".join(doubtful) or "none")
        )
    )
    return found


PIPELINE = Pipeline(
    name="anatomy",
    title="Structures of the brain from any MR image of the head",
    inputs=(Input("head", Volume),),
    bundle="anatomy",
    options_type=Options,
    run=run,
)
