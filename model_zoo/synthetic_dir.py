"""From FLAIR (and T1w) to double inversion recovery: scales, what the network's channels mean, and its uncertainty.

Inputs are in units of the normal-appearing white matter's median, the output DIR in units of grey matter (white matter
and CSF are nulled): 1 is normal cortex. What a DIR shows of each tissue is known before it is acquired, so that the
tissues of the very examination say how its FLAIR and T1w, of whatever protocol, become DIR: the quadratic polynomial
that brings them there is the first guess. (With a T1w a robust one, for no segmentation is right everywhere. The
network is taught with structures that are nearly right, where least squares are as good.) One network, which is told
how bright the tissues are, predicts what is to be added to it, its uncertainty and the lesions, and physical maps from
which the signal equation renders a DIR of any inversion times (model specification, 1.3 and 7.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import bias_field
from model_zoo.networks.volume_unet import dropout_active
from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.sequences import DIR_TE_MS, DIR_TR_MS, Dir, Sequence
from model_zoo.physics.tissues import tissue_of
from model_zoo.precision import autocast
from model_zoo.structures import STRUCTURES, number

__all__ = [
    "CHANNELS",
    "CLIP",
    "EMBEDDING",
    "Output",
    "SyntheticDir",
    "decoded",
    "first_guess",
    "inputs",
    "levels",
    "log_maps",
    "predict",
    "prepared",
    "rendered",
    "scaled",
    "white_matter_level",
]

CLIP = 4.0
CHANNELS = ("dir", "log_b", "log_pd", "log_t1_s", "log_t2_100ms", "lesion")
LOG_B = (-5.0, 1.0)
FEWEST_VOXELS = 1000
THIN, ROUNDS, FAR = 5, 9, 0.3
"""Of the robust guess: every how many-th voxel it is fitted to, how often, and how far off a voxel weighs half.

Chosen on the validation subjects with the structures that a model finds: 22.5 dB instead of 21.5 by least squares."""
TISSUES_TOLD = (
    ("frontal cortex", "temporal cortex", "parietal cortex", "occipital cortex"),
    ("thalamus",), ("putamen",), ("caudate",), ("hippocampus", "amygdala"), ("brain stem",), ("cerebellar cortex",),
    ("cerebellar white matter",), ("lateral ventricles",), ("csf",),
)  # fmt: skip
"""Of which the network is told how bright they are."""
EMBEDDING = 2 * len(TISSUES_TOLD)
FEWEST_TOLD = 20


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


def prepared(image: Tensor, structure: Tensor, spacing_mm: float = 1.0) -> Tensor:
    """``image`` (k, j, i) without its bias field, in units of white matter, clipped, zero outside all structures.

    ``structure``: numbers of ``model_zoo.structures`` on the same isotropic voxels. Raises ValueError without white
    matter.
    """
    inside = structure > 0
    corrected = torch.where(inside, image, 0.0) / bias_field.estimate_bias_field(image, structure, spacing_mm)
    return scaled(corrected, white_matter_level(corrected, structure == number("cerebral white matter")))


def first_guess(flair: Tensor, t1w: Tensor | None, structure: Tensor, *, robust: bool = False) -> Tensor:
    """The quadratic polynomial of FLAIR (and T1w) nearest to what a DIR shows of the tissues, in [0, 2].

    Scaled volumes (k, j, i); ``structure``: numbers of ``model_zoo.structures``, 0 outside. Zero where there is no
    brain to speak of. Nearest by least squares or, ``robust``, by Cauchy's density (least squares of new weights,
    ``ROUNDS`` times): lesions and voxels of a wrong structure are far from what their tissue shows, and then count
    little.
    """
    f, inside = flair.double(), structure > 0
    terms = [torch.ones_like(f), f, f * f]
    if t1w is not None:
        t = t1w.double()
        terms += [t, t * t, f * t]
    if int(inside.sum()) < FEWEST_VOXELS:
        return torch.zeros_like(flair)
    thin = THIN if robust else 1
    A = torch.stack([term[inside][::thin] for term in terms], dim=1)
    shown = _shown(structure.device)[structure[inside][::thin].long()]
    found = _least_squares(A, shown, torch.ones_like(shown))
    for _ in range(ROUNDS if robust else 0):
        found = _least_squares(A, shown, 1 / (1 + ((A @ found - shown) / FAR) ** 2))
    guess = sum((w * term for w, term in zip(found, terms, strict=True)), torch.zeros_like(f))
    return guess.clamp(0.0, 2.0).to(flair.dtype)


def _least_squares(A: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The x that minimises sum weight (A x - y)^2, lightly damped."""
    weighted = A.T * weight
    normal = weighted @ A / len(A) + 1e-6 * torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    found: Tensor = torch.linalg.solve(normal, weighted @ y / len(A))
    return found


