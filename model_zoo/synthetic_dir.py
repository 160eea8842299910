"""From FLAIR (and T1w) to double inversion recovery: scales, what the network's channels mean, and its uncertainty.

Inputs are in units of the normal-appearing white matter's median, the output DIR in units of grey matter (white matter
and CSF are nulled): 1 is normal cortex. One network predicts the DIR directly, its uncertainty and the lesions, and
physical maps from which the signal equation renders a DIR of any inversion times (model specification, 1.3 and 7.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.networks.volume_unet import dropout_active
from model_zoo.simulate.mr import TissueParameters
from model_zoo.simulate.sequences import Sequence

__all__ = [
    "CHANNELS",
    "CLIP",
    "Output",
    "SyntheticDir",
    "decoded",
    "inputs",
    "log_maps",
    "predict",
    "rendered",
    "scaled",
    "white_matter_level",
]

CLIP = 4.0
CHANNELS = ("dir", "log_b", "log_pd", "log_t1_s", "log_t2_100ms", "lesion")
LOG_B = (-5.0, 1.0)


@dataclass(frozen=True)
class Output:
    """What one pass of the network says, each (b, 1, k, j, i) but ``maps`` (b, 3, ...).

    ``dir``: grey matter is 1; ``log_b``: logarithm of the Laplace scale of its error; ``maps``: log PD, log (T1 / 1 s),
    log (T2 / 100 ms); ``lesion``: logit.
    """

    dir: Tensor
    log_b: Tensor
    maps: Tensor
    lesion: Tensor


@dataclass(frozen=True)
class SyntheticDir:
    """The prediction for one subject, each float (k, j, i).

    ``dir``: mean over passes; ``sd``: sqrt(variance over passes + 2 b^2), the epistemic and the aleatoric part;
    ``epistemic``: the first part's root; ``lesion``: probability; ``maps`` (3, k, j, i).
    """

    dir: Tensor
    sd: Tensor
    epistemic: Tensor
    lesion: Tensor
    maps: Tensor


def white_matter_level(image: Tensor, white_matter: Tensor) -> float:
    """Median of ``image`` in the mask of normal-appearing white matter. Raises ValueError where that says nothing."""
    values = image[white_matter]
    level = float(values.median()) if values.numel() else 0.0
    if not level > 0:
        raise ValueError(f"the white matter of {values.numel()} voxels has a median of {level}: no scale")
    return level


def scaled(image: Tensor, level: float) -> Tensor:
    """``image`` in units of ``level``, clipped to [0, 4]."""
    return (image / level).clamp(0.0, CLIP)


def inputs(flair: Tensor, t1w: Tensor | None) -> Tensor:
    """Channels (b, 3, k, j, i) from scaled volumes (b, k, j, i): FLAIR, T1w (0 where missing), whether there is one.

    Images enter as 3 (x - 1): white matter at 0, grey matter and lesions about 1 away from it.
    """
    if t1w is None:
        return torch.stack([3 * (flair - 1), torch.zeros_like(flair), torch.zeros_like(flair)], dim=1)
    return torch.stack([3 * (flair - 1), 3 * (t1w - 1), torch.ones_like(flair)], dim=1)


def decoded(channels: Tensor) -> Output:
    """The network's (b, 6, k, j, i) as what it means."""
    y = channels.float()
    return Output(y[:, 0:1], y[:, 1:2].clamp(*LOG_B), y[:, 2:5].clamp(-4, 4), y[:, 5:6])


def log_maps(p: TissueParameters) -> Tensor:
    """log PD, log (T1 / 1 s), log (T2 / 100 ms), stacked first; values below 0.01 count as 0.01."""
    values = (p.pd, p.t1_ms / 1000, p.t2_ms / 100)
    return torch.stack([v.clamp(min=0.01).log() for v in values])


def rendered(maps: Tensor, sequence: Sequence) -> Tensor:
    """Magnitude of ``sequence`` on log maps (3, ...): its signal equation, as a fraction of the magnetisation."""
    pd, t1_s, t2 = maps.exp()
    return sequence.signal(TissueParameters(1000 * t1_s, 100 * t2, pd)).abs()


@torch.no_grad()
def predict(
    network: nn.Module,
    flair: Tensor,
    t1w: Tensor | None,
    *,
    passes: int = 20,
    turned: bool = False,
    generator: torch.Generator | None = None,
    bf16: bool = True,
) -> SyntheticDir:
    """Mean and spread over ``passes`` with dropout active and all else in evaluation mode (Gal & Ghahramani 2016).

    ``flair`` and ``t1w``: scaled volumes (k, j, i) of one grid. ``turned``: each pass sees another flip (test-time
    augmentation). Variances by Welford's recurrence with 1 / (N - 1). One pass is without dropout, its epistemic sd 0.
    ``generator``: seeds the dropout. Raises ValueError unless ``passes`` >= 1.
    """
    if passes < 1:
        raise ValueError(f"{passes} passes")
    x, crop = _padded(inputs(flair[None], None if t1w is None else t1w[None]), int(getattr(network, "stride", 1)))
    seed = int(torch.randint(2**62, (1,), generator=generator or torch.Generator().manual_seed(0)))
    network.eval()
    dropout_active(network, passes > 1)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        found = _gathered(_passes(network, x, passes, turned, bf16), passes)
    dropout_active(network, False)
    k, j, i = crop
    return SyntheticDir(*(v[..., k, j, i] for v in found))


def _passes(network: nn.Module, x: Tensor, passes: int, turned: bool, bf16: bool) -> Iterator[Output]:
    flips = [axes for n in range(4) for axes in combinations((2, 3, 4), n)]
    for n in range(passes):
        axes = flips[n % len(flips)] if turned else ()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            y = network(x.flip(axes))
        yield decoded(y.flip(axes))


def _gathered(outputs: Iterator[Output], passes: int) -> tuple[Tensor, ...]:
    """Mean DIR, total sd, epistemic sd, lesion probability and mean maps of the passes."""
    dir_ = m2 = b2 = lesion = maps = torch.zeros(())
    for n, out in enumerate(outputs, start=1):
        y = out.dir[0, 0].clamp(0.0, CLIP)
        delta = y - dir_
        dir_ = dir_ + delta / n
        m2 = m2 + delta * (y - dir_)
        b2 = b2 + (2 * out.log_b[0, 0].exp().square() - b2) / n
        lesion = lesion + (torch.sigmoid(out.lesion[0, 0]) - lesion) / n
        maps = maps + (out.maps[0] - maps) / n
    variance = m2 / max(passes - 1, 1)
    return dir_, torch.sqrt(variance + b2), torch.sqrt(variance), lesion, maps


def _padded(x: Tensor, stride: int) -> tuple[Tensor, tuple[slice, slice, slice]]:
    """``x`` with zeros up to multiples of ``stride`` behind, and where it lies in that."""
    short = [math.ceil(n / stride) * stride - n for n in x.shape[2:]]
    padding = [p for s in reversed(short) for p in (0, s)]
    k, j, i = (slice(0, n) for n in x.shape[2:])
    return functional.pad(x, padding), (k, j, i)
