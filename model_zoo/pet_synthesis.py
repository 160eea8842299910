"""Synthesis of amyloid and tau PET from a T1w image: covariates as tokens, scales, samples and the mean.

Images are SUVR divided by the tracer's fixed scale; both tracers come from one network, together, so that a sample's
amyloid and tau belong to one possible patient. The process is ``residual_shift`` from the T1w to the PET. Its noise is
white plus one random number per structure and tracer, painted by the structure's map: the level of a whole cortex is
uncertain, and through white noise alone that level would be visible from the first step on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_zoo import residual_shift
from model_zoo.out_of_distribution import HOLD_ABOVE
from model_zoo.physics.suvr import composite_suvr, compute_suvr
from model_zoo.physics.tracers import COMPOSITES, TRACERS
from model_zoo.structures import CORTEX, COUNT, STRUCTURES, number

__all__ = [
    "COVARIATES",
    "KAPPA",
    "OUTPUT_LIMITS",
    "SCHEDULES",
    "TARGETS",
    "TOKEN_WIDTH",
    "Conditions",
    "Covariates",
    "anatomical_noise",
    "composite_sd",
    "composites",
    "compute_regional_suvr",
    "covariate_tokens",
    "draw_samples",
    "most_likely_structures",
    "normalise_to_own_reference",
    "paint",
    "predict_mean",
    "predict_regional_sd",
    "scale_t1w",
    "size_indices",
    "suvr_scales",
    "tissue_indices",
    "tracers_of",
]

TARGETS = ("amyloid", "tau")
COVARIATES = ("amyloid tracer", "tau tracer", "age", "sex", "e4", "mmse", "ptau217")
TOKEN_WIDTH = len(COVARIATES) + 2
AMYLOID_TRACERS = ("florbetapir", "PiB")
TAU_TRACERS = ("flortaucipir", "MK-6240")

KAPPA = 0.3
SCHEDULES = {
    4: residual_shift.extend_to_one(residual_shift.geometric_schedule(4, delta=0.2)),
    15: residual_shift.extend_to_one(residual_shift.geometric_schedule(15)),
}
"""Schedules eta_t by number of steps. One step is the posterior mean."""

COMMON = 0.8
"""Share of the variance of a structure's level that all target structures of a tracer have in common."""
BETWEEN_TRACERS = 0.5
"""Correlation of that common part between amyloid and tau: about that of the simulator's residuals."""
OFF_TARGET = (
    "cerebral white matter", "lateral ventricles", "third and fourth ventricles", "csf", "cerebellar cortex",
    "cerebellar white matter", "brain stem", "ventral diencephalon",
)  # fmt: skip

OUTPUT_LIMITS = {
    "hold_below": {f"reference factor of {target} PET": 0.9 for target in TARGETS},
    "hold_above": {f"reference factor of {target} PET": 1.1 for target in TARGETS}
    | {"activity outside the brain of amyloid PET": 0.9, "activity outside the brain of tau PET": 1.2}
    | HOLD_ABOVE,
}
"""Limits of the pipeline's measurements. An SUVR image has 1.00 +- 0.05 in its reference region; fluid of MK-6240 scans
shows meninges, too."""


@dataclass(frozen=True)
class Covariates:
    """Covariates of the network; None for unknown. ``ptau217_pg_ml``: in plasma."""

    amyloid_tracer: str | None = "florbetapir"
    tau_tracer: str | None = "flortaucipir"
    age_years: float | None = None
    sex: str | None = None
    e4: int | None = None
    mmse: float | None = None
    ptau217_pg_ml: float | None = None


@dataclass(frozen=True)
class Conditions:
    """Conditions of a batch of images.

    ``y0`` (b, 1, k, j, i): the T1w; ``tokens`` (b, n, width); ``maps`` (b, 23, k, j, i): the fractions of the
    structures in the order of their numbers.
    """

    y0: Tensor
    tokens: Tensor
    maps: Tensor

    def repeat(self, count: int) -> Conditions:
        """Return the conditions with every item ``count`` times, one after the other."""
        return Conditions(*(x.repeat_interleave(count, dim=0) for x in (self.y0, self.tokens, self.maps)))


def suvr_scales(covariates: Covariates) -> tuple[float, float]:
    """Return the SUVR that is 1 in the network's images, for amyloid and tau."""
    amyloid, tau = tracers_of(covariates)
    return TRACERS[amyloid].scale, TRACERS[tau].scale


