"""A Gaussian mixture fitted to an image, whose prior is a network's class probabilities for the same image.

p(class | y, place) ~ p_network(class | place)^a [ N(y / f(place); mu_g, sd_g) + outlier ], where g is the class's group
of like intensity and f a smooth multiplicative field. The image itself determines the brightness of each tissue,
whatever its contrast, and the edges; the network determines the structure to which a tissue belongs. After Van Leemput
et al., IEEE Trans. Med. Imaging 18, 1999 (mixture and field), and Puonti et al., NeuroImage 143, 2016 (groups of
structures). The outlier density leaves lesions, whose intensity fits no group, to the network's probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from model_zoo.structures import COUNT, number

__all__ = [
    "GROUPS",
    "LEAST_PRIOR",
    "Fit",
    "Mixture",
    "bounding_box",
    "class_groups",
    "compute_densities",
    "compute_posterior",
    "fit_mixture",
    "multiply_by_densities",
]

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
"""Groups of structures of like intensity. Background follows them, with several Gaussians."""


LEAST_PRIOR = 1e-7
NEAR = 0.98
"""Probability of background below which a voxel may be a structure; the mixture is fitted to these voxels."""
_FEWEST_VOXELS = 1000
_LEAST_MASS = 20
"""Number of voxels of a group below which its Gaussians stay unchanged."""
_SQRT_TWO_PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Mixture:
    """Settings of the mixture; intensities are in [0, 1].

    ``outlier``: density of every class at any intensity; ``order``: order of the field's polynomial; ``components``:
    number of Gaussians of the background; ``least_sd``: smallest standard deviation of a Gaussian; ``thin``: step of
    the voxels along each axis to which it is fitted.
    """

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
    """Means, standard deviations and weights of the Gaussians, each (gaussian,), and coefficients of the field.

    The Gaussians are one of each group, then those of the background.
    """

    means: Tensor
    sds: Tensor
    shares: Tensor
    field: Tensor


def bounding_box(background: Tensor, multiple: int) -> tuple[slice, slice, slice]:
    """Return the box outside of which ``background``, a probability (k, j, i), is near one; the whole where all is.

    Its size along each axis is a multiple of ``multiple`` voxels.
    """
    near = background < NEAR
    box = []
    for axis, size in enumerate(near.shape):
        inside = torch.nonzero(near.movedim(axis, 0).flatten(1).any(dim=1))
        first, end = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, size)
        wide = min(-(-(end - first) // multiple) * multiple, size)
        first = min(max((first + end - wide) // 2, 0), size - wide)
        box.append(slice(first, first + wide))
    return (box[0], box[1], box[2])


def fit_mixture(p: Tensor, image: Tensor, mixture: Mixture | None = None) -> Fit | None:
    """Fit the mixture by expectation maximisation to every ``thin``-th voxel; None where ``p`` holds hardly any brain.

    ``p`` (class, k, j, i): class probabilities, the prior; ``image`` (k, j, i) in [0, 1], on the same grid. The result
    is deterministic.
    """
    m = mixture or Mixture()
    prior = p[(slice(None), *_subsampling(m))].flatten(1).clamp_min(0) + LEAST_PRIOR
    near = prior[0] < NEAR * prior.sum(dim=0)
    if float((1 - prior[0]).clamp_min(0).sum()) * m.thin**3 < _FEWEST_VOXELS:
        return None
    prior, y = prior[:, near], image[_subsampling(m)].flatten()[near]
    groups = prior.new_zeros(len(GROUPS) + 1, prior.shape[1]).index_add_(0, class_groups(prior.device), prior)
    groups = groups / groups.sum(dim=0)
    terms = _field_basis(image.shape, m.order, image.device)
    basis = torch.stack([term[_subsampling(m)].flatten()[near] for term in terms])
    fit = _initial_fit(groups, y, m, len(basis))
    of_gaussians = groups[_gaussian_groups(m, prior.device)]
    for _ in range(m.iterations):
        _update_fit(fit, of_gaussians, y, basis, m)
    return fit


def compute_posterior(p: Tensor, image: Tensor, mixture: Mixture | None = None) -> Tensor:
    """Return the posterior class probabilities of the shape of their prior ``p`` (class, k, j, i).

    ``image`` (k, j, i) in [0, 1]. Where ``p`` holds hardly any brain, the posterior is ``p``.
    """
    m = mixture or Mixture()
    return multiply_by_densities(p.clone(), compute_densities(fit_mixture(p, image, m), image, m))


def multiply_by_densities(p: Tensor, densities: Tensor) -> Tensor:
    """Multiply class probabilities ``p`` (class, k, j, i) by ``densities`` (group, k, j, i) in place, and normalise."""
    p.clamp_min_(0).add_(LEAST_PRIOR)
    for each, g in zip(p, class_groups().tolist(), strict=True):
        each.mul_(densities[g])
    return p.div_(p.sum(dim=0))


def compute_densities(fit: Fit | None, image: Tensor, mixture: Mixture) -> Tensor:
    """Return the density of every group, outliers included, at the intensities of ``image``: (groups, k, j, i).

    Without a ``fit`` all densities are one. The grid of ``image`` (k, j, i) may be another than that of the fit, of the
    same extent.
    """
    if fit is None:
        return image.new_ones(len(GROUPS) + 1, *image.shape)
    corrected = image / _field(fit.field, image.shape, mixture.order)
    densities = torch.full((len(GROUPS) + 1, *image.shape), mixture.outlier, device=image.device)
    gaussians = torch.stack([fit.means, fit.sds, fit.shares]).T.tolist()
    for g, (mean, sd, share) in zip(_gaussian_groups(mixture).tolist(), gaussians, strict=True):
        densities[g] += torch.exp(((corrected - mean) / sd).square_().mul_(-0.5)).mul_(share / (_SQRT_TWO_PI * sd))
    return densities


def class_groups(device: torch.device | str = "cpu") -> Tensor:
    """Return the group of each class; background is the last group."""
    groups = torch.full((COUNT + 1,), len(GROUPS), device=device)
    for g, names in enumerate(GROUPS):
        groups[[number(name) for name in names]] = g
    return groups


def _subsampling(m: Mixture) -> tuple[slice, slice, slice]:
    return (slice(m.thin // 2, None, m.thin),) * 3


def _gaussian_groups(m: Mixture, device: torch.device | str = "cpu") -> Tensor:
    """Return the group of each Gaussian."""
    groups = len(GROUPS) + 1
    return torch.arange(groups - 1 + m.components, device=device).clamp_(max=groups - 1)


def _initial_fit(groups: Tensor, y: Tensor, m: Mixture, terms: int) -> Fit:
    group, mass = _gaussian_groups(m, y.device), groups.sum(dim=1)
    means = groups @ y / mass
    sds = ((groups * (y - means[:, None]) ** 2).sum(dim=1) / mass).sqrt().clamp_min(m.least_sd)
    spread, share = y.new_zeros(len(group)), y.new_ones(len(group))
    if m.components > 1:
        spread[len(GROUPS) :] = torch.linspace(-1.2, 1.2, m.components, device=y.device)
    share[len(GROUPS) :] = 1 / m.components
    return Fit(means[group] + spread * sds[group], sds[group] * share, share, y.new_zeros(terms))


def _update_fit(fit: Fit, prior: Tensor, y: Tensor, basis: Tensor, m: Mixture) -> None:
    """Do one step of expectation conditional maximisation: expectation, Gaussians, then the field.

    ``prior`` (gaussian, voxel), ``y`` (voxel,), ``basis`` (term, voxel).
    """
    off = y / (1 + fit.field @ basis).clamp(0.5, 2) - fit.means[:, None]
    r = torch.exp((off / fit.sds[:, None]).square_().mul_(-0.5))
    r *= prior * (fit.shares / (_SQRT_TWO_PI * fit.sds))[:, None]
    r /= r.sum(dim=0) + m.outlier
    mass = r.sum(dim=1)
    moved = (r * off).sum(dim=1) / mass.clamp_min(1)
    variance = (r * off.square_()).sum(dim=1) / mass.clamp_min(1) - moved.square()
    sds = variance.clamp_min(m.least_sd**2).sqrt()
    group = _gaussian_groups(m, y.device)
    of_group = torch.zeros(len(GROUPS) + 1, device=y.device).index_add_(0, group, mass)[group]
    enough = of_group >= _LEAST_MASS
    fit.means = torch.where(enough, fit.means + moved, fit.means)
    fit.sds = torch.where(enough, sds, fit.sds)
    fit.shares = torch.where(enough, mass / of_group, fit.shares)
    fit.field = _solve_field(fit, r[: len(GROUPS)], y, basis)


def _solve_field(fit: Fit, r: Tensor, y: Tensor, basis: Tensor) -> Tensor:
    """Return the coefficients a of f = 1 + a . basis that minimise sum r (y - mu f)^2 / sd^2, lightly damped."""
    means, sds = fit.means[: len(r)], fit.sds[: len(r)]
    weight = (means / sds).square() @ r
    pull = (means / sds.square()) @ r * y - weight
    normal = (basis * weight) @ basis.T
    damping = 1e-3 * weight.sum() * torch.eye(len(basis), device=y.device)
    coefficients: Tensor = torch.linalg.solve(normal + damping, basis @ pull)
    return coefficients


def _field_basis(shape: torch.Size, order: int, device: torch.device) -> list[Tensor]:
    """Return products of Legendre polynomials of the coordinates in [-1, 1], of total order 1 to ``order``."""
    axes = []
    for axis, n in enumerate(shape):
        x = 2 * (torch.arange(n, device=device) + 0.5) / n - 1
        powers = [torch.ones_like(x), x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2]
        axes.append([each.view([-1 if a == axis else 1 for a in range(3)]) for each in powers])
    orders = [o for o in product(range(order + 1), repeat=3) if 1 <= sum(o) <= order]
    return [(axes[0][a] * axes[1][b] * axes[2][c]).expand(shape) for a, b, c in orders]


def _field(coefficients: Tensor, shape: torch.Size, order: int) -> Tensor:
    field = torch.ones(shape, device=coefficients.device)
    for a, each in zip(coefficients, _field_basis(shape, order, coefficients.device), strict=True):
        field += a * each
    return field.clamp_(0.5, 2)
