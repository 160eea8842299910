"""Double inversion recovery from FLAIR (and T1w): scales, meaning of the network's channels, and uncertainty.

Inputs are in units of the normal-appearing white matter's median, the output DIR in units of grey matter (white matter
and CSF are nulled): 1 is normal cortex. The signal of each tissue in a DIR is known before the acquisition, so the
tissues of the examination itself determine how its FLAIR and T1w, of any protocol, become DIR: the quadratic polynomial
that maps them to that signal is the first guess. (With a T1w a robust fit, since no segmentation is right everywhere.
The network is trained with structures that are nearly right, for which least squares are as good.) One network, which
takes the brightness of the tissues as a condition, predicts the residual to add to the guess, its uncertainty and the
lesions, and physical maps from which the signal equation renders a DIR of any inversion times (model specification, 1.3
and 7.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import bias_field
from model_zoo.networks.volume_unet import set_dropout
from model_zoo.out_of_distribution import HOLD_ABOVE
from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.sequences import DIR_TE_MS, DIR_TR_MS, Dir, Sequence
from model_zoo.physics.tissues import tissue_of
from model_zoo.precision import autocast
from model_zoo.structures import CORTEX, STRUCTURES, number

__all__ = [
    "CHANNELS",
    "CLIP",
    "EMBEDDING",
    "INPUT_CONTRACT",
    "OUTPUT_LIMITS",
    "Output",
    "SyntheticDir",
    "combine_passes",
    "compute_first_guess",
    "decode",
    "expected_signal",
    "log_maps",
    "predict",
    "prepare",
    "render",
    "scale",
    "stack_inputs",
    "tissue_levels",
    "undo_transfer",
    "white_matter_level",
]

CLIP = 4.0
CHANNELS = ("dir", "log_b", "log_pd", "log_t1_s", "log_t2_100ms", "lesion")
LOG_B = (-5.0, 1.0)
FEWEST_VOXELS = 1000
FIT_STEP, ROUNDS, HALF_WEIGHT_RESIDUAL = 5, 9, 0.3
"""Settings of the robust fit: step between its voxels, number of rounds, and residual at which a voxel weighs half.

Chosen on the validation subjects with structures by a model: 22.5 dB instead of 21.5 by least squares."""
CORTEX_ON_FLAIR = 1.08
"""Cortex on FLAIR where white matter is 1, by the signal equation and the tissue table, without magnetisation transfer.
"""
LEVEL_TISSUES = (
    ("frontal cortex", "temporal cortex", "parietal cortex", "occipital cortex"),
    ("thalamus",), ("putamen",), ("caudate",), ("hippocampus", "amygdala"), ("brain stem",), ("cerebellar cortex",),
    ("cerebellar white matter",), ("lateral ventricles",), ("csf",),
)  # fmt: skip
"""Groups of structures whose brightness the network takes as a condition."""
EMBEDDING = 2 * len(LEVEL_TISSUES)
FEWEST_LEVEL_VOXELS = 20


INPUT_CONTRACT: dict[str, Any] = {
    "flair": [
        {"fact": "modality", "one_of": ["MR"]},
        {"fact": "body_part", "one_of": ["head", "brain", "skull", "cereb", "crani", "neuro"]},
        {"fact": "ti_ms", "between": [1400, 3000]},
        {"fact": "coverage_mm", "between": [100, 400]},
        {"fact": "te_ms", "between": [60, 700], "otherwise": "hold"},
        {"fact": "coarsest_spacing_mm", "between": [0.4, 6.5], "otherwise": "hold"},
        {"fact": "field_strength_t", "between": [1.4, 3.1], "otherwise": "hold"},
        {"fact": "age_years", "between": [16, 100], "otherwise": "hold"},
    ],
    "t1w": [
        {"fact": "modality", "one_of": ["MR"]},
        {"fact": "te_ms", "between": [0.5, 30]},
        {"fact": "coverage_mm", "between": [100, 400]},
    ],
}
"""Rules of the inputs, by their names."""

OUTPUT_LIMITS = {
    "hold_above": {"volume bright without support": 2.0, "mean standard deviation": 0.5, "cortex on DIR": 1.5}
    | HOLD_ABOVE,
    "hold_below": {"share of FLAIR's bright spots shown": 0.5, "cortex on DIR": 0.5},
}
"""Limits of the pipeline's measurements."""