def covariate_tokens(c: Covariates) -> Tensor:
    """Return the tokens (covariates, width).

    Each holds a one-hot covariate, 1 where its value is known, and the value centred and scaled (0 where unknown).

    Raises ValueError for a tracer, sex or number of alleles that does not exist.
    """

    def choice(value: str | None, of: tuple[str, str]) -> float | None:
        if value is not None and value not in of:
            raise ValueError(f"{value!r} is none of {', '.join(of)}")
        return None if value is None else 2.0 * of.index(value) - 1.0

    if c.e4 not in (None, 0, 1, 2):
        raise ValueError(f"{c.e4} APOE e4 alleles: there are 0, 1 or 2")
    values = (
        choice(c.amyloid_tracer, ("florbetapir", "PiB")),
        choice(c.tau_tracer, ("flortaucipir", "MK-6240")),
        None if c.age_years is None else (c.age_years - 73.0) / 6.0,
        choice(c.sex, ("F", "M")),
        None if c.e4 is None else c.e4 - 0.5,
        None if c.mmse is None else (c.mmse - 27.0) / 3.0,
        None if c.ptau217_pg_ml is None else math.log(max(c.ptau217_pg_ml, 1e-3) / 0.5) / 0.4,
    )
    result = torch.zeros(len(COVARIATES), TOKEN_WIDTH)
    result[:, : len(COVARIATES)] = torch.eye(len(COVARIATES))
    for row, value in enumerate(values):
        if value is not None:
            result[row, -2:] = torch.tensor([1.0, value])
    return result


def scale_t1w(t1w: Tensor, inside: Tensor) -> Tensor:
    """Scale a T1w (k, j, i) to have 0.5 and 99.5 % of the voxels ``inside`` at 0 and 1, clipped; 0 elsewhere."""
    values = t1w[inside].sort().values
    low, high = (float(values[int(share * (len(values) - 1))]) for share in (0.005, 0.995))
    return ((t1w - low) / max(high - low, 1e-6)).clamp(0.0, 1.0) * inside


def paint(maps: Tensor, values: Tensor) -> Tensor:
    """Paint values (b, tracers, structures) on maps (b, structures, k, j, i): (b, tracers, k, j, i)."""
    with torch.autocast(maps.device.type, enabled=False):
        flat = torch.bmm(values.float(), maps.float().flatten(2))
    return flat.reshape(*values.shape[:2], *maps.shape[2:])


