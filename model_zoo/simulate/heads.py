"""Three-dimensional simulated subjects: label maps turned, warped and atrophied, without their face.

A head is sampled by pulling labels back: the label at x is that of the source at A x + t + e(x) + a(x), with A a
random affine map, e a random elastic displacement (SynthSeg: Billot et al. 2023) and a the atrophy. Atrophy of a
structure by the volume fraction f moves its surface inwards by -log(1 - f) V / S (volume over surface) along the
gradient n of its signed distance d: a = -log(1 - f) (V / S) n exp(-(d / L)^2), negative f growth. The cortex, thinner
than any smooth displacement resolves, loses voxels next to cerebrospinal fluid instead, in patches of some millimetres.

Signals and activities are linear in tissue fractions, so partial volume is rendered by looking up one value per label
on the fine grid, then blurring and averaging (``render``), which equals mixing by ``render_fractions``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import anatomy, regions
from model_zoo.structures import CORTEX, COUNT, number

__all__ = [
    "Atrophy",
    "Head",
    "Variation",
    "draw_head",
    "draw_smooth_field_3d",
    "gaussian_blur_3d",
    "make_plain_head",
    "render",
    "render_fractions",
]

HALF_MM = 2.0
"""Spacing of the grid of the atrophy fields and of the displacement before it is brought to full resolution."""


_ATROPHIED = (("hippocampus", 6.0), ("lateral ventricles", 10.0))
"""Structures whose surface atrophy moves, and how far from it in mm the tissue follows."""


@dataclass(frozen=True)
class Atrophy:
    """Volume fractions: ``hippocampus`` and ``cortex`` lost, ``ventricles`` grown."""

    hippocampus: float = 0.0
    ventricles: float = 0.0
    cortex: float = 0.0


@dataclass(frozen=True)
class Variation:
    """Ranges of the random anatomy (uniform within +- scale and so on); elastic displacement as its sd."""

    scale: float = 0.12
    rotation_deg: float = 12.0
    shear: float = 0.012
    elastic_mm: float = 3.0
    flip: bool = True
    face: bool = False


@dataclass(frozen=True)
class Head:
    """One simulated subject: ``tissue`` (index into ``tissues.TISSUES``) and ``structure`` (0 or a structure's number).

    Both uint8 (k, j, i) on an isotropic grid of ``spacing_mm``, LPS.
    """

    tissue: Tensor
    structure: Tensor
    spacing_mm: float
    subject: str
    atrophy: Atrophy = field(default_factory=Atrophy)


@dataclass(frozen=True)
class _Source:
    """A subject ready for sampling: codes (256, 256, 256), what they stand for, its centre, atrophy fields.

    A code stands for a tissue, a structure and whether the voxel is cortex next to fluid (``pial``); ``pial_share`` is
    the part of the cortex that is.
    """

    codes: NDArray[np.uint8]
    tissue_of: NDArray[np.uint8]
    structure_of: NDArray[np.uint8]
    pial: NDArray[np.bool_]
    centre_mm: tuple[float, float, float]
    pial_share: float
    fields: Tensor


def draw_head(
    subject: str,
    generator: torch.Generator,
    *,
    shape: tuple[int, int, int] = (192, 224, 192),
    spacing_mm: float = 1.0,
    variation: Variation | None = None,
    atrophy: Atrophy | None = None,
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    root: Path | None = None,
) -> Head:
    """Return a random head on a grid whose centre lies ``offset_mm`` (k, j, i) from the centre of the subject's
    brain.

    ``atrophy``: None draws one. Raises FileNotFoundError where the data kit is missing.
    """
    v = variation or Variation()
    if atrophy is None:
        draw = torch.rand(3, generator=generator).square()
        atrophy = Atrophy(0.3 * float(draw[0]), 0.8 * float(draw[1]), 0.12 * float(draw[2]))
    source = _prepare_source(subject, v.face, root)
    matrix = _draw_matrix(v, generator)
    at = _affine_coordinates(source, matrix, shape, spacing_mm, offset_mm)
    if v.elastic_mm > 0:
        at = at + _draw_elastic_displacement(at.shape[1:], shape, spacing_mm, v.elastic_mm, generator)
    return _pull_back(source, subject, at, shape, spacing_mm, atrophy, generator)


def make_plain_head(
    subject: str,
    *,
    shape: tuple[int, int, int] = (192, 224, 192),
    spacing_mm: float = 1.0,
    atrophy: Atrophy | None = None,
    face: bool = False,
    root: Path | None = None,
) -> Head:
    """Return the subject as its map holds it (with ``atrophy`` if given), its brain centred on the grid."""
    source = _prepare_source(subject, face, root)
    at = _affine_coordinates(source, torch.eye(3), shape, spacing_mm, (0.0, 0.0, 0.0))
    generator = torch.Generator().manual_seed(0)
    return _pull_back(source, subject, at, shape, spacing_mm, atrophy or Atrophy(), generator)


def _draw_matrix(v: Variation, generator: torch.Generator) -> Tensor:
    """Return the rotation, shear, scale and flip from grid to source millimetres, axes (k, j, i)."""

    def draw(width: float) -> Tensor:
        return (2 * torch.rand(3, generator=generator) - 1) * width

    matrix = torch.eye(3)
    for axis, angle in enumerate(draw(math.radians(v.rotation_deg)).tolist()):
        a, b = [n for n in range(3) if n != axis]
        turn = torch.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    shear = torch.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = draw(v.shear)
    matrix = matrix @ shear @ torch.diag(1 / (1 + draw(v.scale)))
    if v.flip and float(torch.rand(1, generator=generator)) < 0.5:
        matrix = matrix @ torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    return matrix


def _affine_coordinates(
    source: _Source,
    matrix: Tensor,
    shape: tuple[int, int, int],
    spacing_mm: float,
    offset_mm: tuple[float, float, float],
) -> Tensor:
    """Return the source positions (mm = voxels) of the nodes of a 2 mm grid that spans ``shape``: (3, k, j, i)."""
    nodes = [max(2, math.ceil(n * spacing_mm / HALF_MM)) for n in shape]
    axes = [
        torch.linspace(-0.5, 0.5, m) * ((n - 1) * spacing_mm) + o
        for m, n, o in zip(nodes, shape, offset_mm, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.einsum("ab,bkji->akji", matrix, grid) + torch.tensor(source.centre_mm)[:, None, None, None]


def _draw_elastic_displacement(
    nodes: torch.Size, shape: tuple[int, int, int], spacing_mm: float, sd_mm: float, generator: torch.Generator
) -> Tensor:
    """Return a smooth displacement (3, *nodes) in millimetres: white noise on knots 24 to 48 mm apart, trilinear."""
    apart = float(torch.empty(1).uniform_(24, 48, generator=generator))
    knots = [max(3, round(n * spacing_mm / apart) + 1) for n in shape]
    sd = sd_mm * float(torch.rand(1, generator=generator))
    coarse = sd * torch.randn((1, 3, *knots), generator=generator)
    return functional.interpolate(coarse, size=tuple(nodes), mode="trilinear", align_corners=True)[0]


def _pull_back(
    source: _Source,
    subject: str,
    at: Tensor,
    shape: tuple[int, int, int],
    spacing_mm: float,
    atrophy: Atrophy,
    generator: torch.Generator,
) -> Head:
    at = at + _displace_by_atrophy(source, at, atrophy)
    full = functional.interpolate(at[None], size=shape, mode="trilinear", align_corners=True)[0]
    size = torch.tensor(source.codes.shape)
    outside = torch.zeros(shape, dtype=torch.bool)
    flat = torch.zeros(shape, dtype=torch.int64)
    for axis in range(3):
        index = full[axis].round_()
        outside |= (index < 0) | (index > size[axis] - 1)
        flat = flat * int(size[axis]) + index.clamp_(0, int(size[axis]) - 1).to(torch.int64)
    codes = torch.from_numpy(source.codes).flatten()[flat]
    codes[outside] = 0
    index = codes.to(torch.int64)
    tissue, structure = torch.from_numpy(source.tissue_of)[index], torch.from_numpy(source.structure_of)[index]
    if atrophy.cortex > 0:
        lost = torch.from_numpy(source.pial)[index] & _draw_patches(
            shape, spacing_mm, atrophy.cortex / source.pial_share, generator
        )
        tissue[lost], structure[lost] = list(TISSUES).index("csf"), number("csf")
    return Head(tissue, structure, spacing_mm, subject, atrophy)


def _draw_patches(shape: tuple[int, int, int], spacing_mm: float, share: float, generator: torch.Generator) -> Tensor:
    """Return a mask that is True in about ``share`` of the voxels, in patches of about 4 mm: bool (k, j, i)."""
    knots = tuple(max(2, round(n * spacing_mm / 4.0)) for n in shape)
    coarse = torch.rand((1, 1, *knots), generator=generator)
    return functional.interpolate(coarse, size=shape, mode="nearest")[0, 0] < share


def _displace_by_atrophy(source: _Source, at: Tensor, atrophy: Atrophy) -> Tensor:
    """Return the sum of the structures' fields at the nodes, each scaled by its volume fraction: (3, k, j, i), mm."""
    amounts = torch.tensor([-math.log1p(-atrophy.hippocampus), -math.log1p(atrophy.ventricles)])
    if not bool(amounts.any()):
        return torch.zeros_like(at)
    total = torch.einsum("s,sakji->akji", amounts, source.fields)
    where = (at + 0.5) / 256 * 2 - 1  # fields cover the 256 mm cube: grid_sample's [-1, 1], cells not nodes
    grid = where.flip(0).permute(1, 2, 3, 0)[None]
    return functional.grid_sample(total[None], grid, align_corners=False)[0]


@lru_cache(maxsize=32)
def _prepare_source(subject: str, face: bool, root: Path | None) -> _Source:
    tissue = anatomy.read_tissue_map(subject, root).numpy()
    structure = regions.make_structure_map(subject, root)
    if not face:
        tissue = np.where(_find_face(tissue, structure), np.uint8(0), tissue)
    pial = _find_pial_cortex(structure)
    triples = (tissue.astype(np.uint16) * (COUNT + 1) + structure) * 2 + pial
    found = np.flatnonzero(np.bincount(triples.ravel()))
    codes = np.searchsorted(found, np.arange(int(found[-1]) + 1)).astype(np.uint8)[triples]
    if found[0] != 0 or len(found) > 256:
        raise ValueError(f"label map {subject}: {len(found)} kinds of voxels, the first {found[0]}")
    brain = np.nonzero((structure > 0) & (structure != number("csf")))
    centre = tuple(float(axis.min() + axis.max()) / 2 for axis in brain)
    return _Source(
        codes,
        (found // 2 // (COUNT + 1)).astype(np.uint8),
        (found // 2 % (COUNT + 1)).astype(np.uint8),
        found % 2 == 1,
        (centre[0], centre[1], centre[2]),
        float(pial.sum()) / float(np.isin(structure, CORTEX).sum()),
        torch.from_numpy(_make_atrophy_fields(structure)),
    )


def _find_pial_cortex(structure: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the cortex that shares a face with cerebrospinal fluid."""
    from scipy import ndimage

    fluid = ndimage.binary_dilation(structure == number("csf"))
    return np.asarray(fluid & np.isin(structure, CORTEX))


def _find_face(tissue: NDArray[np.uint8], structure: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the mask of what could identify a person.

    It holds all but brain and cerebrospinal fluid in front of the middle of the temporal poles and below the top of the
    eyes, the eyes, and everything within 25 mm in front of the eyes.
    """
    names = list(TISSUES)
    eyes = np.nonzero(tissue == names.index("eye"))
    if not len(eyes[0]):  # a head of shells has no face
        return np.zeros(tissue.shape, np.bool_)
    k, j, _ = np.ogrid[: tissue.shape[0], : tissue.shape[1], : tissue.shape[2]]
    below = k <= int(eyes[0].max()) + 12
    before = j <= int(eyes[1].max()) + 4
    return np.asarray(below & before & (structure == 0))


def _make_atrophy_fields(structure: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the displacement in mm per volume fraction of hippocampus and ventricles: (2, 3, 128, 128, 128), 2 mm."""
    half = structure[::2, ::2, ::2]
    return np.stack([_make_shrinking_field(half == number(name), reach_mm) for name, reach_mm in _ATROPHIED])


def _make_shrinking_field(mask: NDArray[np.bool_], reach_mm: float) -> NDArray[np.float32]:
    """Return (V / S) n exp(-(d / L)^2) about the surface of ``mask``: float32 (3, k, j, i) in mm."""
    from scipy import ndimage

    d = np.asarray(ndimage.distance_transform_edt(~mask))
    (box,) = ndimage.find_objects(mask.view(np.uint8))
    inside = tuple(slice(max(0, each.start - 1), each.stop + 1) for each in box)
    d[inside] -= ndimage.distance_transform_edt(mask[inside])
    d = ndimage.gaussian_filter(d * HALF_MM, 0.7)
    normal = np.stack(np.gradient(d, HALF_MM))
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
    surface_mm2 = HALF_MM**3 * float((np.abs(d) < HALF_MM).sum()) / (2 * HALF_MM)
    volume_mm3 = HALF_MM**3 * float(mask.sum())
    field_mm: NDArray[np.float32] = (volume_mm3 / surface_mm2 * normal * np.exp(-((d / reach_mm) ** 2))).astype(
        np.float32
    )
    return field_mm


def gaussian_blur_3d(x: Tensor, sigma_vox: tuple[float, float, float]) -> Tensor:  # imaging.blur would change the data
    """Blur the last three axes of a float tensor (..., k, j, i) by a separable Gaussian, edges replicated."""
    shape = x.shape
    y = x.reshape(-1, 1, *shape[-3:])
    for axis, sigma in enumerate(sigma_vox):
        if sigma > 0:
            y = _blur_axis(y, axis, sigma)
    return y.reshape(shape)


def _blur_axis(y: Tensor, axis: int, sigma: float) -> Tensor:
    """Return the weighted sum of shifted copies, faster than a one-channel convolution on a processor."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    shares: list[float] = (weights / weights.sum()).tolist()
    n = y.shape[axis + 2]
    padding = [0] * 6
    padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
    padded = functional.pad(y, padding, mode="replicate")
    total = shares[radius] * y
    for shift in range(1, radius + 1):
        pair = padded.narrow(axis + 2, radius - shift, n) + padded.narrow(axis + 2, radius + shift, n)
        total.add_(pair, alpha=shares[radius + shift])
    return total


def draw_smooth_field_3d(shape: tuple[int, int, int], cells: int, generator: torch.Generator) -> Tensor:
    """Return a smooth random field (k, j, i), N(0, 1) at its ``cells``^3 knots, trilinear between them."""
    coarse = torch.randn((1, 1, cells, cells, cells), generator=generator)
    return functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0, 0]


def render(labels: Tensor, values: Tensor, *, blur_mm: float, spacing_mm: float, shrink: int = 1) -> Tensor:
    """Render one value per label, blurred by a Gaussian of sd ``blur_mm``, averaged over blocks of ``shrink``^3: (k, j,
    i).
    """
    image = values.to(torch.float32)[labels.to(torch.int64)]
    sigma = blur_mm / spacing_mm
    image = gaussian_blur_3d(image, (sigma, sigma, sigma))
    return functional.avg_pool3d(image[None, None], shrink)[0, 0] if shrink > 1 else image


def render_fractions(labels: Tensor, classes: int, *, blur_mm: float, spacing_mm: float, shrink: int = 1) -> Tensor:
    """Return the partial-volume fractions of ``classes`` labels: float (classes, k, j, i), summing to one."""
    eye = torch.eye(classes)
    return torch.stack([render(labels, row, blur_mm=blur_mm, spacing_mm=spacing_mm, shrink=shrink) for row in eye])
