"""Share of the estimate in the image and scale of the samples' sd, measured on k-space that neither was made from.

Samples of a prior that was trained on simulated heads lie too close together, by a factor that depends on the
acquisition. A part of the acquired samples is held out, the image is reconstructed and sampled from the rest, and the
held-out samples show how far the truth lies from the image in units of the samples' spread.

The image is a mean of two: the estimate, which removes aliasing best but dims small structures, and the mean of the
samples, which keeps them (:func:`model_zoo.samplers.anneal` says why). Their shares are those that come nearest to the
held-out samples. The image is the estimate alone where these cannot judge it: a prior that was adapted to them, an
estimate across slices, and samples of another solver than "dds" where nothing is held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo import adaptation, uncertainty
from model_zoo.operators import Fourier
from pipelines.contract import Refused
from pipelines.encoding import Problem
from pipelines.inversion import Options, count_evaluations, draw_samples, estimate_slices
from pipelines.separate_coils import compare_combined

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["SLICES", "Spread", "evaluations_held_out", "measure_spread", "mix_images"]

SLICES = 2
"""Number of slices, spread over the volume, of which samples are held out."""
SAMPLES = 4


@dataclass(frozen=True)
class Spread:
    """``factor``: what the standard deviation of samples is multiplied by; ``share``: of the estimate in the image.

    The rest of the image is the mean of the samples. ``evaluations``: calls of the denoiser.
    """

    factor: float
    share: float
    evaluations: int


def measure_spread(
    problem: Problem, prior: Model, model: Model, options: Options, seed: int, *, is_coupled: bool = False
) -> Spread:
    """Return factor and share (:class:`model_zoo.uncertainty.HeldOut`) for the slices of one image.

    ``prior`` makes the estimate and ``model`` the samples, as in the reconstruction; ``is_coupled``: the image's
    estimate is one across slices. Both are the usual ones where ``options.held_out`` is zero. Raises Refused where an
    estimate or a sample is not finite.
    """
    found = uncertainty.HeldOut()
    slices = _choose_slices(problem) if options.held_out > 0 else []
    generator = torch.Generator().manual_seed(seed)
    compare = compare_samples if problem.separate_coils == 1 else compare_combined
    for i in slices:
        one = problem.one_slice(i).to(model.device)
        split = _split_slice(one, options.held_out, generator)
        rest = replace(one, A=Fourier(one.A.maps, split.inputs), y=one.y * split.inputs[:, None])
        x = estimate_slices(rest, prior, options)
        seeds = torch.randint(2**62, (SAMPLES, len(one.y)), generator=generator).tolist()
        compared = compare(one, x, _draw_one_by_one(rest, model, options, seeds, x), split)
        if not compared.is_finite:
            raise Refused(f"solver {options.solver}: the estimate or a sample of slice {i + 1} is not finite")
        found += compared
    calls = problem.images_per_slice * evaluations_held_out(options) * len(slices)
    is_judged = options.solver == "dds" or (options.solver != "adadiff" and bool(slices))
    share = found.share if is_judged and not is_coupled else 1.0
    return Spread(found.factor(share), share, calls)


def mix_images(estimate: Tensor, mean: Tensor, share: float) -> Tensor:
    """Return the image: ``share`` times the estimate, the rest the mean of the samples, of the same shape."""
    if estimate.shape != mean.shape:
        raise ValueError(f"estimate {tuple(estimate.shape)} and mean {tuple(mean.shape)} differ in shape")
    return share * estimate + (1 - share) * mean


def evaluations_held_out(options: Options) -> int:
    """Return the calls of the denoiser per image of a slice of which samples are held out."""
    return count_evaluations(options.model_copy(update={"samples": SAMPLES}))


def compare_samples(one: Problem, x: Tensor, samples: Iterable[Tensor], split: adaptation.Split) -> uncertainty.HeldOut:
    """Compare the estimate ``x`` and samples with the held-out samples of k-space, coil by coil."""
    held_out = Fourier(one.A.maps, split.targets)
    mean, sd = uncertainty.mean_and_sd(map(held_out, samples))
    noise = (2 * held_out.measured * one.sigma_y.square()).sum()
    return uncertainty.compare_held_out(one.y * split.targets[:, None], held_out(x), mean, sd, float(noise))


def _split_slice(one: Problem, fraction: float, generator: torch.Generator) -> adaptation.Split:
    """Hold the same samples out of every coil of a slice."""
    split = adaptation.split_samples(one.A.mask[:1], fraction, generator)
    return adaptation.Split(split.inputs.expand_as(one.A.mask), split.targets.expand_as(one.A.mask))


def _choose_slices(problem: Problem) -> list[int]:
    """Return up to SLICES slices, spread over those in which the coils see an object."""
    visible = [i for i in range(problem.slice_count) if bool(problem.one_slice(i).A.support.any())]
    count = min(len(visible), SLICES)
    return [visible[(2 * n + 1) * len(visible) // (2 * count)] for n in range(count)]


def _draw_one_by_one(
    problem: Problem, model: Model, options: Options, seeds: list[list[int]], x: Tensor
) -> Iterator[Tensor]:
    for of_coils in seeds:
        yield draw_samples(problem, model, options, of_coils, x)
