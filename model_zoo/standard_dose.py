"""Restore standard-dose PET from a low-dose image: the inputs of the network and the meaning of its output.

Images are divided by one robust scale of the low-dose image (``scale_of``), never by their own extremes. OSEM noise
grows with activity, sd ~ x^0.7, so the network sees and predicts in units of the noise, and it chooses voxel by voxel
between the low-dose image and smoother copies of it before it adds a residual:

    amplitude A = nu (S_2 + 0.01)^0.7,    mean = sum_n w_n S_n + A r,    scale of the Laplace density b = A exp(s)

with S_0 = x_L, S_1 to S_3 its Gaussians of 1, 2 and 4 voxels sd, S_4 and S_5 its regressions on the anatomy about every
voxel (``filters.regress_locally``; windows of 1.5 and 3 voxels sd), S_6 and S_7 its non-local means of two strengths,
nu the median of |x_L - S_2| / (S_2 + 0.01)^0.7 over the body, and softmax weights w, r and s the network's outputs.
Conditions: log dose fraction, ln nu, voxel size; region maps where there are any. The anatomy is those maps, blurred to
the resolution of PET, and the remainder to 1; without any, S_4 and S_5 are Gaussians. The standard deviation reported
is that of the Laplace density, sqrt(2) b, and refers to the noise-free image at the same resolution.

The residual that the network removes should be noise, whose mean is zero. Its regression on the anatomy, in windows
that grow as the dose falls, is added back, so that a tissue keeps its activity. A residual too large to be noise is
added back as well (``restore_significant_residual``): small hot lesions are few among the voxels of a training and lose
part of their peak otherwise. Non-local means of the output remove the fraction of noise that the network leaves; with
an anatomy, every tissue's activity is then restored once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import filters
from model_zoo.imaging import FWHM, blur
from model_zoo.precision import autocast

__all__ = [
    "BANDS",
    "EMBEDDING",
    "HALO",
    "IN_CHANNELS",
    "LARGEST_VOXELS",
    "OUT_CHANNELS",
    "Prepared",
    "estimate_noise_sd",
    "interpret",
    "prepare",
    "residual_noise_fraction",
    "restore",
    "restore_significant_residual",
    "scale_of",
]

IN_CHANNELS, OUT_CHANNELS, EMBEDDING = 9, 10, 8
BANDS = 3
"""Number of the first input channels whose sum is the image less its widest Gaussian, over the amplitude."""
LARGEST_VOXELS = 4_000_000
"""Largest slab; with its neighbours it takes about 2 GB of activations."""
HALO = 24
"""Slices on either side of a slab that enter the network and whose output is dropped: at the middle of a training patch
the network saw no farther."""
_FLOOR, _POWER = 0.01, 0.7
_SD_VOXELS = (1.0, 2.0, 4.0)
_WINDOWS_VOXELS = (1.5, 3.0)
_STRENGTHS = (0.5, 1.25)
_PET_FWHM_MM = 7.0
"""Resolution of a reconstructed PET image, to which its anatomy is blurred."""
_NORMAL = 1.4826
"""Standard deviation of a normal density over its median absolute deviation."""
_RESIDUAL_SD_VOXELS = (1.0, 0.5)
_SIGNIFICANT = 4.0
"""Threshold in standard deviations of the noise, chosen on other objects than those of the evaluation. At a tenth of
the dose SUVpeak of lesions below 1 ml is 14 % too low without and 11 % with it (by CT: 17 and 14), and no PSNR is
lost."""
_REACH_VOXELS = 3
"""Half width of the search window of non-local means of the output."""
_SD_FACTOR, _SD_FACTOR_WITH_ANATOMY = 0.9, 0.8
"""Factor on the network's standard deviation for all that follows it, without and with an anatomy. 76 % of the voxels
of objects other than those of the evaluation are then within one, over 2, 10 and 50 % of the dose."""
_LOG_B = (-6.0, 2.0)


@dataclass(frozen=True)
class Prepared:
    """Scaled low-dose images as the network takes them.

    ``inputs`` (b, 9, k, j, i), ``copies`` S_0 to S_7 (b, 8, k, j, i), ``amplitude`` (b, 1, k, j, i), ``embedding``
    (b, 8).
    """

    inputs: Tensor
    copies: Tensor
    amplitude: Tensor
    embedding: Tensor


def scale_of(low: Tensor) -> float:
    """Return the 99.9th percentile inside the body of a low-dose image (k, j, i), blurred by a voxel against outliers.

    Inside the body is above a quarter of the image's mean. The scale is at least the smallest positive float.
    """
    smooth = _smooth(low, 1.0)
    body = smooth[smooth > 0.25 * smooth.mean()]
    if body.numel() == 0:
        return float(torch.finfo(torch.float32).tiny)
    rank = max(1, math.ceil(0.999 * body.numel()))
    return max(float(body.kthvalue(rank).values), float(torch.finfo(torch.float32).tiny))


def prepare(low: Tensor, dose: Tensor, spacing_mm: Tensor, maps: Tensor | None = None) -> Prepared:
    """Compute the network's inputs from ``low`` (b, 1, k, j, i) in units of its scale.

    ``dose``: fractions (b,); ``spacing_mm``: voxel sizes (b,); ``maps``: shares of regions (b, r, k, j, i), all zero
    for an image without any; None where no image has any.
    """
    low = low.float()
    gaussians = torch.cat([low, *(_smooth(low, sd) for sd in _SD_VOXELS)], dim=1)
    smooth = gaussians[:, 2:3].clamp_min(0)
    amplitude, nu = _amplitude(low, smooth)
    each_maps = [None] * len(low) if maps is None else list(maps)
    regressions = torch.stack(
        [
            _regress_on_anatomy(x[0], m, float(mm), _WINDOWS_VOXELS)
            for x, m, mm in zip(low, each_maps, spacing_mm, strict=True)
        ]
    )
    noise_sd = _NORMAL * amplitude
    non_local = [
        torch.stack(filters.denoise_by_non_local_means(x[0], _STRENGTHS, sd[0]))
        for x, sd in zip(low, noise_sd, strict=True)
    ]
    smoother = torch.cat([regressions, torch.stack(non_local)], dim=1)
    bands = (gaussians[:, :-1] - gaussians[:, 1:]) / amplitude
    differences = (smoother - smooth) / amplitude
    inputs = torch.cat([bands, differences, smooth, (smooth + _FLOOR).sqrt()], dim=1)
    return Prepared(inputs, torch.cat([gaussians, smoother], dim=1), amplitude, _embedding(dose, nu, spacing_mm))


def _regress_on_anatomy(low: Tensor, maps: Tensor | None, spacing_mm: float, windows: Sequence[float]) -> Tensor:
    """Regress an image (k, j, i) on the anatomy in windows of these sd in voxels: (w, k, j, i).

    ``maps``: regions (r, k, j, i), or None.
    """
    present = low.new_zeros((0, *low.shape)) if maps is None else maps[maps.flatten(1).any(dim=1)].float()
    shares = torch.cat([present, 1 - present.sum(dim=0, keepdim=True)])
    shares = blur(shares, _PET_FWHM_MM, (spacing_mm,) * 3, normalised=True)
    return torch.stack([filters.regress_locally(low, shares, sd) for sd in windows])


def _amplitude(low: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (b, 1, k, j, i) and nu (b,) of scaled images; ``smooth`` is S_2 without its negatives."""
    expected = (smooth + _FLOOR) ** _POWER
    nu = torch.stack([_noise_level(d, s, e) for d, s, e in zip(low, smooth, expected, strict=True)])
    return expected * nu[:, None, None, None, None], nu