def levels(flair: Tensor, t1w: Tensor | None, structure: Tensor) -> Tensor:
    """How bright the examination's own tissues are, which tells the network of its protocols: float (2 tissues,).

    The medians of FLAIR and of T1w in each of ``TISSUES_TOLD``, white matter being 1, less 1; 0 where there is none.
    """
    found = []
    for image in (flair, t1w):
        for names in TISSUES_TOLD:
            here = torch.isin(structure, torch.tensor([number(name) for name in names]).to(structure))
            if image is None or int(here.sum()) < FEWEST_TOLD:
                found.append(flair.new_zeros(()))
            else:
                found.append(image[here].float().median() - 1)
    return torch.stack(found)


def _shown(device: torch.device) -> Tensor:
    """What DIR that nulls white matter and CSF shows of each structure, grey matter being 1; by structure number."""
    p = TissueParameters.table()
    white, csf, grey = (tissue_of(name) for name in ("cerebral white matter", "csf", "frontal cortex"))
    signal = Dir.nulling(DIR_TR_MS, float(p.t1_ms[white]), float(p.t1_ms[csf]), DIR_TE_MS).signal(p).abs()
    found = [0.0] + [float(signal[tissue_of(s.name)] / signal[grey]) for s in STRUCTURES]
    return torch.tensor(found, dtype=torch.float64, device=device)


def inputs(flair: Tensor, t1w: Tensor | None, guess: Tensor) -> Tensor:
    """Channels (b, 4, k, j, i) from scaled volumes (b, k, j, i): FLAIR, T1w (0 where missing), whether there is one,
    and the first guess.

    Images enter as 3 (x - 1): white matter at 0, grey matter and lesions about 1 away from it.
    """
    second = torch.zeros_like(flair) if t1w is None else 3 * (t1w - 1)
    present = torch.full_like(flair, 0.0 if t1w is None else 1.0)
    return torch.stack([3 * (flair - 1), second, present, guess], dim=1)


def decoded(channels: Tensor, x: Tensor) -> Output:
    """The network's (b, 6, k, j, i) for ``x``, the ``inputs``, as what it means."""
    y = channels.float()
    return Output(y[:, 0:1] + x[:, 3:4], y[:, 1:2].clamp(*LOG_B), y[:, 2:5].clamp(-4, 4), y[:, 5:6])


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
    structure: Tensor,
    *,
    passes: int = 20,
    turned: bool = False,
    generator: torch.Generator | None = None,
    bf16: bool = True,
) -> SyntheticDir:
    """Mean and spread over ``passes`` with dropout active and all else in evaluation mode (Gal & Ghahramani 2016).

    ``flair`` and ``t1w``: scaled volumes (k, j, i) of one grid, ``structure`` its anatomy. ``turned``: each pass sees
    another flip (test-time augmentation). Variances by Welford's recurrence with 1 / (N - 1). One pass is without
    dropout, its epistemic sd 0. ``generator``: seeds the dropout. Raises ValueError unless ``passes`` >= 1.
    """
    if passes < 1:
        raise ValueError(f"{passes} passes")
    guess = first_guess(flair, t1w, structure, robust=t1w is not None)
    x, crop = _padded(
        inputs(flair[None], None if t1w is None else t1w[None], guess[None]), int(getattr(network, "stride", 1))
    )
    told = levels(flair, t1w, structure)[None]
    seed = int(torch.randint(2**62, (1,), generator=generator or torch.Generator().manual_seed(0)))
    network.eval()
    dropout_active(network, passes > 1)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        found = _gathered(_passes(network, x, told, passes, turned, bf16), passes)
    dropout_active(network, False)
    k, j, i = crop
    return SyntheticDir(*(v[..., k, j, i] for v in found))


def _passes(network: nn.Module, x: Tensor, told: Tensor, passes: int, turned: bool, bf16: bool) -> Iterator[Output]:
    flips = [axes for n in range(4) for axes in combinations((2, 3, 4), n)]
    for n in range(passes):
        axes = flips[n % len(flips)] if turned else ()
        with autocast(x.device.type, enabled=bf16):
            y = network(x.flip(axes), told)
        yield decoded(y.flip(axes), x)


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
