"""Simulate what hides lesions on real FLAIR: hazy rims, dirty white matter, and normal tissue that is bright.

Lesions keep their masks. Their sharp edge becomes the profile

    e(d) = 1 / (1 + exp(d / w)),    d: signed distance in mm from the edge, outwards positive,

of a width w of each lesion's own, and the white matter around them changes a little as well, by h exp(-d / l). Normal
tissue is bright on FLAIR beside the ventricles and at the tips of their horns, in the midline (septum, fornix), in
limbic structures, brain stem and hypothalamus, at the orbitofrontal base (susceptibility), in choroid plexus and where
fluid flows. That brightness is of the FLAIR alone: neither tissue nor DIR change.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from model_zoo.simulate import axes
from model_zoo.simulate.acquisition import uniform
from model_zoo.simulate.heads import Head
from model_zoo.simulate.lesions import Lesions
from model_zoo.structures import number

__all__ = ["blur_rims", "draw_bright_tissue"]

REACH_MM = 10.0
WHITE = tuple(number(name) for name in ("cerebral white matter", "cerebellar white matter", "brain stem"))
LIMBIC = ("hippocampus", "amygdala", "parahippocampal cortex", "cingulate cortex", "insula")


def blur_rims(lesions: Lesions, head: Head, generator: torch.Generator) -> Lesions:
    """Return the lesions with hazy rims and dirty white matter about them; their masks stay."""
    mask = lesions.mask.cpu().numpy()
    if not mask.any():
        return lesions
    outside_mm, nearest = ndimage.distance_transform_edt(~mask, return_indices=True)
    outside_mm = torch.from_numpy(outside_mm * head.spacing_mm)
    inside_mm = torch.from_numpy(ndimage.distance_transform_edt(mask) * head.spacing_mm)
    label = (lesions.label.cpu() * lesions.mask.cpu())[tuple(torch.from_numpy(n) for n in nearest)].long()
    width_mm, share, length_mm = (t[label] for t in _draw_rims(label, inside_mm, generator))
    half = 0.5 * head.spacing_mm
    core = torch.sigmoid((inside_mm - half) / width_mm)
    rim = torch.maximum(torch.sigmoid((half - outside_mm) / width_mm), share * torch.exp(-outside_mm / length_mm))
    white = torch.isin(head.structure.cpu(), torch.tensor(WHITE, dtype=torch.uint8))
    rim = rim.clamp(max=0.49) * (white & (outside_mm < REACH_MM))
    extent = torch.where(torch.from_numpy(mask), core.clamp(min=0.51), rim).float()
    changed = torch.where(extent > 0.02, label, 0).to(lesions.label.dtype)
    extent = torch.where(extent > 0.02, extent, 0.0).to(lesions.extent)
    return replace(lesions, label=changed.to(lesions.label.device), extent=extent)


def _draw_rims(label: Tensor, inside_mm: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return, by label, the width of the rim in mm, and the share and reach in mm of the dirty white matter.

    A rim is at most half as wide as its lesion is deep, so that the core is full.
    """
    count = int(label.max()) + 1
    deepest_mm = torch.zeros(count, dtype=inside_mm.dtype)
    deepest_mm.scatter_reduce_(0, label.flatten(), inside_mm.flatten(), "amax")
    draw = torch.rand((3, count), generator=generator, device=generator.device).cpu()
    width_mm = torch.minimum(0.25 + 1.25 * draw[0] ** 2, 0.5 * deepest_mm.float().clamp(min=0.5))
    return width_mm, 0.45 * draw[1] ** 1.5, 1.0 + 3.0 * draw[2]


def draw_bright_tissue(head: Head, generator: torch.Generator) -> Tensor:
    """Return what normal tissue and artefacts add to a FLAIR: float (k, j, i), in units of its white matter."""
    draw = _Drawing(head, generator)
    added = draw.lining() + draw.midline() + draw.limbic() + draw.brain_stem() + draw.hypothalamus() + draw.base()
    bright = added + draw.choroid_plexus() + draw.flow()
    return (bright * (head.structure > 0).to(bright.device)).float().to(generator.device)