def _noise_level(low: Tensor, smooth: Tensor, expected: Tensor) -> Tensor:
    body = smooth > 0.25 * smooth.mean()
    if not bool(body.any()):
        return low.new_tensor(1e-3)
    return ((low - smooth).abs() / expected)[body].median().clamp_min(1e-3)


def _embedding(dose: Tensor, nu: Tensor, spacing_mm: Tensor) -> Tensor:
    d = 1 + dose.clamp(1e-3, 1).log10() / 2
    n = nu.log() / 2
    features = (d, d**2, torch.cos(math.pi * d), torch.cos(2 * math.pi * d), n, n**2, torch.cos(n), spacing_mm - 3)
    return torch.stack(features, dim=1)


def interpret(output: Tensor, copies: Tensor, amplitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(mean, s)`` of the network's output (b, 10, k, j, i), mean in units of ``copies``; b = A exp(s)."""
    output = output.float()
    weights = torch.softmax(output[:, 2:], dim=1)
    mean = (weights * copies).sum(dim=1, keepdim=True) + amplitude * output[:, :1]
    return mean, output[:, 1:2].clamp(*_LOG_B)


@torch.no_grad()
def restore(
    network: nn.Module,
    low: Tensor,
    dose: float,
    *,
    spacing_mm: float,
    regions: Tensor | None = None,
    bf16: bool = True,
    largest: int = LARGEST_VOXELS,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Return ``(mean, sd)`` of a low-dose image (k, j, i), both in its units (SUV, Bq/ml); mean is not negative.

    ``regions``: shares of the regions that the network knows (r, k, j, i), in its order, or None. The network's device
    and the image's must be the same. Scale and noise level are those of the whole image; the network, which has no
    statistics over space, takes slabs of about ``largest`` voxels that overlap by ``HALO`` slices on either side.
    """
    stride = int(network.stride)  # type: ignore[arg-type]  # a module's attributes are untyped
    scale = scale_of(low)
    padding = [n for size in reversed(low.shape) for n in (0, -size % stride)]
    scaled = functional.pad(low[None, None].float() / scale, padding, mode="replicate")
    maps = None if regions is None else functional.pad(regions[None].float(), padding, mode="replicate")
    prepared = prepare(scaled, low.new_tensor([dose]), low.new_tensor([spacing_mm]), maps)
    mean, sd = torch.empty_like(scaled[0, 0]), torch.empty_like(scaled[0, 0])
    for core, context in _slabs(scaled.shape[2:], stride, largest):
        with autocast(low.device.type, enabled=bf16):
            output = network(
                prepared.inputs[:, :, context], prepared.embedding, None, None if maps is None else maps[:, :, context]
            )
        inner = slice(core.start - context.start, core.stop - context.start)
        amplitude = prepared.amplitude[:, :, core]
        estimate, s = interpret(output[:, :, inner], prepared.copies[:, :, core], amplitude)
        mean[core], sd[core] = estimate[0, 0], math.sqrt(2) * (amplitude * s.exp())[0, 0]
        progress(core.stop / len(mean))
    anatomy = maps[0] if maps is not None and bool(maps.any()) else None
    mean, sd = _correct_output(
        scaled[0, 0], mean, sd, prepared.amplitude[0, 0], anatomy, dose=dose, spacing_mm=spacing_mm
    )
    k, j, i = low.shape
    return scale * mean[:k, :j, :i].clamp_min(0), scale * sd[:k, :j, :i]


def _correct_output(
    low: Tensor, mean: Tensor, sd: Tensor, amplitude: Tensor, anatomy: Tensor | None, *, dose: float, spacing_mm: float
) -> tuple[Tensor, Tensor]:
    """Add back the signal that the network removed and remove the noise that it left; ``(mean, sd)`` (k, j, i).

    ``anatomy``: regions (r, k, j, i), or None. The last step lowers the bias of regions (kidneys 1.5 instead of 2.3 %
    on other objects than those of the evaluation) for 0.04 dB.
    """
    has_anatomy = anatomy is not None
    windows = [_window_voxels(dose, has_anatomy)]
    mean = mean + _regress_on_anatomy(low - mean, anatomy, spacing_mm, windows)[0]
    mean, sd = restore_significant_residual(low, mean, sd)
    residual_sd = residual_noise_fraction(dose, has_anatomy) * _NORMAL * amplitude
    mean = filters.denoise_by_non_local_means(mean, (1.0,), residual_sd, reach=_REACH_VOXELS)[0]
    if has_anatomy:
        mean = mean + _regress_on_anatomy(low - mean, anatomy, spacing_mm, windows)[0]
    return mean, (_SD_FACTOR_WITH_ANATOMY if has_anatomy else _SD_FACTOR) * sd


def restore_significant_residual(low: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Add the significant part of the method noise ``low`` - ``mean`` to ``mean`` (k, j, i), all over their scale.

    At two widths the method noise r is blurred, expressed in its own robust standard deviations z, sd ~ mean^0.7, and
    (1 - (4 / z)^2)_+ r is added: the non-negative garrote (Gao, J. Comput. Graph. Stat. 7, 1998), nothing where z is
    below 4. ``sd`` grows by the noise of that share.
    """
    for width in _RESIDUAL_SD_VOXELS:
        residual = _smooth((low - mean)[None, None], width)[0, 0]
        noise = _sd_of(residual, mean)
        share = (1 - (_SIGNIFICANT * noise / residual.abs().clamp_min(1e-12)) ** 2).clamp_min(0)
        mean, sd = mean + share * residual, torch.sqrt(sd**2 + (share * noise) ** 2)
    return mean, sd


def _sd_of(method_noise: Tensor, mean: Tensor) -> Tensor:
    """Return the robust standard deviation of each voxel of a method noise (k, j, i), which grows with ``mean``."""
    level = (_smooth(mean[None, None], 1.0)[0, 0].clamp_min(0) + _FLOOR) ** _POWER
    wide = _smooth(mean[None, None], 2.0)[0, 0]
    body = wide > 0.25 * wide.mean()
    return _NORMAL * level * (method_noise.abs() / level)[body].median() if bool(body.any()) else level


def _window_voxels(dose: float, has_anatomy: bool) -> float:
    """Return the sd of the window in which a tissue keeps its activity: 2, 3.2 and 5.3 voxels at 50, 10
    and 2 % of the dose; without an anatomy, when it blurs borders, 1.2, 1.9 and 3.2.

    Chosen on other objects than those of the evaluation among 1 to 5 voxels. At a tenth of the dose brains gain 0.5 dB
    from it without an anatomy.
    """
    return (2.0 if has_anatomy else 1.2) * math.pow(0.5 / dose, 0.3)


def residual_noise_fraction(dose: float, has_anatomy: bool) -> float:
    """Return the fraction of the image's noise that the network leaves.

    It is 0.31, 0.4 and 0.51 at 50, 10 and 2 % of the dose. Without an anatomy, when detail is mistaken for noise
    sooner, it is three quarters of that.

    Chosen on other objects than those of the evaluation among 0.1 to 0.75: at a tenth of the dose torsos gain 1.0 dB
    from it and brains 0.4, without an anatomy 1.1 and 0.4 (FDG nothing). Lesions lose another 0.5 % of their SUVmax.
    """
    return (0.4 if has_anatomy else 0.3) * math.pow(0.1 / dose, 0.15)


def _slabs(shape: Sequence[int], stride: int, largest: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices (k) to keep and, around them, the network's context: multiples of the stride.

    Not MONAI's ``SlidingWindowInferer``: that cuts the image only, not the maps, and blends where context is dropped.
    """
    thick = max(largest // (shape[1] * shape[2]) // stride, 1) * stride
    halo = math.ceil(HALO / stride) * stride
    for start in range(0, shape[0], thick):
        stop = min(start + thick, shape[0])
        yield slice(start, stop), slice(max(start - halo, 0), min(stop + halo, shape[0]))


def estimate_noise_sd(low: Tensor) -> Tensor:
    """Return the noise model's standard deviation of each voxel of a low-dose image (k, j, i), in its units."""
    scale = scale_of(low)
    scaled = low[None, None].float() / scale
    return _NORMAL * scale * _amplitude(scaled, _smooth(scaled, _SD_VOXELS[1]).clamp_min(0))[0][0, 0]


def _smooth(x: Tensor, sd_voxels: float) -> Tensor:
    return blur(x.float(), sd_voxels * FWHM, (1.0, 1.0, 1.0), normalised=True)
