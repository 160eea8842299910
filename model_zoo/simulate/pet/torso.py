"""A procedural torso for FDG PET: activity, attenuation, organ labels and lesions from superquadrics.

No label map of a body exists under a free licence in the data kit, so this one is geometry, not anatomy: organs are
superquadrics at textbook places with radii, places and uptake drawn anew, all bent by one smooth random displacement.
Coordinates are millimetres in LPS with x = 0 in the median plane, y = 0 in the middle of the trunk and z = 0 at the
pelvic floor; z reaches 600 at the neck. Arms are up, the head is not there. Edges carry partial volume: a voxel's share
of a shape falls linearly over one voxel across its surface.

Uptake is FDG in SUV. Liver, spleen, blood and muscle follow the usual clinical ranges (liver 2.2, blood 1.6, muscle
0.7); every value is a plausible default, not a measurement. Attenuation at 511 keV in 1/cm: soft tissue .096, fat .087,
lung .026, bone .13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["HEIGHT_MM", "ORGANS", "Torso", "draw_torso"]

HEIGHT_MM = 600.0
BEND_SD_MM, BEND_CELL_MM = 7.0, 70.0
ORGANS = (
    "outside",
    "muscle",
    "fat",
    "lungs",
    "heart",
    "liver",
    "spleen",
    "stomach",
    "kidneys",
    "spine",
    "bone",
    "bladder",
    "bowel",
)
"""Organ by name: its index here is the value in ``Torso.organ``."""

_MU_PER_CM = {"outside": 0.0, "fat": 0.087, "lungs": 0.026, "spine": 0.13, "bone": 0.13}
_SOFT_PER_CM = 0.096
_SUV = {
    "muscle": (0.5, 0.9),
    "fat": (0.2, 0.4),
    "lungs": (0.35, 0.65),
    "myocardium": (1.2, 10.0),
    "blood": (1.2, 2.0),
    "liver": (1.6, 3.0),
    "spleen": (1.3, 2.4),
    "stomach": (0.8, 3.0),
    "kidneys": (1.8, 5.0),
    "spine": (0.9, 2.2),
    "bone": (0.6, 1.4),
    "bladder": (3.0, 35.0),
    "bowel": (0.7, 3.5),
}
"""Ranges of uptake, drawn log-uniformly once per torso (bowel: once per loop)."""

_LESION_HOSTS = ("lungs", "liver", "spine", "bone", "muscle", "spleen")


@dataclass(frozen=True)
class _Shape:
    """(x/a)^p + (y/b)^p + (z/c)^p <= 1 about ``centre`` (x, y, z), ``radii`` (a, b, c) in mm, p even."""

    organ: str
    tissue: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    power: int = 2


_SHAPES = (
    _Shape("lungs", "lungs", (-76, 0, 425), (62, 84, 118), 2),
    _Shape("lungs", "lungs", (80, 0, 425), (56, 82, 116), 2),
    _Shape("heart", "blood", (2, -38, 392), (40, 40, 46)),
    _Shape("heart", "myocardium", (38, -34, 384), (38, 42, 46)),
    _Shape("heart", "blood", (38, -36, 388), (26, 30, 34)),
    _Shape("liver", "liver", (-66, -8, 300), (92, 84, 72), 2),
    _Shape("liver", "liver", (14, -48, 322), (74, 40, 38)),
    _Shape("stomach", "stomach", (66, -36, 292), (48, 40, 56)),
    _Shape("spleen", "spleen", (112, 38, 312), (26, 44, 52)),
    _Shape("kidneys", "kidneys", (-62, 46, 232), (28, 28, 54)),
    _Shape("kidneys", "kidneys", (62, 46, 246), (28, 28, 54)),
    _Shape("muscle", "blood", (18, 42, 330), (12, 12, 160), 6),
    _Shape("spine", "spine", (0, 72, 300), (22, 20, 320), 8),
    _Shape("spine", "muscle", (0, 98, 300), (8, 8, 320), 8),
    _Shape("bone", "bone", (-84, 44, 92), (32, 26, 72), 2),
    _Shape("bone", "bone", (84, 44, 92), (32, 26, 72), 2),
    _Shape("bone", "bone", (-92, 6, 18), (24, 24, 26)),
    _Shape("bone", "bone", (92, 6, 18), (24, 24, 26)),
    _Shape("bone", "bone", (0, -96, 440), (16, 8, 84), 4),
    _Shape("bladder", "bladder", (0, -32, 48), (40, 36, 32)),
)
_BOWEL_LOOPS = 9


@dataclass(frozen=True)
class Torso:
    """All (k, j, i), LPS: ``activity`` in SUV, ``mu_per_cm``, ``organ`` uint8 (index of ORGANS), ``lesion`` uint8
    (0: none, else its number from 1 on, over the organ it lies in).
    """

    activity: Tensor
    mu_per_cm: Tensor
    organ: Tensor
    lesion: Tensor
    spacing_mm: float


def draw_torso(
    generator: torch.Generator,
    *,
    shape: tuple[int, int, int],
    spacing_mm: float,
    middle_mm: tuple[float, float, float] | None = None,
    lesions: int | None = None,
) -> Torso:
    """Return the part of a random torso inside a window of ``shape`` (k, j, i) with isotropic ``spacing_mm``.

    ``middle_mm`` (x, y, z): the window's middle; by default in the median plane at a random height. ``lesions``: their
    number in the window, drawn when None. Lesions are hot warped balls of 4 to 20 mm radius.
    """
    draw = _Draw(generator)
    if middle_mm is None:
        middle_mm = (0.0, 0.0, draw.uniform(60.0, 500.0))
    canvas = _Canvas(shape, spacing_mm, middle_mm, generator)
    suv = {name: draw.log_uniform(*limits) for name, limits in _SUV.items()}
    _paint_trunk(canvas, draw, suv)
    size = draw.uniform(0.92, 1.08)
    for s in _SHAPES:
        canvas.add(s.organ, suv[s.tissue], draw.about(s.centre, 5.0), draw.scaled(s.radii, size), s.power)
    for _ in range(_BOWEL_LOOPS):
        centre = (draw.uniform(-95, 95), draw.uniform(-60, 25), draw.uniform(105, 235))
        radii = (draw.uniform(14, 36), draw.uniform(12, 22), draw.uniform(12, 36))
        canvas.add("bowel", draw.log_uniform(*_SUV["bowel"]), centre, radii, 2)
    canvas.activity *= 1 + 0.08 * _draw_field(canvas.activity.shape, 24.0 / spacing_mm, generator)[0]
    for number in range(1, 1 + (draw.integer(2, 8) if lesions is None else lesions)):
        _paint_lesion(canvas, draw, number)
    return Torso(canvas.activity, canvas.mu_per_cm, canvas.organ, canvas.lesion, spacing_mm)


class _Draw:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=self.generator, device=self.generator.device))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        return min(high, low + int(self.uniform(0, high - low + 1)))

    def about(self, centre: tuple[float, float, float], mm: float) -> tuple[float, ...]:
        return tuple(c + self.uniform(-mm, mm) for c in centre)

    def scaled(self, radii: tuple[float, float, float], size: float) -> tuple[float, ...]:
        return tuple(r * size * self.uniform(0.88, 1.12) for r in radii)


class _Canvas:
    """The maps while they are painted, shape over shape; ``points`` (3: x y z, k, j, i) in mm of the torso's frame."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing_mm: float,
        middle_mm: tuple[float, float, float],
        generator: torch.Generator,
    ) -> None:
        self.spacing_mm = spacing_mm
        self.first_mm = [m - (n - 1) / 2 * spacing_mm for n, m in zip(shape, reversed(middle_mm), strict=True)]
        axes = [
            torch.arange(n, device=generator.device) * spacing_mm + first
            for n, first in zip(shape, self.first_mm, strict=True)
        ]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        bend = _draw_field(x.shape, BEND_CELL_MM / spacing_mm, generator, channels=3)
        self.points = torch.stack([x, y, z]) + BEND_SD_MM * bend.clamp(-3, 3)
        self.activity = torch.zeros_like(x)
        self.mu_per_cm = torch.zeros_like(x)
        self.organ = torch.zeros_like(x, dtype=torch.uint8)
        self.lesion = torch.zeros_like(self.organ)
        self.within = torch.ones_like(x)

    def box(self, centre: tuple[float, ...], radii: tuple[float, ...]) -> tuple[slice, ...]:
        """Return the voxels (k, j, i) that a shape can reach, the bend included."""
        reach = 3 * BEND_SD_MM + 2 * self.spacing_mm
        sides = []
        for c, r, first in zip(reversed(centre), reversed(radii), self.first_mm, strict=True):
            low, high = ((c + sign * (r + reach) - first) / self.spacing_mm for sign in (-1, 1))
            sides.append(slice(max(0, math.floor(low)), max(0, math.ceil(high) + 1)))
        return tuple(sides)

    def add(self, organ: str, suv: float, centre: tuple[float, ...], radii: tuple[float, ...], power: int) -> None:
        box = self.box(centre, radii)
        self.paint(organ, suv, self.share(centre, radii, power, box), box)

    def share(self, centre: tuple[float, ...], radii: tuple[float, ...], power: int, box: tuple[slice, ...]) -> Tensor:
        """Return the share of each voxel inside a superquadric, from the distance to its surface along the ray from its
        centre.
        """
        d = self.points[(slice(None), *box)] - self.points.new_tensor(centre).reshape(3, 1, 1, 1)
        f = (d / self.points.new_tensor(radii).reshape(3, 1, 1, 1)) ** 2
        f = f.sum(dim=0).sqrt() if power == 2 else f.pow(power // 2).sum(dim=0).pow(1 / power)
        outside_mm = d.square().sum(dim=0).sqrt() * (1 - 1 / f.clamp_min(1e-3))
        return (0.5 - outside_mm / self.spacing_mm).clamp(0, 1) * self.within[box]

    def paint(self, organ: str, suv: float, share: Tensor, box: tuple[slice, ...] = (slice(None),) * 3) -> None:
        mu = _MU_PER_CM.get(organ, _SOFT_PER_CM)
        self.activity[box] += (suv - self.activity[box]) * share
        self.mu_per_cm[box] += (mu - self.mu_per_cm[box]) * share
        self.organ[box][share > 0.5] = ORGANS.index(organ)


def _draw_field(shape: torch.Size, cell: float, generator: torch.Generator, channels: int = 1) -> Tensor:
    """Return standard normal values every ``cell`` voxels, trilinear between: (channels, k, j, i)."""
    cells = tuple(max(2, math.ceil(n / cell) + 1) for n in shape)
    nodes = torch.randn((1, channels, *cells), generator=generator, device=generator.device)
    return functional.interpolate(nodes, size=tuple(shape), mode="trilinear", align_corners=True)[0]


def _paint_trunk(canvas: _Canvas, draw: _Draw, suv: dict[str, float]) -> None:
    """Paint fat and muscle, an ellipse whose half axes follow the height, and the ribs, stripes in a shell of it."""
    x, y, z = canvas.points
    heights = z.new_tensor([0.0, 80.0, 220.0, 400.0, 520.0, 565.0, 620.0])
    widths = z.new_tensor([170.0, 172.0, 150.0, 165.0, 172.0, 80.0, 62.0])
    depths = z.new_tensor([112.0, 116.0, 108.0, 116.0, 108.0, 74.0, 66.0])
    build = draw.uniform(0.9, 1.12)
    a, b = build * _interpolate(z, heights, widths), build * _interpolate(z, heights, depths)
    f = torch.hypot(x / a, y / b)
    depth_mm = torch.hypot(x, y) * (1 / f.clamp_min(1e-3) - 1)
    within = (0.5 + depth_mm / canvas.spacing_mm).clamp(0, 1)
    fat_mm = draw.uniform(6.0, 28.0)
    canvas.paint("fat", suv["fat"], within)
    canvas.paint("muscle", suv["muscle"], (0.5 + (depth_mm - fat_mm) / canvas.spacing_mm).clamp(0, 1))
    ribs = (depth_mm > fat_mm + 4) & (depth_mm < fat_mm + 12) & (z > 285) & (z < 540)
    ribs &= torch.cos((z + 0.35 * y) * (2 * math.pi / 27.0)) > 0.2
    canvas.paint("bone", suv["bone"], ribs.float())
    canvas.within = (depth_mm > 4.0).float()


def _interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate linearly between knots, constant beyond."""
    right = torch.bucketize(at, knots).clamp(1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    return torch.lerp(values[right - 1], values[right], ((at - low) / (high - low)).clamp(0, 1))


def _paint_lesion(canvas: _Canvas, draw: _Draw, number: int) -> None:
    host = _LESION_HOSTS[draw.integer(0, len(_LESION_HOSTS) - 1)]
    places = (canvas.organ == ORGANS.index(host)).nonzero()
    if len(places) == 0:
        return
    k, j, i = places[draw.integer(0, len(places) - 1)]
    centre = tuple(float(c) for c in canvas.points[:, k, j, i])
    radius = draw.log_uniform(4.0, 20.0)
    radii = tuple(radius * draw.uniform(0.8, 1.25) for _ in range(3))
    box = canvas.box(centre, radii)
    share = canvas.share(centre, radii, 2, box)
    suv = max(1.8 * float(canvas.activity[k, j, i]), draw.log_uniform(2.5, 18.0))
    canvas.activity[box] += (suv - canvas.activity[box]) * share
    if host == "lungs":
        canvas.mu_per_cm[box] += (_SOFT_PER_CM - canvas.mu_per_cm[box]) * share
    canvas.lesion[box][share > 0.5] = number
