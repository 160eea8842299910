"""The loop that trains every recipe: seeded steps, averaged weights, checkpoints, exact resume, one or many processes.

A step's batch, noise and dropout depend on (seed, step, rank) only, and a checkpoint holds all else, so that on the
same machine a run that was killed and resumed ends with the weights of an unbroken one, bit by bit. AdamW (Loshchilov &
Hutter 2019), linear warm-up, half cosine to zero, gradients clipped by their norm, weights averaged exponentially.
"""

from __future__ import annotations

import copy
import fcntl
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import deterministic
from torch.utils.data import DataLoader, Dataset

from model_zoo.heap import keep_freed_memory
from model_zoo.precision import autocast
from model_zoo.registry import memory_format
from model_zoo.training import checkpoint, parallel
from model_zoo.training.checkpoint import Checkpoint
from model_zoo.training.opponents import Judged, OpponentRun
from model_zoo.training.recipe import C, Configuration, Prepare, Recipe, Source, Sources, seeded
from model_zoo.training.run_log import Log

__all__ = ["Progress", "learning_rate", "train"]

PROGRESS_EVERY = 5


@dataclass(frozen=True)
class Progress:
    """Progress of a run: steps done and in all, mean loss of the last steps, and pace."""

    step: int
    steps: int
    loss: float
    seconds_per_step: float

    @property
    def left_s(self) -> float:
        """Seconds left at this pace."""
        return (self.steps - self.step) * self.seconds_per_step


def learning_rate(c: Configuration, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a half cosine to zero, from each restart to the next."""
    ends = (0, *c.restarts, c.steps)
    first, last = next((a, b) for a, b in pairwise(ends) if step < b or b == c.steps)
    done, steps = step - first, last - first
    if done < c.warmup:
        return c.learning_rate * (done + 1) / c.warmup
    return c.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - c.warmup) / max(1, steps - c.warmup)))


@keep_freed_memory()
def train(
    recipe: Recipe[C],
    c: C,
    out: Path,
    *,
    sources: Sources,
    device: str = "cpu",
    resume: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    report: Callable[[dict[str, float]], None] = lambda line: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Train to ``c.steps``, from ``weights`` where there are any, and return the path of the last checkpoint.

    Writes below ``out``: ``checkpoint.pt``, ``log.jsonl`` (one line per checkpoint, also given to ``report``) and,
    where the package is installed, ``tensorboard/``. Under ``torchrun`` every process calls this with the same
    arguments; the first one writes. Raises FileExistsError when ``out`` holds a run already and ``resume`` is False or
    another process trains there, ValueError when that run is of another recipe, configuration, data set or
    number of processes or ``weights`` do not fit, FloatingPointError when the loss is not finite.
    """
    if c.workers and c.draw_on_device:
        raise ValueError("workers draw on the CPU: choose workers=0 or draw_on_device=False")
    out.mkdir(parents=True, exist_ok=True)
    with (
        parallel.join_world(device) as world,
        _lock_folder(out, world.is_first),
        _use_deterministic_algorithms(),
        _limit_threads(c.threads),
    ):
        run = _start_run(recipe, c, world, weights)
        first = _restore_run(run, out / checkpoint.NAME, sources.train.data, resume)
        world.wait()
        log = Log(out, first, report) if world.is_first else None
        run.clock.start(first)
        for step, batch in enumerate(_prepare_batches(run, sources.train, first), first):
            _take_step(run, step, batch)
            done = step + 1
            if done % PROGRESS_EVERY == 0 or done == c.steps:
                progress(run.clock.progress(done, c.steps))
            if done % c.checkpoint_every == 0 or done == c.steps:
                _save_checkpoint(run, done, out, sources, log)
    return out / checkpoint.NAME


@dataclass
class _Clock:
    """Losses and pace since the run started or was resumed."""

    began: float = 0.0
    first: int = 0
    losses: list[Tensor] = field(default_factory=list)
    recent: float = math.nan

    def start(self, first: int) -> None:
        self.began, self.first = time.monotonic(), first

    def progress(self, done: int, steps: int) -> Progress:
        self.recent = float(torch.stack(self.losses[-PROGRESS_EVERY:]).mean()) if self.losses else self.recent
        if not math.isfinite(self.recent):
            raise FloatingPointError(f"the loss is not finite at step {done}: {self.recent}")
        return Progress(done, steps, self.recent, (time.monotonic() - self.began) / max(1, done - self.first))


@dataclass
class _Run:
    """Objects of a run that change during training."""

    recipe: Recipe[Any]
    c: Any
    world: parallel.World
    network: nn.Module
    objective: nn.Module
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    opponent: OpponentRun | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    clock: _Clock = field(default_factory=_Clock)

    def autocast(self) -> torch.autocast:
        return autocast(self.world.device.type, enabled=self.c.bf16)


class _Objective(nn.Module):
    """Module from batch to loss and judged images, so that DistributedDataParallel sees every call of the network."""

    def __init__(self, network: nn.Module, recipe: Recipe[Any], c: Any, *, has_opponent: bool) -> None:
        super().__init__()
        self.network, self._recipe, self._c, self._has_opponent = network, recipe, c, has_opponent

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Judged]:
        if self._has_opponent and self._recipe.opponent is not None:
            return self._recipe.opponent.compute_loss(self.network, batch, self._c)
        return self._recipe.compute_loss(self.network, batch, self._c), {}


