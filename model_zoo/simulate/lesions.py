"""Multiple sclerosis lesions in simulated heads: a generative model, patients' own masks, and bright artefacts.

Generative model (model specification, section 8.2): the count is negative binomial with mean 25, volumes are log-normal
with median 60 mm3 (at least 10), places follow ``SHARES``. A lesion is a warped ellipsoid with a soft rim; around the
ventricles its long axis points away from them (Dawson's fingers). Within the rim e(x) in [0, 1] the tissue changes as

    log q(x) = (1 - e) log q_tissue(x) + e log q_lesion,    q = T1, T2, PD,

q_lesion lying on the line mild - typical - black hole (uniform in the logarithm) or, in the cortex, near its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import axes
from model_zoo.simulate.acquisition import uniform
from model_zoo.structures import CORTEX, number

if TYPE_CHECKING:
    from model_zoo.simulate.heads import Head

__all__ = [
    "SEVERITIES",
    "SHARES",
    "Lesions",
    "draw_artefacts",
    "draw_core",
    "draw_count",
    "draw_lesions",
    "draw_lesions_from_mask",
    "draw_volume_mm3",
    "find_candidates",
    "remove_lesions",
]

SHARES = {"periventricular": 0.45, "juxtacortical": 0.20, "deep": 0.20, "infratentorial": 0.07, "cortical": 0.08}
SEVERITIES = {
    "mild": (1150.0, 110.0, 0.82),
    "typical": (1450.0, 140.0, 0.87),
    "black hole": (2000.0, 200.0, 0.92),
    "cortical": (1600.0, 115.0, 0.87),
}
"""T1 ms, T2 ms, PD of a lesion's core at 3 T."""

MEAN_COUNT, DISPERSION, MOST = 25.0, 1.5, 90
MEDIAN_MM3, SMALLEST_MM3, LARGEST_MM3, LOG_SD = 60.0, 10.0, 4000.0, 1.0
SPREAD = 0.04
INFRATENTORIAL = tuple(number(name) for name in ("cerebellar white matter", "brain stem"))


@dataclass(frozen=True)
class Lesions:
    """Lesions of one head.

    ``label``: int16 (k, j, i), 1 .. n within the rims, 0 elsewhere; ``extent``: float (k, j, i), e(x) above;
    ``core``: (n + 1, 3) T1, T2, PD (row 0 unused); ``place``: the class that each of the n was meant for.
    """

    label: Tensor
    extent: Tensor
    core: Tensor
    place: tuple[str, ...]

    @property
    def mask(self) -> Tensor:
        """Bool (k, j, i): where more than half of the change has happened."""
        return self.extent > 0.5

    def apply_to(self, p: TissueParameters) -> TissueParameters:
        """Return the maps (k, j, i) of ``p``, those of the head without lesions, with these lesions in them."""
        inside = self.label > 0
        e, core = self.extent[inside], self.core.to(self.extent)[self.label[inside].long()]
        changed = []
        for column, values in enumerate((p.t1_ms, p.t2_ms, p.pd)):
            q = values.clone()
            q[inside] = torch.exp((1 - e) * torch.log(q[inside].clamp(min=1e-3)) + e * torch.log(core[:, column]))
            changed.append(q)
        return TissueParameters(*changed)

    def redraw_severities(self, generator: torch.Generator) -> Lesions:
        """Return the same shapes with new severities."""
        core = [(1.0, 1.0, 1.0), *(draw_core(place, generator) for place in self.place)]
        return replace(self, core=torch.tensor(core, device=self.core.device))

    def crop(self, box: tuple[slice, slice, slice]) -> Lesions:
        """Return the same lesions in a part of the head."""
        return Lesions(self.label[box], self.extent[box], self.core, self.place)


def draw_lesions(head: Head, generator: torch.Generator, *, count: int | None = None) -> Lesions:
    """Return lesions drawn from the generative model, and those of the label map itself, on the generator's device.

    ``count``: how many to draw, by default negative binomial with mean 25 (at most 90).
    """
    drawing = _Drawing(head, generator)
    drawing.add_mask(head.tissue == list(TISSUES).index("lesion"))
    places = find_candidates(head)
    shares = torch.tensor([SHARES[name] * bool(len(places[name])) for name in SHARES])
    for _ in range(draw_count(generator) if count is None else count):
        place = list(SHARES)[int(torch.multinomial(shares, 1, generator=_on_cpu(generator)))]
        drawing.add_ellipsoid(place, places[place])
    return drawing.lesions()


def draw_lesions_from_mask(head: Head, mask: Tensor, generator: torch.Generator) -> Lesions:
    """Return a patient's lesions in ``head``.

    Each connected component of ``mask`` (bool (k, j, i) on the head's grid) of at least 10 mm3 gets a severity and a
    soft rim; parts outside white matter are dropped.
    """
    drawing = _Drawing(head, generator)
    drawing.add_mask(mask | (head.tissue == list(TISSUES).index("lesion")))
    return drawing.lesions()


