"""Adaptation of a prior to one acquisition at test time, after AdaDiff, with corrections.

AdaDiff: Güngör et al. 2023; equations as in the chapter of Öztürk et al., 17.15 to 17.18. Rapid diffusion: few large
steps of the annealed estimate under the prior as it was trained. Adaptation: the prior's weights move so that
reconstructions of a part of the samples predict the rest. Differences from the paper, and reasons:

- The prior is the EDM denoiser of all samplers here, not an adversarial mapper; large steps need none, because the
  annealed estimate averages where a sampler would choose.
- It starts from the CG-SENSE image at a moderate sigma, not from Gaussian noise at the end of the diffusion.
- x + A^H (y - A x) is a projection for one coil alone, and copies noise. Here the denoised image moves to the samples
  as far as their noise warrants (``samplers.enforce_consistency``), which also replaces the blending factor of eq.
  17.16.
- ||y - A x||^2 over samples that x was made from falls by fitting their noise. Here it is taken over samples that do
  not enter the reconstruction, and a third part of the samples, which enters neither, decides when to stop: the split
  of zero-shot self-supervised learning (Yaman et al. 2022).
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

__all__ = ["Adaptation", "LowRankNetwork", "Settings", "Split", "adapt", "split_samples"]

CENTRE = 8
"""Side of the block about the centre of k-space that enters every reconstruction: without it there is no image."""
HELD_OUT_FRACTION, TARGET_FRACTION = 0.15, 0.3
"""Share of the samples outside the centre that decides when to stop, and of the others, that a task predicts."""
PATIENCE = 2
"""Checks in a row without an improvement that end the adaptation."""


@dataclass(frozen=True)
class Settings:
    """Limits of the adaptation.

    ``partitions``: number of splits of each image's samples into inputs and targets; ``check_every``: number of steps
    between two checks on the held-out samples.
    """

    rank: int = 2
    steps: int = 120
    learning_rate: float = 5e-4
    partitions: int = 4
    check_every: int = 20


@dataclass(frozen=True)
class Adaptation:
    """Result of an adaptation.

    ``network``: the prior with its additions, or the prior itself where none helped. ``before``, ``after``: mean
    squared residual of the held-out samples over their noise variance. ``evaluations``: images that passed the network.
    """

    network: nn.Module
    before: float
    after: float
    steps: int
    evaluations: int


class LowRankNetwork(nn.Module):
    """A network with W + B C in the place of every convolution's W; the network's own parameters stay as they are.

    Parameters of this module are B and C alone.
    """

    def __init__(self, network: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, so that its weights are none of this module's parameters
        self._names = [
            f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Conv3d)
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
        output: Tensor = functional_call(network, weights, (x, c_noise))
        return output


@dataclass(frozen=True)
class Split:
    """Masks of the samples that a reconstruction takes and of those that it has to predict, bool (batch, a, b) each."""

    inputs: Tensor
    targets: Tensor


def split_samples(mask: Tensor, fraction: float, generator: torch.Generator) -> Split:
    """Draw ``fraction`` of the samples outside the centre as targets; the rest are inputs.

    The units drawn are whole lines where an axis was sampled line by line, because lines are missing there; else single
    samples. Each slice has at least one target, unless it has no unit outside the centre.
    """
    units, axis = _sampling_units(mask)
    chosen_units = torch.zeros_like(units)
    centre = torch.zeros_like(units[0])
    half = CENTRE // 2
    centre[tuple(slice(max(n // 2 - half, 0), n // 2 + half) if n > 1 else slice(None) for n in centre.shape)] = True
    for chosen_of_image, eligible in zip(chosen_units, units & ~centre, strict=True):
        indices = eligible.flatten().nonzero()[:, 0]
        count = min(max(round(fraction * len(indices)), 1), len(indices))
        drawn_indices = indices[torch.randperm(len(indices), generator=generator)[:count].to(indices.device)]
        chosen_of_image.view(-1)[drawn_indices] = True
    targets = chosen_units.expand(mask.shape) & mask if axis is not None else chosen_units
    return Split(mask & ~targets, targets)


def _sampling_units(mask: Tensor) -> tuple[Tensor, int | None]:
    """Return the units that are drawn: lines (batch, 1, b) or (batch, a, 1) and their axis, or samples and None."""
    mask = mask.bool()
    for axis in (-2, -1):
        lines = mask.any(dim=axis, keepdim=True)
        if bool((mask == lines).all()):
            return lines, axis
    return mask.clone(), None


@dataclass(frozen=True)
class _Data:
    """One acquisition to reconstruct: operator, samples, noise sd per image, and the schedule of sigma."""

    A: Fourier
    y: Tensor
    sigma_y: Tensor
    sigma_data: float
    sigmas: Sequence[float]

    def mask_outside(self, D: samplers.Denoiser) -> samplers.Denoiser:
        """Return D with its result set to zero outside the support of the maps."""
        support = self.A.support > 0
        return lambda x, sigma: D(x, sigma) * support

    def select_image(self, image: int) -> _Data:
        part = slice(image, image + 1)
        A = Fourier(self.A.maps[part], self.A.mask[part])
        return _Data(A, self.y[part], self.sigma_y[part], self.sigma_data, self.sigmas)

    def select_samples(self, mask: Tensor) -> _Data:
        A = Fourier(self.A.maps, mask)
        return _Data(A, self.y * mask[:, None], self.sigma_y, self.sigma_data, self.sigmas)

    @property
    def correct(self) -> samplers.Correct:
        return samplers.make_correction(self.A, self.y, sigma_y=self.sigma_y, sigma_data=self.sigma_data)

    def reconstruct(self, D: samplers.Denoiser) -> Tensor:
        start = classical.cg_sense(self.A, self.y, ridge=0.05, iterations=10)
        return samplers.anneal(self.mask_outside(D), self.sigmas, start, self.correct)

    def misfit(self, x: Tensor) -> Tensor:
        """Return the mean squared residual over the noise variance; () over all images."""
        chi_square = (self.y - self.A(x)).abs().square().flatten(1).sum(dim=1) / (2 * self.sigma_y.square())
        return chi_square.sum() / self.A.measured.sum().clamp_min(1)

    def residual_energy(self, x: Tensor) -> Tensor:
        return (self.y - self.A(x)).abs().square().sum()


@dataclass(frozen=True)
class _PredictionTask:
    """The task to predict the ``targets`` of one image from a state of the reconstruction of its ``inputs``.

    ``x``: the state that the reconstruction had reached at ``sigma``; ``residual``: squared residual of the targets
    under the prior as it was trained.
    """

    x: Tensor
    sigma: float
    inputs: _Data
    targets: _Data
    residual: float

    def loss(self, D: samplers.Denoiser) -> Tensor:
        """Return ||y_target - A_target x||^2 / ``residual``, x being one denoising and correction of the state."""
        x = self.inputs.correct(self.inputs.mask_outside(D)(self.x, self.sigma), self.sigma)
        return self.targets.residual_energy(x) / self.residual


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
    """Train low-rank additions to ``network`` under which a part of the samples predicts the rest best; seeded.

    ``denoiser`` makes D(x, sigma) of a network. Adam minimises the ratio of ||y_target - A_target x||^2 to its value
    under the prior, one task (image, partition, sigma) a step; x is one denoising and one correction of the state that
    rapid diffusion had reached. The result has the additions that leave the smallest held-out residual, or none where
    no additions leave a smaller one than before.
    """
    adapted = LowRankNetwork(network, settings.rank, generator)
    D = denoiser(adapted)
    partition = split_samples(A.mask, HELD_OUT_FRACTION, generator)
    data = _Data(A, y, sigma_y, sigma_data, sigmas)
    available, held_out = data.select_samples(partition.inputs), data.select_samples(partition.targets)
    levels = len(sigmas) - 1
    with torch.no_grad():
        tasks = _make_tasks(D, available, settings.partitions, generator)
        before = best = float(held_out.misfit(available.reconstruct(D)))
    evaluations = len(y) * levels * (settings.partitions + 1)
    optimiser = torch.optim.Adam(adapted.parameters(), lr=settings.learning_rate)
    best_state, checks_without_improvement, step = _copy_state(adapted), 0, 0
    while step < settings.steps and tasks and checks_without_improvement < PATIENCE:
        for _ in range(min(settings.check_every, settings.steps - step)):
            task_index = int(torch.randint(len(tasks), (1,), generator=generator))
            _train_step(D, tasks[task_index], optimiser)
            step += 1
        with torch.no_grad():
            current = float(held_out.misfit(available.reconstruct(D)))
        evaluations += len(y) * levels
        checks_without_improvement = 0 if current < best else checks_without_improvement + 1
        if current < best:
            best, best_state = current, _copy_state(adapted)
    adapted.load_state_dict(best_state)
    adapted.requires_grad_(False)
    return Adaptation(adapted if best < before else network, before, best, step, A.sets * (evaluations + step))


def _copy_state(adapted: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapted.state_dict().items()}


def _make_tasks(
    D: samplers.Denoiser, available: _Data, partitions: int, generator: torch.Generator
) -> list[_PredictionTask]:
    tasks = []
    for image in range(len(available.y)):
        data = available.select_image(image)
        for _ in range(partitions):
            partition = split_samples(data.A.mask, TARGET_FRACTION, generator)
            tasks += _tasks_along_diffusion(
                D, data.select_samples(partition.inputs), data.select_samples(partition.targets)
            )
    return [task for task in tasks if task.residual > 0]


def _tasks_along_diffusion(D: samplers.Denoiser, inputs: _Data, targets: _Data) -> list[_PredictionTask]:
    """Return a task for every step of the rapid diffusion of the input samples."""
    tasks: list[_PredictionTask] = []
    x = classical.cg_sense(inputs.A, inputs.y, ridge=0.05, iterations=10)
    correct, D_inside = inputs.correct, inputs.mask_outside(D)
    for sigma in inputs.sigmas[:-1]:
        x_next = correct(D_inside(x, sigma), sigma)
        tasks.append(_PredictionTask(x, sigma, inputs, targets, float(targets.residual_energy(x_next))))
        x = x_next
    return tasks


def _train_step(D: samplers.Denoiser, task: _PredictionTask, optimiser: torch.optim.Optimizer) -> None:
    with torch.enable_grad():
        loss = task.loss(D)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
    optimiser.step()
