"""A network's class probabilities as the prior of a Gaussian mixture that is fitted to the very image.

p(class | y, place) ~ p_network(class | place)^a [ N(y / f(place); mu_g, sd_g) + outlier ], where g is the class's group
of like intensity and f a smooth multiplicative field. The image itself says how bright each tissue is, whatever its
contrast, and edges lie where it has them; the network says which structure a tissue belongs to there. After Van Leemput
et al., IEEE Trans. Med. Imaging 18, 1999 (mixture and field), and Puonti et al., NeuroImage 143, 2016 (groups of
structures). The outlier density keeps lesions, which look like nothing around them, with what the network says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from model_zoo.structures import COUNT, number

__all__ = ["GROUPS", "LEAST_PRIOR", "Fit", "Mixture", "box", "densities", "fitted", "group_of", "posterior"]

GROUPS: tuple[tuple[str, ...], ...] = (
    ("cerebral white matter", "cerebellar white matter"),
    ("frontal cortex", "sensorimotor cortex", "parietal cortex", "precuneus", "cingulate cortex", "temporal cortex",
     "parahippocampal cortex", "occipital cortex", "insula", "cerebellar cortex", "hippocampus", "amygdala", "caudate"),
    ("thalamus",),
    ("putamen",),
    ("pallidum",),
    ("brain stem", "ventral diencephalon"),
    ("lateral ventricles", "third and fourth ventricles", "csf"),
)  # fmt: skip
"""Structures of like intensity; what is in none (background) comes after them, with several Gaussians."""


LEAST_PRIOR = 1e-7
NEAR = 0.98
"""Largest probability of background of voxels that may be something else; the mixture is fitted to these."""
_FEWEST_VOXELS = 1000
_SQRT_TWO_PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Mixture:
    """``outlier``: density that every class has at any intensity; ``order``: of the field's polynomial; ``components``:
    of the background; ``least_sd``: of a Gaussian; ``thin``: every how many-th voxel along each axis it is fitted to.
    Intensities are in [0, 1]."""

    outlier: float = 0.05
    order: int = 3
    components: int = 4
    iterations: int = 20
    least_sd: float = 0.015
    thin: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3 or self.outlier <= 0 or self.components < 1:
            raise ValueError(f"a mixture has an order of 1 to 3, a positive outlier density and components: {self}")


@dataclass
class Fit:
    """Per group means, standard deviations and weights of its Gaussians; coefficients of the field."""

    means: list[Tensor]
    sds: list[Tensor]
    shares: list[Tensor]
    field: Tensor


def box(background: Tensor, multiple: int) -> tuple[slice, slice, slice]:
    """The part of ``background``, a probability (k, j, i), beyond which there is nothing else: along each axis of a
    multiple of ``multiple`` voxels, and all of it where there is nothing else anywhere."""
    near = background < NEAR
    found = []
    for axis, size in enumerate(near.shape):
        inside = torch.nonzero(near.movedim(axis, 0).flatten(1).any(dim=1))
        first, end = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, size)
        wide = min(-(-(end - first) // multiple) * multiple, size)
        first = min(max((first + end - wide) // 2, 0), size - wide)
        found.append(slice(first, first + wide))
    return (found[0], found[1], found[2])


def fitted(p: Tensor, image: Tensor, mixture: Mixture | None = None) -> Fit | None:
    """The mixture of which the class probabilities ``p`` (class, k, j, i) are the prior, fitted by expectation
    maximisation to some voxels of the image (k, j, i) in [0, 1] on the same lattice. Nothing is random. None where
    ``p`` holds hardly any brain."""
    m = mixture or Mixture()
    some = p[(slice(None), *_thinned(m))].flatten(1).clamp_min(0) + LEAST_PRIOR
    near = some[0] < NEAR * some.sum(dim=0)
    if float((1 - some[0]).clamp_min(0).sum()) * m.thin**3 < _FEWEST_VOXELS:
        return None
    some, y = some[:, near], image[_thinned(m)].flatten()[near]
    groups = torch.zeros(len(GROUPS) + 1, some.shape[1], device=some.device).index_add_(0, group_of(some.device), some)
    groups = groups / groups.sum(dim=0)
    basis = torch.stack([each[_thinned(m)].flatten()[near] for each in _basis(image.shape, m.order, image.device)])
    fit = _start(groups, y, m, len(basis))
    for _ in range(m.iterations):
        corrected = y / (1 + fit.field @ basis).clamp(0.5, 2)
        _update(fit, groups, corrected, m)
        if m.order:
            fit.field = _solved(fit, groups, y, corrected, basis, m)
    return fit


def posterior(p: Tensor, image: Tensor, mixture: Mixture | None = None) -> Tensor:
    """Class probabilities (class, k, j, i) given their prior ``p`` of the same shape and the image (k, j, i) in [0, 1]:
    ``p`` itself where that holds hardly any brain."""
    m = mixture or Mixture()
    fit = fitted(p, image, m)
    found = (p.clamp_min(0) + LEAST_PRIOR) * densities(fit, image, m)[group_of(p.device)]
    return found.div_(found.sum(dim=0))


def densities(fit: Fit | None, image: Tensor, mixture: Mixture) -> Tensor:
    """Of every group at the intensities of ``image`` (k, j, i), outliers included: (groups, k, j, i). All alike where
    there is no ``fit``. The image may be on another lattice than that it was fitted to, of the same extent."""
    if fit is None:
        return image.new_ones(len(GROUPS) + 1, *image.shape)
    corrected = image / _field(fit.field, image.shape, mixture.order)
    return torch.stack([_density(corrected, fit, g) for g in range(len(GROUPS) + 1)]) + mixture.outlier


def group_of(device: torch.device | str = "cpu") -> Tensor:
    """The group of each class; background is the last."""
    found = torch.full((COUNT + 1,), len(GROUPS), device=device)
    for g, names in enumerate(GROUPS):
        found[[number(name) for name in names]] = g
    return found


def _thinned(m: Mixture) -> tuple[slice, slice, slice]:
    return (slice(m.thin // 2, None, m.thin),) * 3


def _start(groups: Tensor, y: Tensor, m: Mixture, terms: int) -> Fit:
    fit = Fit([], [], [], y.new_zeros(terms))
    for g, w in enumerate(groups):
        mean = (w * y).sum() / w.sum()
        sd = ((w * (y - mean) ** 2).sum() / w.sum()).sqrt().clamp_min(m.least_sd)
        n = m.components if g == len(GROUPS) else 1
        spread = torch.linspace(-1.2, 1.2, n, device=y.device) if n > 1 else y.new_zeros(1)
        fit.means.append(mean + spread * sd)
        fit.sds.append((sd / n).expand(n).clone())
        fit.shares.append(y.new_full((n,), 1 / n))
    return fit


def _gaussians(y: Tensor, fit: Fit, g: int) -> Tensor:
    """Weighted densities of the group's Gaussians (component, ...)."""
    mean, sd, share = (t.view(-1, *[1] * y.dim()) for t in (fit.means[g], fit.sds[g], fit.shares[g]))
    found: Tensor = share * torch.exp(-0.5 * ((y - mean) / sd) ** 2) / (_SQRT_TWO_PI * sd)
    return found