@dataclass(frozen=True)
class Output:
    """Output of one pass of the network, each (b, 1, k, j, i) but ``maps`` (b, 3, ...).

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
    """Return the median of ``image`` in normal-appearing white matter. Raises ValueError unless it is positive."""
    values = image[white_matter]
    level = float(values.median()) if values.numel() else 0.0
    if not level > 0:
        raise ValueError(f"the white matter of {values.numel()} voxels has a median of {level}: no scale")
    return level


def scale(image: Tensor, level: float) -> Tensor:
    """Return ``image`` in units of ``level``, clipped to [0, 4]."""
    return (image / level).clamp(0.0, CLIP)


def prepare(image: Tensor, structure: Tensor, spacing_mm: float = 1.0) -> Tensor:
    """Return ``image`` (k, j, i) without its bias field, in units of white matter, clipped, zero outside structures.

    ``structure``: numbers of ``model_zoo.structures`` on the same isotropic voxels. Raises ValueError without white
    matter.
    """
    inside = structure > 0
    corrected = torch.where(inside, image, 0.0) / bias_field.estimate_bias_field(image, structure, spacing_mm)
    return scale(corrected, white_matter_level(corrected, structure == number("cerebral white matter")))


def undo_transfer(flair: Tensor, structure: Tensor) -> Tensor:
    """Return a scaled FLAIR as it would be without magnetisation transfer, which the network never saw.

    The many pulses of a turbo spin echo saturate macromolecules (Melki & Mulkern, Magn. Reson. Med. 24, 1992): white
    matter loses most, and cortex is up to 1.3 times as bright beside it. Cortex that is brighter than
    ``CORTEX_ON_FLAIR`` is brought to it. All that is brighter than cortex follows by the same factor, since lesions
    have about as few macromolecules; between white matter (1) and cortex the map is linear, below white matter nothing
    changes.
    """
    values = flair[torch.isin(structure, torch.tensor(CORTEX).to(structure))]
    cortex = float(values.median()) if values.numel() >= FEWEST_LEVEL_VOXELS else 0.0
    if cortex <= CORTEX_ON_FLAIR:
        return flair
    between = 1 + (flair - 1) * ((CORTEX_ON_FLAIR - 1) / (cortex - 1))
    return torch.where(flair <= 1, flair, torch.where(flair < cortex, between, flair * (CORTEX_ON_FLAIR / cortex)))


def compute_first_guess(flair: Tensor, t1w: Tensor | None, structure: Tensor, *, robust: bool = False) -> Tensor:
    """Return the quadratic polynomial of FLAIR (and T1w) nearest to the tissues' signal in a DIR, in [0, 2].

    Volumes are scaled, (k, j, i); ``structure``: numbers of ``model_zoo.structures``, 0 outside. The result is zero for
    fewer than ``FEWEST_VOXELS`` voxels of brain. The fit is by least squares or, with ``robust``, by Cauchy's density
    (least squares with new weights, ``ROUNDS`` times): lesions and voxels of a wrong structure are far from their
    tissue's signal and then have little weight.
    """
    f, inside = flair.double(), structure > 0
    terms = [torch.ones_like(f), f, f * f]
    if t1w is not None:
        t = t1w.double()
        terms += [t, t * t, f * t]
    if int(inside.sum()) < FEWEST_VOXELS:
        return torch.zeros_like(flair)
    step = FIT_STEP if robust else 1
    A = torch.stack([term[inside][::step] for term in terms], dim=1)
    expected = expected_signal(structure.device)[structure[inside][::step].long()]
    coefficients = _least_squares(A, expected, torch.ones_like(expected))
    for _ in range(ROUNDS if robust else 0):
        coefficients = _least_squares(
            A, expected, 1 / (1 + ((A @ coefficients - expected) / HALF_WEIGHT_RESIDUAL) ** 2)
        )
    guess = sum((w * term for w, term in zip(coefficients, terms, strict=True)), torch.zeros_like(f))
    return guess.clamp(0.0, 2.0).to(flair.dtype)


def _least_squares(A: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the x that minimises sum weight (A x - y)^2, lightly damped."""
    weighted = A.T * weight
    normal = weighted @ A / len(A) + 1e-6 * torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    x: Tensor = torch.linalg.solve(normal, weighted @ y / len(A))
    return x


def tissue_levels(flair: Tensor, t1w: Tensor | None, structure: Tensor) -> Tensor:
    """Return the brightness of the tissues, which depends on the protocols: float (2 tissues,).

    The values are the medians of FLAIR and of T1w in each of ``LEVEL_TISSUES``, white matter being 1, less 1; 0 for a
    missing image or tissue.
    """
    levels = []
    for image in (flair, t1w):
        for names in LEVEL_TISSUES:
            in_tissue = torch.isin(structure, torch.tensor([number(name) for name in names]).to(structure))
            if image is None or int(in_tissue.sum()) < FEWEST_LEVEL_VOXELS:
                levels.append(flair.new_zeros(()))
            else:
                levels.append(image[in_tissue].float().median() - 1)
    return torch.stack(levels)