class _Drawing:
    """Places of one head that may be bright, each with a strength of its own and uneven over some millimetres."""

    def __init__(self, head: Head, generator: torch.Generator) -> None:
        self.head, self.generator = head, generator
        self.structure = head.structure.cpu()
        ventricle = self._select("lateral ventricles")
        self.ventricle_mm = self._distance_mm(ventricle)
        middle = (
            torch.nonzero(self.structure > 0).float().mean(0) if bool((self.structure > 0).any()) else torch.zeros(3)
        )
        k, j, i = torch.meshgrid(*(torch.arange(n) for n in self.structure.shape), indexing="ij")
        self.k_mm, self.j_mm, self.i_mm = (
            (at - m) * head.spacing_mm for at, m in zip((k, j, i), middle.tolist(), strict=True)
        )

    def _select(self, *names: str) -> Tensor:
        return torch.isin(self.structure, torch.tensor([number(name) for name in names], dtype=torch.uint8))

    def _distance_mm(self, mask: Tensor) -> Tensor:
        if not bool(mask.any()):
            return torch.full(mask.shape, 1e3)
        return torch.from_numpy(ndimage.distance_transform_edt(~mask.numpy()).astype(np.float32) * self.head.spacing_mm)

    def _strength(self, high: float) -> float:
        """Draw a strength up to ``high``; small ones are more frequent."""
        return high * uniform(self.generator, 0, 1) ** 2

    def _uneven(self, length_mm: float) -> Tensor:
        """Return a smooth factor between about 0 and 2."""
        shape = self.structure.shape
        k, j, i = (max(4, round(n * self.head.spacing_mm / length_mm)) for n in shape)
        noise = axes.draw_smooth_noise((shape[0], shape[1], shape[2]), (k, j, i), self.generator).cpu()
        return (1 + 0.6 * noise).clamp(0, 2)

    def lining(self) -> Tensor:
        """Return the rim of the lateral ventricles, wider and brighter towards the tips of the horns (caps)."""
        towards_tips = (self.j_mm.abs() / 45).clamp(max=1.2)
        length_mm = uniform(self.generator, 0.7, 1.8) * (1 + uniform(self.generator, 0, 1) * towards_tips)
        strength = self._strength(0.7) * (0.5 + uniform(self.generator, 0, 1.5) * towards_tips)
        tissue = self._select("cerebral white matter", "caudate", "thalamus") & (self.ventricle_mm < REACH_MM)
        added: Tensor = tissue * strength * torch.exp(-self.ventricle_mm / length_mm) * self._uneven(12)
        return added

    def midline(self) -> Tensor:
        """Return septum, fornix and the inner side of the callosum."""
        near = (self.i_mm.abs() < uniform(self.generator, 1.5, 3.0)) & (self.ventricle_mm < 4)
        solid = near & self._select("cerebral white matter", "lateral ventricles", "thalamus", "cingulate cortex")
        added: Tensor = solid * self._strength(0.7) * self._uneven(10)
        return added

    def limbic(self) -> Tensor:
        """Return the limbic structures, each of its own brightness."""
        added = torch.zeros(self.structure.shape)
        for name in LIMBIC:
            added += self._select(name) * self._strength(0.35)
        return added * self._uneven(15)

    def brain_stem(self) -> Tensor:
        """Return brain stem and cerebellum, which are uneven on FLAIR."""
        stem, cerebellum = self._select("brain stem"), self._select("cerebellar white matter", "cerebellar cortex")
        return (stem * self._strength(0.45) + cerebellum * self._strength(0.3)) * self._uneven(9)

    def hypothalamus(self) -> Tensor:
        """Return the lower front of the ventral diencephalon with what is beside it: hypothalamus and chiasm."""
        part = self._select("ventral diencephalon")
        if not bool(part.any()):
            return torch.zeros(self.structure.shape)
        front = torch.quantile(self.j_mm[part], 0.4)
        distance_mm = self._distance_mm(part & (self.j_mm < front) & (self.i_mm.abs() < 12))
        return (distance_mm < 3) * self._strength(0.8) * torch.exp(-distance_mm / 2) * self._uneven(6)

    def base(self) -> Tensor:
        """Return the orbitofrontal base, where air changes the field: bright above, dark below."""
        frontal = self._select("frontal cortex")
        if not bool(frontal.any()):
            return torch.zeros(self.structure.shape)
        bottom, front = torch.quantile(self.k_mm[frontal][::7], 0.02), torch.quantile(self.j_mm[frontal][::7], 0.3)
        centre_mm = float(front) + uniform(self.generator, -12, 12)
        height_mm = self.k_mm - bottom - uniform(self.generator, 0, 6)
        across = torch.exp(-((self.i_mm / 12) ** 2) - ((self.j_mm - centre_mm) / 15) ** 2)
        pile = torch.exp(-(((height_mm - 3) / 3) ** 2)) - 0.7 * torch.exp(-(((height_mm + 3) / 3) ** 2))
        return across * pile * self._strength(1.0)

    def choroid_plexus(self) -> Tensor:
        """Return choroid plexus as spots in the body and trigone of the lateral ventricles."""
        inside = torch.nonzero(self._select("lateral ventricles"))
        added = torch.zeros(self.structure.shape)
        for _ in range(int(uniform(self.generator, 0, 7)) if len(inside) else 0):
            k, j, i = inside[int(uniform(self.generator, 0, len(inside)))].tolist()
            near = tuple(slice(max(0, n - 8), n + 9) for n in (k, j, i))
            d2 = sum((a[near] - a[k, j, i]) ** 2 for a in (self.k_mm, self.j_mm, self.i_mm))
            spot = uniform(self.generator, 0.4, 1.3) * torch.exp(-d2 / uniform(self.generator, 3, 14))
            added[near] = torch.maximum(added[near], spot)
        return added * self._select("lateral ventricles")

    def flow(self) -> Tensor:
        """Return fluid that flows and is not nulled: third and fourth ventricle, foramina and basal cisterns."""
        basal = self._select("csf") & (self.k_mm < -15)
        where = (self._select("third and fourth ventricles") | basal).float()
        patches = (self._uneven(8) - uniform(self.generator, 0.9, 1.6)).clamp(min=0)
        bright: Tensor = where * patches * self._strength(2.0)
        return bright