def anatomical_noise(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Draw e (b, tracers, k, j, i) of the process: white noise plus a standard normal level per structure."""
    batch, _, *shape = maps.shape
    white = torch.randn((batch, len(TARGETS), *shape), generator=generator, device=generator.device)
    return white.to(maps.device) + paint(maps, _levels(batch, generator).to(maps.device))


def _levels(batch: int, generator: torch.Generator) -> Tensor:
    """Draw standard normal levels (b, tracers, structures): target structures share most, tracers half of that."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    share = torch.full((COUNT,), COMMON, device=generator.device)
    share[[number(name) - 1 for name in OFF_TARGET]] = 0.0
    both, each = normal(batch, 1, 1), normal(batch, len(TARGETS), 1)
    common = math.sqrt(BETWEEN_TRACERS) * both + math.sqrt(1 - BETWEEN_TRACERS) * each
    return share.sqrt() * common + (1 - share).sqrt() * normal(batch, len(TARGETS), COUNT)


def predict_mean(network: nn.Module, c: Conditions) -> Tensor:
    """Return E[x0 | conditions] (b, 2, k, j, i) in one evaluation."""
    return residual_shift.posterior_mean(lambda x, eta: _estimate(network, c, x, eta, quiet=True)[0], _start(c))


def predict_regional_sd(network: nn.Module, c: Conditions, covariates: Covariates) -> Tensor:
    """Return the standard deviation of SUVR by structure (2, COUNT) that the network predicts, for the first item."""
    log_sd = _estimate(network, c, _start(c), 1.0, quiet=True)[1][0]
    return log_sd.float().exp() * torch.tensor(suvr_scales(covariates), device=log_sd.device)[:, None]


def draw_samples(network: nn.Module, c: Conditions, etas: Sequence[float], generator: torch.Generator) -> Tensor:
    """Draw one sample of p(x0 | conditions) per item: (b, 2, k, j, i); len(etas) evaluations.

    The spread of x0 given x_t is added structure by structure, with the sd that the network predicts, at every step but
    the last, whose remaining uncertainty is below the image's noise.
    """
    sd: dict[float, Tensor] = {}

    def f(x: Tensor, eta: float) -> Tensor:
        x0_hat, log_sd = _estimate(network, c, x, eta, quiet=False)
        sd[eta] = log_sd.exp()
        return x0_hat

    def spread(x: Tensor, eta: float) -> Tensor:
        return paint(c.maps, sd[eta] * _levels(len(x), generator).to(x.device))

    return residual_shift.sample(
        f, _start(c), etas, kappa=KAPPA, noise=lambda x: anatomical_noise(c.maps, generator), spread=spread
    )


def _start(c: Conditions) -> Tensor:
    return c.y0.expand(-1, len(TARGETS), -1, -1, -1)


def _estimate(network: nn.Module, c: Conditions, x: Tensor, eta: float, *, quiet: bool) -> tuple[Tensor, Tensor]:
    time = torch.full((len(x),), eta, device=x.device)
    x0_hat, log_sd = network(x, c.y0, time, torch.full_like(time, float(quiet)), c.tokens, c.maps)
    return x0_hat.float(), log_sd


def most_likely_structures(maps: Tensor) -> Tensor:
    """Return the number of the largest fraction of ``maps`` (structures, k, j, i): uint8 (k, j, i), 0 outside."""
    return torch.cat([1 - maps.sum(0, keepdim=True), maps]).argmax(0).to(torch.uint8)


def normalise_to_own_reference(x0: Tensor, c: Covariates, structure: Tensor) -> tuple[Tensor, Tensor]:
    """Return the network's images (b, 2, k, j, i) as SUVR by their own reference regions, and the factors (b, 2).

    A factor, the SUVR of a reference region before, is about one. ``structure``: numbers on the same grid. Raises
    ValueError where a reference region is missing.
    """
    images = (x0 * torch.tensor(suvr_scales(c), device=x0.device)[:, None, None, None]).clamp_min(1e-3)
    factors = torch.stack(
        [torch.stack([_reference(one, structure, c, at) for at, one in enumerate(b)]) for b in images]
    )
    return images / factors[:, :, None, None, None], factors


def _reference(image: Tensor, structure: Tensor, c: Covariates, at: int) -> Tensor:
    return torch.tensor(max(compute_suvr(image, structure, TRACERS[tracers_of(c)[at]]).reference, 0.05))


def tracers_of(c: Covariates) -> tuple[str, str]:
    """Return the amyloid and the tau tracer, the usual ones where unknown."""
    return c.amyloid_tracer or AMYLOID_TRACERS[0], c.tau_tracer or TAU_TRACERS[0]


def compute_regional_suvr(images: Tensor, c: Covariates, structure: Tensor) -> Tensor:
    """Return the SUVR by structure (2, COUNT) of images (2, k, j, i); NaN where a structure is missing."""
    return torch.stack(
        [compute_suvr(one, structure, TRACERS[name]).suvr for one, name in zip(images, tracers_of(c), strict=True)]
    )


def composites(by_structure: Tensor) -> Tensor:
    """Return the composite SUVR of each tracer (..., 2) from SUVR by structure (..., 2, COUNT)."""
    return torch.stack([composite_suvr(by_structure[..., at, :], target) for at, target in enumerate(TARGETS)], dim=-1)


def composite_sd(by_structure: Tensor) -> Tensor:
    """Return the standard deviation of ``composites`` (2,) from those by structure (2, COUNT).

    Structures have the share ``COMMON`` of their variance in common.
    """
    sds = []
    for sd, target in zip(by_structure, TARGETS, strict=True):
        weighted = torch.stack([share * sd[number(name) - 1] for name, share in COMPOSITES[target].items()])
        sds.append((COMMON * weighted.sum().square() + (1 - COMMON) * weighted.square().sum()).sqrt())
    return torch.stack(sds)


def size_indices() -> list[tuple[list[int], float]]:
    """Return structures whose size changes with age and disease: indices into the maps, and typical shares.

    Shares are of the cranium.
    """
    cortex = [n - 1 for n in CORTEX]
    hippocampus = [number("hippocampus") - 1, number("amygdala") - 1]
    return [
        (cortex, 0.29),
        (hippocampus, 0.0058),
        ([number("lateral ventricles") - 1], 0.033),
        ([number("csf") - 1], 0.25),
    ]


def tissue_indices() -> list[list[int]]:
    """Return grey matter, white matter and csf as indices into the maps."""
    names = ("grey matter", "white matter", "csf")
    return [[s.number - 1 for s in STRUCTURES if s.tissue == tissue] for tissue in names]