def _start_run(recipe: Recipe[C], c: C, world: parallel.World, weights: Mapping[str, Tensor] | None) -> _Run:
    torch.manual_seed(c.seed)
    network = recipe.make_network(c)
    if weights is not None:
        _load_weights(network, weights)
    network.to(world.device, memory_format=memory_format(network))  # type: ignore[call-overload]  # unknown to the stubs
    network.train()
    opponent = _start_opponent(recipe, c, world)
    objective: nn.Module = _Objective(network, recipe, c, has_opponent=opponent is not None)
    if world.size > 1:
        own = [world.device] if world.device.type == "cuda" else None
        objective = DistributedDataParallel(objective, device_ids=own, find_unused_parameters=True)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=c.learning_rate, betas=(0.9, 0.99), weight_decay=c.weight_decay, fused=True
    )
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    return _Run(recipe, c, world, network, objective, optimiser, average, opponent)


def _start_opponent(recipe: Recipe[Any], c: Any, world: parallel.World) -> OpponentRun | None:
    if recipe.opponent is None or not c.adversarial_weight:
        return None
    return OpponentRun.start(recipe.opponent, c, world)


def _load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights to go on from do not fit this configuration ({reason})") from error


def _restore_run(run: _Run, path: Path, data: str, resume: bool) -> int:
    """Load ``path`` into the run and return its step; 0 when there is nothing to resume."""
    if not path.exists():
        return 0
    if not resume:
        raise FileExistsError(f"{path} holds a run already: resume it or choose another folder")
    saved = checkpoint.read(path, run.world.device)
    if saved.recipe != run.recipe.name:
        raise ValueError(f"{path} is a run of the recipe {saved.recipe}")
    if type(run.c).from_json(saved.configuration) != run.c:
        raise ValueError(f"{path} was trained with another configuration: {saved.configuration}")
    if saved.data != data:
        raise ValueError(f"{path} was trained on other data: {saved.data}, not {data}")
    if saved.world != run.world.size:
        raise ValueError(f"{path} was trained by {saved.world} processes together, now there are {run.world.size}")
    run.network.load_state_dict(saved.network)
    run.optimiser.load_state_dict(dict(saved.optimiser))
    if run.opponent is not None:
        if saved.opponent is None:
            raise ValueError(f"{path} holds no opponent, which this configuration has")
        run.opponent.load_state(saved.opponent)
    for name, value in saved.average.items():
        run.average[name].copy_(value)
    run.metrics = dict(saved.metrics)
    return saved.step


class _Batches(Dataset[dict[str, Tensor]]):
    """Batch of every step, by the step's number, with ``progress``: the share of steps done before."""

    def __init__(self, run: _Run, source: Source) -> None:
        self.recipe, self.c, self.source, self.world = run.recipe, run.c, source, run.world

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        device = self.world.device if self.c.draw_on_device else "cpu"
        generator = seeded(*self.world.make_seed_key(self.c.seed, step), device=device)
        batch = self.recipe.draw_batch(self.c, replace(self.source, step=step), generator)
        return batch | {"progress": torch.tensor(step / self.c.steps)}