def remove_lesions(head: Head) -> Head:
    """Return ``head`` with white matter where its label map has lesions, as ``Lesions.apply_to`` takes it."""
    names = list(TISSUES)
    lesion = head.tissue == names.index("lesion")
    return replace(head, tissue=torch.where(lesion, names.index("white matter"), head.tissue).to(torch.uint8))


def draw_artefacts(head: Head, generator: torch.Generator, *, most: int = 6) -> Tensor:
    """Return FLAIR-bright artefacts without any change of tissue: float (k, j, i), to be added to a FLAIR image in
    units of its white matter. Blobs like lesions in shape and strength (0.2 to 0.8), anywhere in white matter and
    cortex.
    """
    added = torch.zeros(head.tissue.shape)
    places = find_candidates(head)
    for _ in range(int(torch.randint(most + 1, (1,), generator=_on_cpu(generator)))):
        place = ("periventricular", "juxtacortical", "deep", "cortical")[int(uniform(generator, 0, 4))]
        if len(places[place]):
            box, extent = _draw_ellipsoid(head, places[place], draw_volume_mm3(generator), None, generator)
            added[box] = torch.maximum(added[box], uniform(generator, 0.2, 0.8) * extent)
    return added.to(generator.device)


def find_candidates(head: Head) -> dict[str, Tensor]:
    """Return the voxels (n, 3) where the centre of a lesion of each class may lie, by distances on a 2 mm grid."""
    step = max(1, round(2.0 / head.spacing_mm))
    structure = head.structure[::step, ::step, ::step].cpu().numpy()
    mm = step * head.spacing_mm
    ventricle = ndimage.distance_transform_edt(structure != number("lateral ventricles")) * mm
    in_cortex = np.isin(structure, CORTEX)
    cortex = ndimage.distance_transform_edt(~in_cortex) * mm
    white = structure == number("cerebral white matter")
    found = {
        "periventricular": white & (ventricle < 7),
        "juxtacortical": white & (cortex < 2.5) & (ventricle > 10),
        "deep": white & (cortex > 5) & (ventricle > 10),
        "infratentorial": np.isin(structure, INFRATENTORIAL),
        "cortical": in_cortex,
    }
    return {name: torch.from_numpy(np.argwhere(mask)) * step for name, mask in found.items()}


class _Drawing:
    """Lesions being painted into one head; those drawn later do not paint over earlier ones."""

    def __init__(self, head: Head, generator: torch.Generator) -> None:
        self.head, self.generator = head, generator
        self.label = torch.zeros(head.tissue.shape, dtype=torch.int16)
        self.extent = torch.zeros(head.tissue.shape)
        self.core: list[tuple[float, float, float]] = [(1.0, 1.0, 1.0)]
        self.place: list[str] = []
        self.structure = head.structure.cpu()

    def add_ellipsoid(self, place: str, centres: Tensor) -> None:
        """Add one lesion of that class; where too little of it fits, its position is drawn again, up to five times."""
        towards = number("lateral ventricles") if place == "periventricular" else None
        volume_mm3 = draw_volume_mm3(self.generator) * (0.5 if place == "cortical" else 1.0)
        for _ in range(5):
            box, extent = _draw_ellipsoid(self.head, centres, volume_mm3, towards, self.generator)
            if self._add(place, box, extent * self._allowed(place, self.structure[box])):
                return

    def add_mask(self, mask: Tensor) -> None:
        components, _ = ndimage.label(mask.cpu().numpy(), np.ones((3, 3, 3)))
        smallest = SMALLEST_MM3 / self.head.spacing_mm**3
        for index, box in enumerate(ndimage.find_objects(components), start=1):
            near = _widen_box(box, mask.shape, 3)
            inside = torch.from_numpy(components[near] == index)
            if float(inside.sum()) < smallest:
                continue
            soft = axes.blur(inside.float(), (0.8 / self.head.spacing_mm,) * 3)
            self._add("mask", near, soft * self._allowed("mask", self.structure[near]))

    def _allowed(self, place: str, structure: Tensor) -> Tensor:
        if place == "infratentorial":
            return torch.isin(structure, torch.tensor(INFRATENTORIAL, dtype=torch.uint8))
        white = structure == number("cerebral white matter")
        if place == "mask":
            return white | torch.isin(structure, torch.tensor(INFRATENTORIAL, dtype=torch.uint8))
        if place != "cortical":
            return white
        return white | torch.isin(structure, torch.tensor(CORTEX, dtype=torch.uint8))

    def _add(self, place: str, box: tuple[slice, ...], extent: Tensor) -> bool:
        extent = extent * (self.label[box] == 0)
        if float((extent > 0.5).sum()) * self.head.spacing_mm**3 < 0.5 * SMALLEST_MM3:
            return False
        self.core.append(draw_core(place, self.generator))
        self.place.append(place)
        painted = extent > 0.02
        self.label[box][painted] = len(self.place)
        self.extent[box][painted] = extent[painted].clamp(0, 1)
        return True

    def lesions(self) -> Lesions:
        device = self.generator.device
        core = torch.tensor(self.core, device=device)
        return Lesions(self.label.to(device), self.extent.to(device), core, tuple(self.place))


