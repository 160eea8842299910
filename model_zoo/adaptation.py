"""A prior adapted to one acquisition at test time, after AdaDiff (Elmas et al. 2023, eqs. 17.15 to 17.18), corrected.

Rapid diffusion: few large steps of the annealed estimate under the prior as it was trained. Adaptation: the prior's
weights move so that reconstructions of a part of the samples predict the rest. What differs from the paper, and why:

- The prior is the EDM denoiser of all samplers here, not an adversarial mapper; large steps need none, because the
  annealed estimate averages where a sampler would choose.
- It starts from the CG-SENSE image at a moderate sigma, not from Gaussian noise at the end of the diffusion.
- x + A^H (y - A x) is a projection for one coil alone, and copies noise. Here the denoised image moves to the samples
  as far as their noise warrants (``samplers.consistent``), which also replaces the blending factor of eq. 17.16.
- ||y - A x||^2 over samples that x was made from falls by fitting their noise. Here it is taken over samples that the
  reconstruction was not given, and a third part of the samples, which neither sees, says when to stop: the split of
  zero-shot self-supervised learning (Yaman et al. 2022).
- W stays as it is: W + B C is used, with B (out, rank), C (rank, in x kernel) and B zero at the start (Hu et al. 2022),
  on the convolutions alone, so that few samples cannot teach the network an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from model_zoo import classical, samplers
from model_zoo.operators import Fourier

__all__ = ["Adaptation", "LowRank", "Settings", "Split", "adapt", "split"]

CENTRE = 8
"""Side of the block about the centre of k-space that every reconstruction is given: without it there is no image."""
HELD_OUT, ASKED = 0.15, 0.3
PATIENCE = 2
"""Checks in a row without an improvement that end the adaptation."""


@dataclass(frozen=True)
class Settings:
    """How far the prior may move. ``partitions``: ways to part the samples into given and asked; ``check_every``
    steps the held-out samples are looked at."""

    rank: int = 2
    steps: int = 120
    learning_rate: float = 5e-4
    partitions: int = 4
    check_every: int = 20


@dataclass(frozen=True)
class Adaptation:
    """``network``: the prior with its additions, or the prior itself where none helped. ``before``, ``after``: mean
    squared residual of the held-out samples over their noise variance. ``evaluations``: images that passed the network.
    """

    network: nn.Module
    before: float
    after: float
    steps: int
    evaluations: int


class LowRank(nn.Module):
    """``network`` with W + B C in the place of every convolution's W; its own parameters stay as they are.

    Parameters of this module are B and C alone.
    """

    def __init__(self, network: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self._network = (network,)  # a tuple hides it: its weights are none of this module's parameters
        self._names = [
            f"{name}.weight" for name, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.Conv3d)
        ]
        self.B, self.C = nn.ParameterList(), nn.ParameterList()
        for name in self._names:
            W = network.get_parameter(name)
            rows, columns = W.shape[0], W[0].numel()
            r = min(rank, rows, columns)
            start = torch.randn(r, columns, generator=generator) / math.sqrt(columns)
            self.B.append(nn.Parameter(torch.zeros(rows, r, device=W.device)))
            self.C.append(nn.Parameter(start.to(W.device)))

    @property
    def stride(self) -> int:
        return int(self._network[0].stride)  # type: ignore[arg-type]  # a module's attributes are untyped

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        (network,) = self._network
        weights = {}
        for name, B, C in zip(self._names, self.B, self.C, strict=True):
            W = network.get_parameter(name)
            weights[name] = W + (B @ C).reshape(W.shape)
        found: Tensor = functional_call(network, weights, (x, c_noise))
        return found


@dataclass(frozen=True)
class Split:
    """Disjoint parts of the acquired samples, bool (batch, a, b) each."""

    given: Tensor
    asked: Tensor


def split(mask: Tensor, fraction: float, generator: torch.Generator) -> Split:
    """``fraction`` of the samples outside the centre are asked for, the rest is given.

    Whole lines where an axis was sampled line by line, because lines are what is missing there; else single samples.
    At least one unit of each slice is asked for, unless there is none outside the centre.
    """
    units, axis = _units(mask)
    asked = torch.zeros_like(units)
    middle = torch.zeros_like(units[0])
    half = CENTRE // 2
    middle[tuple(slice(max(n // 2 - half, 0), n // 2 + half) if n > 1 else slice(None) for n in middle.shape)] = True
    for found, free in zip(asked, units & ~middle, strict=True):
        places = free.flatten().nonzero()[:, 0]
        count = min(max(round(fraction * len(places)), 1), len(places))
        chosen = places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]
        found.view(-1)[chosen] = True
    asked = asked.expand(mask.shape) & mask if axis is not None else asked
    return Split(mask & ~asked, asked)


def _units(mask: Tensor) -> tuple[Tensor, int | None]:
    """What is drawn as a whole: (batch, 1, b) or (batch, a, 1) of lines and their axis, or the samples themselves."""
    mask = mask.bool()
    for axis in (-2, -1):
        lines = mask.any(dim=axis, keepdim=True)
        if bool((mask == lines).all()):
            return lines, axis
    return mask.clone(), None


@dataclass(frozen=True)
class _Data:
    """One acquisition as it is reconstructed: operator, samples, noise sd per image, and the schedule of sigma."""

    A: Fourier
    y: Tensor
    sigma_y: Tensor
    sigma_data: float
    sigmas: Sequence[float]

    def inside(self, D: samplers.Denoiser) -> samplers.Denoiser:
        """D on the support of the maps and zero outside."""
        inside = self.A.support > 0
        return lambda x, sigma: D(x, sigma) * inside

    def of(self, image: int) -> _Data:
        part = slice(image, image + 1)
        A = Fourier(self.A.maps[part], self.A.mask[part])
        return _Data(A, self.y[part], self.sigma_y[part], self.sigma_data, self.sigmas)

    def of_samples(self, mask: Tensor) -> _Data:
        A = Fourier(self.A.maps, mask)
        return _Data(A, self.y * mask[:, None], self.sigma_y, self.sigma_data, self.sigmas)

    @property
    def correct(self) -> samplers.Correct:
        return samplers.correction(self.A, self.y, sigma_y=self.sigma_y, sigma_data=self.sigma_data)

    def reconstructed(self, D: samplers.Denoiser) -> Tensor:
        start = classical.cg_sense(self.A, self.y, ridge=0.05, iterations=10)
        return samplers.annealed(self.inside(D), self.sigmas, start, self.correct)

    def misfit(self, x: Tensor) -> Tensor:
        """Mean squared residual over the noise variance; () over all images."""
        chi_square = (self.y - self.A(x)).abs().square().flatten(1).sum(dim=1) / (2 * self.sigma_y.square())
        return chi_square.sum() / self.A.measured.sum().clamp_min(1)

    def energy_missed(self, x: Tensor) -> Tensor:
        return (self.y - self.A(x)).abs().square().sum()


@dataclass(frozen=True)
class _Question:
    """Of one image: the state ``x`` that a reconstruction of the ``given`` samples had reached at ``sigma``, and the
    samples that are ``asked`` for. ``residual``: theirs under the prior as it was trained."""

    x: Tensor
    sigma: float
    given: _Data
    asked: _Data
    residual: float

    def loss(self, D: samplers.Denoiser) -> Tensor:
        """||y_asked - A_asked x||^2 over what it was, with x one denoising and one correction of the state."""
        x = self.given.correct(self.given.inside(D)(self.x, self.sigma), self.sigma)
        return self.asked.energy_missed(x) / self.residual


def adapt(
    network: nn.Module,
    denoiser: Callable[[nn.Module], samplers.Denoiser],
    A: Fourier,
    y: Tensor,
    sigmas: Sequence[float],
    *,
    sigma_y: Tensor,
    sigma_data: float,
    settings: Settings,
    generator: torch.Generator,
) -> Adaptation:
    """Low-rank additions to ``network`` under which a part of the samples predicts the rest best; seeded.

    ``denoiser`` makes D(x, sigma) of a network. Adam on the ratio of ||y_asked - A_asked x||^2 to what it was under the
    prior, one question (image, partition, sigma) a step; x is one denoising and one correction of the state that rapid
    diffusion had reached. The additions that leave the smallest held-out residual are kept, none where none leaves a
    smaller one than before.
    """
    adapted = LowRank(network, settings.rank, generator)
    D = denoiser(adapted)
    kept = split(A.mask, HELD_OUT, generator)
    whole = _Data(A, y, sigma_y, sigma_data, sigmas)
    seen, unseen = whole.of_samples(kept.given), whole.of_samples(kept.asked)
    levels = len(sigmas) - 1
    with torch.no_grad():
        questions = _questions(D, seen, settings.partitions, generator)
        before = best = float(unseen.misfit(seen.reconstructed(D)))
    evaluations = len(y) * levels * (settings.partitions + 1)
    optimiser = torch.optim.Adam(adapted.parameters(), lr=settings.learning_rate)
    found, since, step = _copy(adapted), 0, 0
    while step < settings.steps and questions and since < PATIENCE:
        for _ in range(min(settings.check_every, settings.steps - step)):
            number = int(torch.randint(len(questions), (1,), generator=generator))
            _step(D, questions[number], optimiser)
            step += 1
        with torch.no_grad():
            now = float(unseen.misfit(seen.reconstructed(D)))
        evaluations += len(y) * levels
        since = 0 if now < best else since + 1
        if now < best:
            best, found = now, _copy(adapted)
    adapted.load_state_dict(found)
    adapted.requires_grad_(False)
    return Adaptation(adapted if best < before else network, before, best, step, evaluations + step)


def _copy(adapted: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapted.state_dict().items()}


def _questions(D: samplers.Denoiser, seen: _Data, partitions: int, generator: torch.Generator) -> list[_Question]:
    found = []
    for image in range(len(seen.y)):
        one = seen.of(image)
        for _ in range(partitions):
            parted = split(one.A.mask, ASKED, generator)
            found += _along(D, one.of_samples(parted.given), one.of_samples(parted.asked))
    return [question for question in found if question.residual > 0]


def _along(D: samplers.Denoiser, given: _Data, asked: _Data) -> list[_Question]:
    """A question at every step of the rapid diffusion of the given samples."""
    found: list[_Question] = []
    x = classical.cg_sense(given.A, given.y, ridge=0.05, iterations=10)
    correct, inside = given.correct, given.inside(D)
    for sigma in given.sigmas[:-1]:
        after = correct(inside(x, sigma), sigma)
        found.append(_Question(x, sigma, given, asked, float(asked.energy_missed(after))))
        x = after
    return found


def _step(D: samplers.Denoiser, question: _Question, optimiser: torch.optim.Optimizer) -> None:
    with torch.enable_grad():
        loss = question.loss(D)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
    optimiser.step()
