"""Coils without maps: each coil's image from its own k-space, then the root sum of squares of the images.

Algorithm 7.2 of "Generative Machine Learning Models in Medical Image Computing", for acquisitions without calibration
lines. Each coil is an acquisition of one coil with its own noise level and scale. No coil helps another, so the result
is worse than with maps. Only its magnitude has a meaning.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from model_zoo import coils, uncertainty
from model_zoo.adaptation import Split
from model_zoo.operators import Fourier
from pipelines.coil_maps import CALIBRATION, absorb_ramp, find_peak
from pipelines.contract import KSpace, Refused
from pipelines.encoding import COIL_LOSS, FINEST, SEPARATE, Problem, estimate_noise, find_signal_level

__all__ = ["combine_coil_images", "compare_combined", "prepare_separate_coils"]

CENTRE = 3
"""Side of the block about the strongest samples that must be complete: without it the image has no brightness."""


def prepare_separate_coils(k: KSpace, *, coil_loss: float = COIL_LOSS) -> Problem:
    """Compress the coils, and return one problem whose batch elements are the virtual coils of each slice in turn.

    Coils are not whitened: the root sum of squares of orthonormal combinations is that of the coils as received.
    """
    _check_centre(k)
    covariance, noise_from = estimate_noise(k)
    M, loss = _compress(k, covariance, coil_loss)
    received = coils.combine_coils(M, torch.from_numpy(k.samples))
    slices, count = received.shape[:2]
    y = received.flatten(0, 1)[:, None]
    maps = absorb_ramp(torch.ones(y.shape, dtype=torch.complex64), find_peak(k))
    A = Fourier(maps, torch.from_numpy(k.mask).repeat_interleave(count, 0))
    level = find_signal_level(A, y)
    sigma = (M @ covariance @ M.mH).diagonal().real.sqrt().to(level.dtype).repeat(slices)
    return Problem(
        A,
        y / level[:, None, None, None],
        (sigma / level).clamp_min(FINEST),
        level[:, None, None].expand(-1, *y.shape[-2:]),
        float(covariance.diagonal().real.mean().sqrt()),
        SEPARATE,
        noise_from,
        loss,
        separate_coils=count,
    )


def _check_centre(k: KSpace) -> None:
    a, b = find_peak(k)
    half = CENTRE // 2
    block = k.mask[:, max(a - half, 0) : a + half + 1, max(b - half, 0) : b + half + 1]
    missing = [n for n, one in enumerate(block) if not one.all()]
    if missing:
        raise Refused(
            f"k-space: {k.samples.shape[1]} coils without maps need the {CENTRE} x {CENTRE} samples about the centre "
            f"of k-space; in slice {missing[0] + 1} of {len(block)} not all of them were acquired"
        )


def _compress(k: KSpace, covariance: Tensor, coil_loss: float) -> tuple[Tensor, float]:
    """Return the fewest orthonormal combinations that lose at most ``coil_loss`` of the local energy, and their loss.

    The loss is measured in the image of the middle of k-space, as with calibration lines; samples that were not
    acquired leave aliasing in it, which is alike in all coils.
    """
    half = CALIBRATION // 2
    a, b = (slice(max(at - half, 0), at + half) for at in find_peak(k))
    acquired = float(k.mask[:, a, b].mean())
    sd = float(covariance.diagonal().real.mean().sqrt())
    block = torch.from_numpy(k.samples[..., a, b]) / (sd * acquired**0.5)
    M = coils.compression_matrix(block, loss=coil_loss)
    return M, coils.compression_loss(M, block)


def combine_coil_images(images: Tensor, problem: Problem, x: Tensor) -> Tensor:
    """Return sqrt(sum_c |x_c|^2 - bias), real (image, j, i), of ``images`` (coil x image, j, i) in physical units.

    ``x``: the same images as the solver left them. Data consistency leaves a share (1 - sqrt(chi^2))^2 of the variance
    of the measured noise in a coil's image. Noise in C coils raises the sum of squares by C variances, noise in one
    image by one: the bias is what is beyond one image, (C - 1) / C of the sum. With one coil it is zero. Without a
    noise pre-scan nothing is taken off: signal raises the noise level found in the samples, and dark tissue would fade.
    """
    count = problem.separate_coils
    chi_square = uncertainty.chi_square(problem.A, x, problem.y, problem.sigma_y).clamp(0, 1)
    share = problem.A.mask.float().mean(dim=(1, 2)) * (1 - chi_square.sqrt()).square()
    noise = 2 * (problem.sigma_y * problem.gain[:, 0, 0]).square() * share * problem.noise_is_known
    bias = (count - 1) / count * noise.cpu().reshape(count, -1).sum(dim=0)
    energy = images.abs().square().reshape(count, -1, *images.shape[-2:]).sum(dim=0)
    return (energy - bias[:, None, None]).clamp_min(0).sqrt()


def compare_combined(one: Problem, x: Tensor, samples: Iterable[Tensor], split: Split) -> uncertainty.HeldOut:
    """Compare the estimate ``x`` and samples with the held-out samples of k-space in the combined image of one slice.

    An error e_c of the coils' images changes their root sum of squares by d = Re sum_c conj(x_c) e_c / rss. Coils err
    alike while their samples are independent, so that only d shows how far the combined image is off. The sums are
    those of d, the held-out samples alone being transformed. ``noise`` is zero without a noise pre-scan, which gives a
    larger sd: signal raises the noise level found in the samples.
    """
    received = one.in_units(x)
    weight = one.gain * received.conj() / received.abs().square().sum(dim=0).sqrt().clamp_min(1e-20)
    held_out = Fourier(one.A.maps, split.targets)

    def change(y: Tensor) -> Tensor:
        return (weight * held_out.H(y)).real.sum(dim=0)

    share = split.targets.float().mean(dim=(1, 2))
    noise = (weight.abs().square() * (one.sigma_y.square() * share)[:, None, None]).sum()
    mean, sd = uncertainty.mean_and_sd(change(held_out(s)) for s in samples)
    known = float(noise) if one.noise_is_known else 0.0
    return uncertainty.compare_held_out(change(one.y), change(held_out(x)), mean, sd, known)
