"""The clinical sequences with their protocols at 3 T: MPRAGE, T2w, PD, FLAIR and double inversion recovery.

A sequence is a frozen value with the scanner's times; ``signal`` gives the signed signal of tissue (equations: ``mr``).
FLAIR and DIR come with the inversion times that null their tissues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from model_zoo.physics import mr

__all__ = ["DIR_TE_MS", "DIR_TR_MS", "Dir", "Flair", "Mprage", "Sequence", "SpinEcho", "dir_nulls", "flair_null"]

CSF_T1_MS, WHITE_MATTER_T1_MS = 4300.0, 850.0
DIR_TR_MS, DIR_TE_MS = 7500.0, 120.0
"""Protocol of the double inversion recovery image that the synthetic DIR network estimates."""


class Sequence(Protocol):
    """A pulse sequence with its protocol, which turns tissue parameters into signal."""

    def signal(self, p: mr.TissueParameters) -> Tensor:
        """Return the signed signal as a fraction of the equilibrium magnetisation, of the shape of ``p``."""
        ...


@dataclass(frozen=True)
class Mprage:
    """T1w: inversion-prepared gradient echoes, ``n`` of them ``tau_ms`` apart, centred at ``ti_ms``."""

    tr_ms: float = 2300.0
    ti_ms: float = 900.0
    flip_deg: float = 9.0
    tau_ms: float = 7.1
    n: int = 176

    def signal(self, p: mr.TissueParameters) -> Tensor:
        return mr.mprage(p, self.tr_ms, self.ti_ms, math.radians(self.flip_deg), self.tau_ms, self.n)


@dataclass(frozen=True)
class SpinEcho:
    """T2w by default; PD with a short ``te_ms``, T1w spin echo with a short ``tr_ms`` as well."""

    tr_ms: float = 5000.0
    te_ms: float = 90.0

    def signal(self, p: mr.TissueParameters) -> Tensor:
        return mr.spin_echo(p, self.tr_ms, self.te_ms)


@dataclass(frozen=True)
class Flair:
    """Fluid-attenuated inversion recovery; ``te_ms`` is the T2-equivalent echo time of its train."""

    tr_ms: float = 5000.0
    ti_ms: float = 1660.0
    te_ms: float = 120.0

    def signal(self, p: mr.TissueParameters) -> Tensor:
        return mr.flair(p, self.tr_ms, self.ti_ms, self.te_ms)


@dataclass(frozen=True)
class Dir:
    """Double inversion recovery; ``ti1_ms`` from first to second inversion, ``ti2_ms`` from there to excitation."""

    tr_ms: float = 5500.0
    ti1_ms: float = 2078.0
    ti2_ms: float = 515.0
    te_ms: float = 120.0

    def signal(self, p: mr.TissueParameters) -> Tensor:
        return -mr.double_inversion_recovery(p, self.tr_ms, self.ti1_ms, self.ti2_ms, self.te_ms)

    @staticmethod
    def nulling(tr_ms: float, white_matter_t1_ms: float, csf_t1_ms: float = CSF_T1_MS, te_ms: float = 120.0) -> Dir:
        """Return the DIR that nulls this white matter and CSF."""
        return Dir(tr_ms, *dir_nulls(tr_ms, white_matter_t1_ms, csf_t1_ms), te_ms)


def flair_null(tr_ms: float, t1_ms: float = CSF_T1_MS, train_ms: float = 600.0) -> float:
    """Return the inversion time in ms that nulls tissue of ``t1_ms``: T1 ln(2 / (1 + exp(-(TR - train) / T1)))."""
    return t1_ms * math.log(2 / (1 + math.exp(-(tr_ms - train_ms) / t1_ms)))


def dir_nulls(
    tr_ms: float,
    white_matter_t1_ms: float = WHITE_MATTER_T1_MS,
    csf_t1_ms: float = CSF_T1_MS,
    train_ms: float = 600.0,
) -> tuple[float, float]:
    """Return TI1 and TI2 in ms that null white matter and CSF together.

    For a given TI2 the CSF's null gives TI1 in closed form; TI2 is the root of the white matter's signal by bisection.
    """

    def ti1(ti2: float) -> float:
        decay = 2 * math.exp(-ti2 / csf_t1_ms) - 1 + math.exp(-(tr_ms - train_ms) / csf_t1_ms)
        return -csf_t1_ms * math.log(max(decay, 1e-9) / 2) - ti2

    def white_matter(ti2: float) -> float:
        t1 = white_matter_t1_ms
        late = 2 * math.exp(-(ti1(ti2) + ti2) / t1) - math.exp(-(tr_ms - train_ms) / t1)
        return 1 - 2 * math.exp(-ti2 / t1) + late

    low, high = 0.3 * white_matter_t1_ms, math.log(2) * white_matter_t1_ms
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if white_matter(middle) < 0 else (low, middle)
    return ti1(high), high