def _density(y: Tensor, fit: Fit, g: int) -> Tensor:
    """Of the whole group; one Gaussian at a time, for y is large."""
    found = torch.zeros_like(y)
    for mean, sd, share in zip(fit.means[g].tolist(), fit.sds[g].tolist(), fit.shares[g].tolist(), strict=True):
        found += torch.exp(((y - mean) / sd).square_().mul_(-0.5)).mul_(share / (_SQRT_TWO_PI * sd))
    return found


def _responsibilities(fit: Fit, groups: Tensor, y: Tensor, m: Mixture) -> list[Tensor]:
    """Per group (component, voxel): how much each Gaussian explains each voxel; the rest is the outliers'."""
    parts = [groups[g] * _gaussians(y, fit, g) for g in range(len(groups))]
    total = sum((part.sum(dim=0) for part in parts), torch.full_like(y, m.outlier))
    return [part / total for part in parts]


def _update(fit: Fit, groups: Tensor, y: Tensor, m: Mixture) -> None:
    for g, r in enumerate(_responsibilities(fit, groups, y, m)):
        mass = r.sum(dim=1)
        if float(mass.sum()) < 20:
            continue
        fit.means[g] = (r * y).sum(dim=1) / mass.clamp_min(1)
        variance = (r * (y - fit.means[g][:, None]) ** 2).sum(dim=1) / mass.clamp_min(1)
        fit.sds[g] = variance.sqrt().clamp_min(m.least_sd)
        fit.shares[g] = mass / mass.sum()


def _solved(fit: Fit, groups: Tensor, y: Tensor, corrected: Tensor, basis: Tensor, m: Mixture) -> Tensor:
    """Coefficients a of f = 1 + a . basis that minimise sum r (y - mu f)^2 / sd^2 over the tissues, lightly damped."""
    weight, pull = torch.zeros_like(y), torch.zeros_like(y)
    for g, r in enumerate(_responsibilities(fit, groups, corrected, m)[: len(GROUPS)]):
        mean, sd = fit.means[g][0], fit.sds[g][0]
        weight += r[0] * (mean / sd) ** 2
        pull += r[0] * mean * (y - mean) / sd**2
    normal = (basis * weight) @ basis.T
    damping = 1e-3 * weight.sum() * torch.eye(len(basis), device=y.device)
    found: Tensor = torch.linalg.solve(normal + damping, basis @ pull)
    return found


def _basis(shape: torch.Size, order: int, device: torch.device) -> list[Tensor]:
    """Products of Legendre polynomials of the coordinates in [-1, 1], of total order 1 to ``order``: each (k, j, i)."""
    axes = []
    for axis, n in enumerate(shape):
        x = 2 * (torch.arange(n, device=device) + 0.5) / n - 1
        powers = [torch.ones_like(x), x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2]
        axes.append([each.view([-1 if a == axis else 1 for a in range(3)]) for each in powers])
    orders = [o for o in product(range(order + 1), repeat=3) if 1 <= sum(o) <= order]
    return [(axes[0][a] * axes[1][b] * axes[2][c]).expand(shape) for a, b, c in orders]


def _field(coefficients: Tensor, shape: torch.Size, order: int) -> Tensor:
    field = torch.ones(shape, device=coefficients.device)
    for a, each in zip(coefficients, _basis(shape, order, coefficients.device), strict=True):
        field += a * each
    return field.clamp_(0.5, 2)
