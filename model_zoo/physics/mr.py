"""MR signal equations and the relaxation times and proton densities of tissue.

Times in milliseconds, angles in radians, signals as fractions of the equilibrium magnetisation times PD. All functions
broadcast over tensors.

Equations: spoiled gradient echo (Ernst), spin echo, inversion recovery and double inversion recovery after a saturating
echo train, and MPRAGE as the fixed point of its affine cycle (model specification, section 8.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model_zoo.physics.tissues import TISSUES

__all__ = [
    "TISSUE_TABLE",
    "TissueParameters",
    "double_inversion_recovery",
    "flair",
    "look_up",
    "mprage",
    "spgr",
    "spin_echo",
]

TISSUE_TABLE: dict[str, tuple[float, float, float]] = {
    "air": (1000.0, 50.0, 0.0),
    "white matter": (850.0, 70.0, 0.70),
    "cortex": (1350.0, 90.0, 0.82),
    "cerebellar cortex": (1300.0, 88.0, 0.82),
    "thalamus": (1150.0, 78.0, 0.78),
    "caudate": (1250.0, 80.0, 0.81),
    "putamen": (1200.0, 72.0, 0.80),
    "pallidum": (950.0, 55.0, 0.75),
    "hippocampus": (1350.0, 92.0, 0.82),
    "csf": (4300.0, 1800.0, 1.0),
    "lesion": (1450.0, 140.0, 0.87),
    "brain stem": (950.0, 70.0, 0.73),
    "bone": (900.0, 12.0, 0.15),
    "fat": (380.0, 70.0, 0.90),
    "muscle": (1400.0, 35.0, 0.75),
    "marrow": (550.0, 50.0, 0.60),
    "eye": (4000.0, 1000.0, 1.0),
    "vessel": (1650.0, 150.0, 0.90),
}
"""T1 ms, T2 ms, PD at 3 T. Brain values: model specification 8.2; extra-cerebral ones are plausible defaults."""


@dataclass(frozen=True)
class TissueParameters:
    """T1, T2 and proton density, all of one shape: (classes,) in the order of ``TISSUES``; (classes, structures)
    where a tissue differs by region; or (k, j, i), maps of one subject."""

    t1_ms: Tensor
    t2_ms: Tensor
    pd: Tensor

    @staticmethod
    def table() -> TissueParameters:
        """Return the values of ``TISSUE_TABLE``, (classes,)."""
        t1, t2, pd = torch.tensor([TISSUE_TABLE[name] for name in TISSUES]).T
        return TissueParameters(t1, t2, pd)

    def randomise(self, generator: torch.Generator, spread: float = 0.12) -> TissueParameters:
        """Multiply every value by exp(spread * N(0, 1)), and all T1 also by one factor for the field strength."""
        field = float(torch.empty(1).uniform_(0.35, 1.1, generator=generator))
        draw = torch.randn((3, len(self.pd)), generator=generator).mul(spread).exp()
        return TissueParameters(self.t1_ms * field * draw[0], self.t2_ms * draw[1], (self.pd * draw[2]).clamp(max=1.1))

    def draw_regional(
        self, generator: torch.Generator, structures: int, *, subject_spread: float = 0.08, region_spread: float = 0.03
    ) -> TissueParameters:
        """Draw one subject's values by tissue and structure, each (classes, structures), on the generator's device.

        T1, T2 and PD of (classes,) times exp(subject_spread N(0, 1)), one draw for all tissues (field, temperature, age
        move them together), times exp(region_spread N(0, 1)) per tissue and again per region of it; fluid is the same
        everywhere.
        """
        device = generator.device
        table = torch.stack([self.t1_ms, self.t2_ms, self.pd]).to(device)[:, :, None]
        subject = torch.randn((3, 1, 1), generator=generator, device=device)
        tissue = torch.randn(table.shape, generator=generator, device=device)
        region = torch.randn((*table.shape[:2], structures), generator=generator, device=device)
        region[:, list(TISSUES).index("csf")] = 0.0
        t1, t2, pd = table * torch.exp(subject_spread * subject + region_spread * (tissue + region))
        return TissueParameters(t1, t2, pd.clamp(max=1.1))

    def at(self, tissue: Tensor, structure: Tensor) -> TissueParameters:
        """Return maps (k, j, i) of values (classes, structures): ``tissue`` and ``structure`` are labels (k, j, i)."""
        t1, t2, pd = (look_up(values, tissue, structure) for values in (self.t1_ms, self.t2_ms, self.pd))
        return TissueParameters(t1, t2, pd)


def look_up(values: Tensor, tissue: Tensor, structure: Tensor) -> Tensor:
    """Return ``values[tissue, structure]`` of a table (classes, structures) for two label maps (k, j, i)."""
    code = tissue.to(torch.int32) * values.shape[1] + structure
    return torch.index_select(values.flatten(), 0, code.flatten()).reshape(tissue.shape)


def spgr(p: TissueParameters, tr_ms: float, te_ms: float, flip_rad: float) -> Tensor:
    """Return the signal of a spoiled gradient echo: PD sin(a) (1 - E1) / (1 - E1 cos(a)) exp(-TE / T2)."""
    e1 = torch.exp(-tr_ms / p.t1_ms)
    return p.pd * math.sin(flip_rad) * (1 - e1) / (1 - e1 * math.cos(flip_rad)) * torch.exp(-te_ms / p.t2_ms)


def spin_echo(p: TissueParameters, tr_ms: float, te_ms: float) -> Tensor:
    """Return the signal of a spin echo: PD (1 - exp(-TR / T1)) exp(-TE / T2)."""
    return p.pd * (1 - torch.exp(-tr_ms / p.t1_ms)) * torch.exp(-te_ms / p.t2_ms)


def flair(p: TissueParameters, tr_ms: float, ti_ms: float, te_ms: float, train_ms: float = 600.0) -> Tensor:
    """Return the signed signal of inversion recovery after an echo train of ``train_ms`` that leaves Mz = 0:

    PD [1 - 2 exp(-TI / T1) + exp(-(TR - train) / T1)] exp(-TE / T2).
    """
    mz = 1 - 2 * torch.exp(-ti_ms / p.t1_ms) + torch.exp(-(tr_ms - train_ms) / p.t1_ms)
    return p.pd * mz * torch.exp(-te_ms / p.t2_ms)


def double_inversion_recovery(
    p: TissueParameters, tr_ms: float, ti1_ms: float, ti2_ms: float, te_ms: float, train_ms: float = 600.0
) -> Tensor:
    """Return the signed signal of double inversion recovery:

    PD [1 - 2 exp(-TI2 / T1) + 2 exp(-(TI1 + TI2) / T1) - exp(-(TR - train) / T1)] exp(-TE / T2).

    TI1 runs from the first to the second inversion, TI2 from there to the excitation.
    """
    mz = (
        1
        - 2 * torch.exp(-ti2_ms / p.t1_ms)
        + 2 * torch.exp(-(ti1_ms + ti2_ms) / p.t1_ms)
        - torch.exp(-(tr_ms - train_ms) / p.t1_ms)
    )
    return p.pd * mz * torch.exp(-te_ms / p.t2_ms)


def mprage(p: TissueParameters, tr_ms: float, ti_ms: float, flip_rad: float, tau_ms: float, n: int) -> Tensor:
    """Return the signed signal of MPRAGE at the centre of its readout train.

    One cycle (invert, recover TI - n tau / 2, n times [cos(a), recover tau], recover the rest of TR) is the affine map
    Mz -> g Mz + h; its fixed point h / (1 - g) is the steady state.
    """
    before_train, recovery = ti_ms - n * tau_ms / 2, tr_ms - ti_ms - n * tau_ms / 2
    e_a, e_t, e_d = (torch.exp(-t / p.t1_ms) for t in (before_train, tau_ms, recovery))
    c = math.cos(flip_rad)

    def train(gain: Tensor, offset: Tensor, count: int) -> tuple[Tensor, Tensor]:
        factor = (c * e_t) ** count
        return gain * factor, offset * factor + (1 - e_t) * (1 - factor) / (1 - c * e_t)

    gain, offset = train(-e_a, 1 - e_a, n)
    steady = (offset * e_d + 1 - e_d) / (1 - gain * e_d)
    at_centre = train(-e_a * steady, 1 - e_a, n // 2)
    return p.pd * (at_centre[0] + at_centre[1]) * math.sin(flip_rad)