def _draw_ellipsoid(
    head: Head, centres: Tensor, volume_mm3: float, towards: int | None, generator: torch.Generator
) -> tuple[tuple[slice, slice, slice], Tensor]:
    """Return a box of the head and e(x) in it: 1 inside a warped ellipsoid, falling to 0 over a rim of about a
    millimetre.

    ``towards``: the structure from which the long axis points away; None: any direction.
    """
    cpu = _on_cpu(generator)
    centre = centres[int(torch.randint(len(centres), (1,), generator=cpu))]
    radius = (volume_mm3 / (4 / 3 * math.pi)) ** (1 / 3) / head.spacing_mm
    long = uniform(cpu, 1.2, 2.2) if towards is not None else uniform(cpu, 1.0, 1.6)
    flat = uniform(cpu, 0.8, 1.25)
    radii = radius * torch.tensor([long, flat, 1 / flat]) / long ** (1 / 3)
    box = _widen_box([slice(int(c), int(c) + 1) for c in centre], head.tissue.shape, math.ceil(1.5 * radius * long) + 3)
    grids = [torch.arange(s.start, s.stop) - c for s, c in zip(box, centre, strict=True)]
    d = torch.stack(torch.meshgrid(*grids, indexing="ij"), dim=-1).float()
    direction = torch.randn(3, generator=cpu)
    if towards is not None:
        there = d[head.structure[box].cpu() == towards]
        direction = -there.mean(0) + 0.3 * direction if len(there) else direction
    axis = _draw_frame(direction, cpu)
    r = ((d @ axis.T) / radii).norm(dim=-1)
    knots = (max(4, round(d.shape[0] / 3)), max(4, round(d.shape[1] / 3)), max(4, round(d.shape[2] / 3)))
    warp = uniform(cpu, 0.05, 0.3) * axes.draw_smooth_noise((d.shape[0], d.shape[1], d.shape[2]), knots, cpu)
    rim_mm = uniform(cpu, 0.2, 0.6)
    return box, torch.sigmoid((1 + warp.clamp(-0.5, 0.5) - r) * radius * head.spacing_mm / rim_mm)


def _draw_frame(direction: Tensor, generator: torch.Generator) -> Tensor:
    """Return orthonormal rows, the first along ``direction``."""
    q: Tensor = torch.linalg.qr(torch.stack([direction, *torch.randn((2, 3), generator=generator)], dim=1)).Q
    return q.T


def _widen_box(box: list[slice] | tuple[slice, ...], shape: torch.Size, margin: int) -> tuple[slice, slice, slice]:
    k, j, i = (slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, shape, strict=True))
    return k, j, i


def draw_core(place: str, generator: torch.Generator) -> tuple[float, float, float]:
    """Draw the T1 ms, T2 ms and PD of the core of one lesion, whose class is ``place``, a key of ``SHARES``."""
    if place == "cortical":
        base = torch.tensor(SEVERITIES["cortical"]).log()
    else:
        steps = torch.tensor([SEVERITIES[name] for name in ("mild", "typical", "black hole")]).log()
        s = uniform(generator, 0.0, 2.0)
        base = torch.lerp(steps[int(s)], steps[int(s) + 1], s - int(s))
    t1, t2, pd = (base + SPREAD * torch.randn(3, generator=_on_cpu(generator))).exp().tolist()
    return t1, t2, min(pd, 1.1)


def draw_volume_mm3(generator: torch.Generator) -> float:
    """Draw a lesion's volume: log-normal with median ``MEDIAN_MM3`` and log-sd ``LOG_SD``, within the limits."""
    z = float(torch.randn(1, generator=_on_cpu(generator)))
    return min(max(MEDIAN_MM3 * math.exp(LOG_SD * z), SMALLEST_MM3), LARGEST_MM3)


def draw_count(generator: torch.Generator) -> int:
    """Draw the number of a patient's lesions: negative binomial with mean ``MEAN_COUNT``, at most ``MOST``.

    It is a Poisson of a gamma-distributed mean: the variance is mean + mean^2 / ``DISPERSION``.
    """
    cpu = _on_cpu(generator)
    rate = torch._standard_gamma(torch.tensor([DISPERSION]), generator=cpu) * MEAN_COUNT / DISPERSION
    return min(int(torch.poisson(rate, generator=cpu)), MOST)


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    """Return the generator itself if it is the CPU's, else one seeded from it: small draws are made on the CPU."""
    if generator.device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)