def _iterate_batches(run: _Run, source: Source, first: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batches from step ``first`` on, on the training device, drawn ahead where there are workers."""
    dataset, steps = _Batches(run, source), range(first, run.c.steps)
    ahead: Iterator[dict[str, Tensor]] = (dataset[step] for step in steps)
    if run.c.workers and len(steps):
        pinned = run.world.device.type == "cuda"
        ahead = iter(DataLoader(dataset, batch_size=None, sampler=steps, num_workers=run.c.workers, pin_memory=pinned))
    for batch in ahead:
        yield {name: value.to(run.world.device, non_blocking=True) for name, value in batch.items()}


def _prepare_batches(run: _Run, source: Source, first: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batches as ``Recipe.prepare`` makes them, one step ahead.

    It gets the network as it was when this part of the training began or was resumed: the part of it that is trained no
    longer is the same in both.
    """
    batches, step = _iterate_batches(run, source, first), first
    for end in (*run.c.restarts, run.c.steps):
        part = islice(batches, max(0, end - step))
        step = max(step, end)
        yield from part if run.recipe.prepare is None else _prepare_one_ahead(run, run.recipe.prepare, part)


def _prepare_one_ahead(
    run: _Run, prepare: Prepare, batches: Iterator[dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    network = copy.deepcopy(run.network).eval()

    def prepared(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad(), run.autocast():
            return prepare(network, batch, run.c)

    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[dict[str, Tensor]]] = deque()
        for batch in batches:
            waiting.append(thread.submit(prepared, batch))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        for last in waiting:
            yield last.result()


def _take_step(run: _Run, step: int, batch: dict[str, Tensor]) -> None:
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(run.c, step)
    torch.manual_seed(seeded(*run.world.make_seed_key(run.c.seed, step)).initial_seed())
    with run.autocast():
        loss, judged = run.objective(batch)
        if run.opponent is not None:
            loss = loss + run.opponent.compute_network_loss(judged)
    run.optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), run.c.clip)
    run.optimiser.step()
    if run.opponent is not None:
        run.opponent.take_step(judged, step, learning_rate(run.c, step) / run.c.learning_rate)
    run.clock.losses.append(loss.detach().float())
    # Not torch's AveragedModel: its first update copies, so that runs would end with other weights than today's.
    decay = min(run.c.ema, (step + 1) / (step + 10))
    with torch.no_grad():
        for name, p in run.network.named_parameters():
            run.average[name].lerp_(p, 1 - decay)


def _save_checkpoint(run: _Run, done: int, out: Path, sources: Sources, log: Log | None) -> None:
    """Validate, log and write the checkpoint; only the first process does, the others wait."""
    if log is not None:
        mean = float(torch.stack(run.clock.losses).mean())
        progress = run.clock.progress(done, run.c.steps)
        if run.c.validate_every == 0 or done % run.c.validate_every == 0 or done == run.c.steps:
            run.metrics = _validate(run, sources.validation)
        numbers = {"loss": mean, "learning_rate": learning_rate(run.c, done - 1)}
        log.write({"step": done, **numbers, "seconds_per_step": progress.seconds_per_step, **run.metrics})
        facts = run.recipe.name, run.c.to_json(), sources.train.data, done, run.world.size
        state = run.network.state_dict(), run.average, run.optimiser.state_dict()
        opponent = None if run.opponent is None else run.opponent.get_state()
        written = Checkpoint(*facts, *state, run.metrics, opponent)
        written.write(out / checkpoint.NAME)
    run.clock.losses.clear()
    run.world.wait()


def _validate(run: _Run, source: Source) -> dict[str, float]:
    """Return the recipe's numbers for the averaged weights; the network is left as it was."""
    training = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    _set_weights(run.network, run.average)
    run.network.eval()
    with torch.no_grad(), run.autocast():
        found = run.recipe.validate(run.network, run.c, source)
    run.network.train()
    _set_weights(run.network, training)
    return {name: float(value) for name, value in found.items()}


def _set_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(weights[name])


@contextmanager
def _lock_folder(out: Path, is_first: bool) -> Iterator[None]:
    """Lock ``out`` against another run; the lock ends with the process, however the process ends."""
    if not is_first:
        yield
        return
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"{out}: another process trains there") from error
        yield


@contextmanager
def _limit_threads(count: int) -> Iterator[None]:
    """Limit each operation to ``count`` threads, 0 for as many as torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _use_deterministic_algorithms() -> Iterator[None]:
    """Use deterministic algorithms where torch has them; a warning names the operations that have none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # unknown to the stubs
    torch.set_deterministic_debug_mode("warn")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
