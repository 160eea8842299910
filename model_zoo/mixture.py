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

__all__ = ["GROUPS", "LEAST_PRIOR", "Fit", "Mixture", "box", "densities", "fitted", "group_of", "posterior", "weighted"]

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
_LEAST_MASS = 20
"""Voxels of a group below which its Gaussians stay as they are."""
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
    """Means, standard deviations and weights of the Gaussians, each (gaussian,): one of each group, then those of the
    background; coefficients of the field."""

    means: Tensor
    sds: Tensor
    shares: Tensor
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
    prior = groups[_owner(m, some.device)]
    for _ in range(m.iterations):
        _improve(fit, prior, y, basis, m)
    return fit


def posterior(p: Tensor, image: Tensor, mixture: Mixture | None = None) -> Tensor:
    """Class probabilities (class, k, j, i) given their prior ``p`` of the same shape and the image (k, j, i) in [0, 1]:
    ``p`` itself where that holds hardly any brain."""
    m = mixture or Mixture()
    return weighted(p.clone(), densities(fitted(p, image, m), image, m))


def weighted(p: Tensor, densities: Tensor) -> Tensor:
    """Class probabilities ``p`` (class, k, j, i) times ``densities`` (group, k, j, i), normalised, in place."""
    p.clamp_min_(0).add_(LEAST_PRIOR)
    for each, g in zip(p, group_of().tolist(), strict=True):
        each.mul_(densities[g])
    return p.div_(p.sum(dim=0))


def densities(fit: Fit | None, image: Tensor, mixture: Mixture) -> Tensor:
    """Of every group at the intensities of ``image`` (k, j, i), outliers included: (groups, k, j, i). All alike where
    there is no ``fit``. The image may be on another lattice than that it was fitted to, of the same extent."""
    if fit is None:
        return image.new_ones(len(GROUPS) + 1, *image.shape)
    corrected = image / _field(fit.field, image.shape, mixture.order)
    found = torch.full((len(GROUPS) + 1, *image.shape), mixture.outlier, device=image.device)
    gaussians = torch.stack([fit.means, fit.sds, fit.shares]).T.tolist()
    for g, (mean, sd, share) in zip(_owner(mixture).tolist(), gaussians, strict=True):
        found[g] += torch.exp(((corrected - mean) / sd).square_().mul_(-0.5)).mul_(share / (_SQRT_TWO_PI * sd))
    return found


def group_of(device: torch.device | str = "cpu") -> Tensor:
    """The group of each class; background is the last."""
    found = torch.full((COUNT + 1,), len(GROUPS), device=device)
    for g, names in enumerate(GROUPS):
        found[[number(name) for name in names]] = g
    return found


def _thinned(m: Mixture) -> tuple[slice, slice, slice]:
    return (slice(m.thin // 2, None, m.thin),) * 3


def _owner(m: Mixture, device: torch.device | str = "cpu") -> Tensor:
    """The group of each Gaussian."""
    groups = len(GROUPS) + 1
    return torch.arange(groups - 1 + m.components, device=device).clamp_(max=groups - 1)


def _start(groups: Tensor, y: Tensor, m: Mixture, terms: int) -> Fit:
    owner, mass = _owner(m, y.device), groups.sum(dim=1)
    means = groups @ y / mass
    sds = ((groups * (y - means[:, None]) ** 2).sum(dim=1) / mass).sqrt().clamp_min(m.least_sd)
    spread, share = y.new_zeros(len(owner)), y.new_ones(len(owner))
    if m.components > 1:
        spread[len(GROUPS) :] = torch.linspace(-1.2, 1.2, m.components, device=y.device)
    share[len(GROUPS) :] = 1 / m.components
    return Fit(means[owner] + spread * sds[owner], sds[owner] * share, share, y.new_zeros(terms))


def _improve(fit: Fit, prior: Tensor, y: Tensor, basis: Tensor, m: Mixture) -> None:
    """One expectation, then of what it gives the Gaussians and the field after them (expectation conditional
    maximisation); ``prior`` (gaussian, voxel)."""
    off = y / (1 + fit.field @ basis).clamp(0.5, 2) - fit.means[:, None]
    r = torch.exp((off / fit.sds[:, None]).square_().mul_(-0.5))
    r *= prior * (fit.shares / (_SQRT_TWO_PI * fit.sds))[:, None]
    r /= r.sum(dim=0) + m.outlier
    mass = r.sum(dim=1)
    moved = (r * off).sum(dim=1) / mass.clamp_min(1)
    variance = (r * off.square_()).sum(dim=1) / mass.clamp_min(1) - moved.square()
    sds = variance.clamp_min(m.least_sd**2).sqrt()
    owner = _owner(m, y.device)
    of_group = torch.zeros(len(GROUPS) + 1, device=y.device).index_add_(0, owner, mass)[owner]
    enough = of_group >= _LEAST_MASS
    fit.means = torch.where(enough, fit.means + moved, fit.means)
    fit.sds = torch.where(enough, sds, fit.sds)
    fit.shares = torch.where(enough, mass / of_group, fit.shares)
    fit.field = _field_of(fit, r[: len(GROUPS)], y, basis)


def _field_of(fit: Fit, r: Tensor, y: Tensor, basis: Tensor) -> Tensor:
    """Coefficients a of f = 1 + a . basis that minimise sum r (y - mu f)^2 / sd^2 over the tissues, lightly damped."""
    means, sds = fit.means[: len(r)], fit.sds[: len(r)]
    weight = (means / sds).square() @ r
    pull = (means / sds.square()) @ r * y - weight
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
