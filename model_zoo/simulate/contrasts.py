"""Random MR contrasts and protocols, with which networks learn to read any sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model_zoo.physics.mr import TissueParameters, flair, mprage, spgr, spin_echo
from model_zoo.physics.sequences import Dir, Flair, Mprage, Sequence, SpinEcho, dir_nulls, flair_null
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate.acquisition import uniform

__all__ = ["draw_contrast", "draw_sequence"]


def draw_contrast(generator: torch.Generator) -> Tensor:
    """Return the magnitude signal per tissue class (classes,) of a random sequence with random tissue, air zero,
    maximum 1.
    """

    def uniform(low: float, high: float) -> float:
        return float(torch.empty(1).uniform_(low, high, generator=generator))

    p = TissueParameters.table().randomise(generator)
    kind = int(torch.randint(6, (1,), generator=generator))
    if kind == 0:
        signal = spgr(p, uniform(6, 300), uniform(2, 15), math.radians(uniform(6, 80)))
    elif kind == 1:
        signal = spin_echo(p, uniform(350, 900), uniform(8, 25))
    elif kind == 2:
        signal = spin_echo(p, uniform(1800, 8000), uniform(20, 130))
    elif kind == 3:
        tr_ms = uniform(4000, 11000)
        signal = flair(p, tr_ms, uniform(0.24, 0.36) * tr_ms, uniform(60, 140))
    elif kind == 4:
        signal = mprage(p, uniform(1900, 2600), uniform(800, 1100), math.radians(uniform(7, 12)), 7.1, 176)
    else:
        signal = torch.rand(len(p.pd), generator=generator)
        signal[0] = 0.0
    magnitude = signal.abs()
    if uniform(0, 1) < 0.5:  # fat suppression, more or less complete
        for name in ("fat", "marrow"):
            magnitude[list(TISSUES).index(name)] *= uniform(0.1, 0.7)
    return magnitude / magnitude.max().clamp(min=1e-6)


def draw_sequence(name: str, generator: torch.Generator) -> Sequence:
    """Return a protocol of the range met at 3 T: ``name`` is "mprage", "t2w", "pd", "flair" or "dir".

    Inversion times of FLAIR and DIR lie within 3 % of the nulls for the nominal CSF and white matter.
    Raises ValueError for another name.
    """

    def draw(low: float, high: float) -> float:
        return uniform(generator, low, high)

    if name == "mprage":
        return Mprage(draw(1900, 2500), draw(850, 1100), draw(7, 11), draw(6.5, 7.5), int(draw(144, 192)))
    if name == "t2w":
        return SpinEcho(draw(3000, 8000), draw(75, 120))
    if name == "pd":
        return SpinEcho(draw(2200, 5000), draw(8, 25))
    if name == "flair":
        tr_ms = draw(4800, 11000)
        return Flair(tr_ms, flair_null(tr_ms) * draw(0.97, 1.03), draw(90, 140))
    if name == "dir":
        tr_ms = draw(5000, 11000)
        ti1_ms, ti2_ms = dir_nulls(tr_ms)
        return Dir(tr_ms, ti1_ms * draw(0.97, 1.03), ti2_ms * draw(0.97, 1.03), draw(90, 140))
    raise ValueError(f"no sequence {name!r}: mprage, t2w, pd, flair or dir")