def expected_signal(device: torch.device) -> Tensor:
    """Return each structure's signal, by number, in a DIR that nulls white matter and CSF, grey matter being 1."""
    p = TissueParameters.table()
    white, csf, grey = (tissue_of(name) for name in ("cerebral white matter", "csf", "frontal cortex"))
    signal = Dir.nulling(DIR_TR_MS, float(p.t1_ms[white]), float(p.t1_ms[csf]), DIR_TE_MS).signal(p).abs()
    signals = [0.0] + [float(signal[tissue_of(s.name)] / signal[grey]) for s in STRUCTURES]
    return torch.tensor(signals, dtype=torch.float64, device=device)


def stack_inputs(flair: Tensor, t1w: Tensor | None, guess: Tensor) -> Tensor:
    """Stack the network's channels (b, 4, k, j, i) from scaled volumes (b, k, j, i).

    They are FLAIR, T1w (0 where missing), 1 for a T1w and 0 for none, and the first guess. Images enter as 3 (x - 1):
    white matter at 0, grey matter and lesions about 1 away from it.
    """
    second = torch.zeros_like(flair) if t1w is None else 3 * (t1w - 1)
    present = torch.full_like(flair, 0.0 if t1w is None else 1.0)
    return torch.stack([3 * (flair - 1), second, present, guess], dim=1)


def decode(channels: Tensor, x: Tensor) -> Output:
    """Return the meaning of the network's ``channels`` (b, 6, k, j, i) for its input ``x``."""
    y = channels.float()
    return Output(y[:, 0:1] + x[:, 3:4], y[:, 1:2].clamp(*LOG_B), y[:, 2:5].clamp(-4, 4), y[:, 5:6])


def log_maps(p: TissueParameters) -> Tensor:
    """Return log PD, log (T1 / 1 s), log (T2 / 100 ms), stacked first; values below 0.01 count as 0.01."""
    values = (p.pd, p.t1_ms / 1000, p.t2_ms / 100)
    return torch.stack([v.clamp(min=0.01).log() for v in values])


def render(maps: Tensor, sequence: Sequence) -> Tensor:
    """Return the magnitude of ``sequence`` on log maps (3, ...), as a fraction of the magnetisation."""
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
    with_flips: bool = False,
    generator: torch.Generator | None = None,
    bf16: bool = True,
) -> SyntheticDir:
    """Predict mean and spread over ``passes`` with dropout active, all else in evaluation mode (Gal & Ghahramani 2016).

    ``flair`` and ``t1w``: scaled volumes (k, j, i) of one grid, ``structure`` its anatomy. ``with_flips``: each pass
    takes another flip of the volumes (test-time augmentation). Variances are computed by Welford's recurrence with 1 /
    (N - 1). One pass is without dropout, its epistemic sd 0. ``generator``: seeds the dropout. Raises ValueError unless
    ``passes`` >= 1.
    """
    if passes < 1:
        raise ValueError(f"{passes} passes")
    flair = undo_transfer(flair, structure)
    guess = compute_first_guess(flair, t1w, structure, robust=t1w is not None)
    x, crop = _pad(
        stack_inputs(flair[None], None if t1w is None else t1w[None], guess[None]), int(getattr(network, "stride", 1))
    )
    brightness = tissue_levels(flair, t1w, structure)[None]
    seed = int(torch.randint(2**62, (1,), generator=generator or torch.Generator().manual_seed(0)))
    network.eval()
    set_dropout(network, passes > 1)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        results = combine_passes(_passes(network, x, brightness, passes, with_flips, bf16), passes)
    set_dropout(network, False)
    k, j, i = crop
    return SyntheticDir(*(v[..., k, j, i] for v in results))


def _passes(
    network: nn.Module, x: Tensor, brightness: Tensor, passes: int, with_flips: bool, bf16: bool
) -> Iterator[Output]:
    flips = [axes for n in range(4) for axes in combinations((2, 3, 4), n)]
    for n in range(passes):
        axes = flips[n % len(flips)] if with_flips else ()
        with autocast(x.device.type, enabled=bf16):
            y = network(x.flip(axes), brightness)
        yield decode(y.flip(axes), x)


def combine_passes(outputs: Iterator[Output], passes: int) -> tuple[Tensor, ...]:
    """Return mean DIR, total sd, epistemic sd, lesion probability and mean maps of the passes.

    Each is of the first item of the batch: (k, j, i), the maps (3, k, j, i).
    """
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


def _pad(x: Tensor, stride: int) -> tuple[Tensor, tuple[slice, slice, slice]]:
    """Append zeros to ``x`` up to multiples of ``stride``; return the result and the slices of ``x`` in it."""
    missing = [math.ceil(n / stride) * stride - n for n in x.shape[2:]]
    padding = [p for s in reversed(missing) for p in (0, s)]
    k, j, i = (slice(0, n) for n in x.shape[2:])
    return functional.pad(x, padding), (k, j, i)
