"""Recipes: functions that draw a batch, build the network, compute its loss and describe the bundle made of it.

A recipe module ends with ``RECIPE = Recipe(...)``; ``model_zoo.training.loop`` trains any of them. A recipe owns no
loop, no optimiser, no files and no random state: ``draw_batch`` draws everything, noise included, from the generator
that is passed in, so that a step's data depend on (seed, step, rank) alone and a resumed run ends as an unbroken one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from model_zoo.simulate import anatomy

if TYPE_CHECKING:
    from model_zoo.simulate.heads import Head
    from model_zoo.training.cohort import Cohort, Row
    from model_zoo.training.opponents import Opponent

__all__ = ["Column", "Configuration", "Prepare", "Recipe", "Source", "Sources", "make_simulated_sources", "seeded"]

PHANTOM = "phantom"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Settings of a run, which with the data and the machine determine the weights. Recipes add their own fields.

    ``batch``: items per step and process. ``warmup``: steps of linear growth before the half cosine to zero. ``ema``:
    decay of the averaged weights, which are shipped. ``restarts``: steps at which warm-up and cosine begin
    again, for recipes that train one part after the other. ``checkpoint_every``: steps between checkpoints and log
    lines; ``validate_every``: between validations, 0 for every checkpoint. ``workers``: processes that draw batches
    ahead. ``threads``: of each operation on a CPU, 0 for as many as torch takes; two threads on a core that a worker
    needs wait for it at every operation. ``bf16``: autocast. ``draw_on_device``: the generator of ``Recipe.draw_batch``
    lives on the training device, for recipes whose simulator runs there; it excludes ``workers``. ``start``: name,
    version, digest and training data of the bundle whose weights the run starts from, empty for a new network.
    """

    steps: int
    batch: int
    learning_rate: float
    seed: int = 2026
    warmup: int = 200
    ema: float = 0.998
    restarts: tuple[int, ...] = ()
    weight_decay: float = 1e-4
    clip: float = 1.0
    threads: int = 0
    bf16: bool = True
    draw_on_device: bool = False
    start: str = ""
    checkpoint_every: int = field(default=250, compare=False)
    validate_every: int = field(default=0, compare=False)
    workers: int = field(default=0, compare=False)

    JSON_KEYS: ClassVar[Mapping[str, str]] = {}
    """Keys in JSON, and on the command line, of fields that have another name there."""

    def to_json(self) -> str:
        """Return all fields as one JSON object."""
        return json.dumps({self.JSON_KEYS.get(name, name): value for name, value in asdict(self).items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the configuration that ``to_json`` wrote; fields that are missing there have their defaults.

        Raises ValueError where the text holds a field that this recipe does not have.
        """
        try:
            names = {key: name for name, key in cls.JSON_KEYS.items()}
            return cls(**{names.get(key, key): _to_tuples(value) for key, value in json.loads(text).items()})
        except TypeError as error:
            raise ValueError(f"a configuration that this recipe does not understand: {error}") from error


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(each) for each in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Column:
    """One column of a recipe's manifest.

    ``kind``: "image" (a NIfTI file or a folder of one DICOM series), "labels" (the same, whole numbers), "number",
    "word". ``help``: one line for the person who makes the table, with the unit.
    """

    name: str
    kind: Literal["image", "labels", "number", "word"]
    required: bool = True
    help: str = ""


@dataclass(frozen=True)
class Source:
    """Source of batches: simulated heads of ``subjects``, or a user's ``cohort`` where that is not None.

    ``root``: the data kit's folder (None: ``data_kit.data_root()``). ``phantom``: nested ellipsoids instead of label
    maps, for running a recipe where there is no kit. ``step``: of the training, for recipes that use what they made
    for several steps; sources that differ in ``step`` alone are equal.
    """

    subjects: tuple[str, ...]
    root: Path | None = None
    cohort: Cohort | None = None
    phantom: bool = False
    step: int = field(default=0, compare=False)

    @property
    def data(self) -> str:
        """Name of the data set: a run is resumed on the same data only."""
        if self.cohort is not None:
            return f"cohort {self.cohort.digest}"
        return PHANTOM if self.phantom else "simulation"

    def draw_subject(self, generator: torch.Generator) -> str:
        """Return one of the subjects at random."""
        at = torch.randint(len(self.subjects), (1,), generator=generator, device=generator.device)
        return self.subjects[int(at)]

    def draw_head(
        self,
        generator: torch.Generator,
        *,
        shape: tuple[int, int, int] = (192, 224, 192),
        spacing_mm: float = 1.0,
        **options: Any,
    ) -> Head:
        """Draw a head of a random subject; ``options`` go to ``heads.draw_head``. The phantom has no variation."""
        from model_zoo.simulate import heads
        from model_zoo.simulate.phantom import make_phantom

        if self.phantom:
            return make_phantom(shape, spacing_mm)
        subject = self.draw_subject(generator)
        with torch.autocast("cpu", enabled=False):  # a recipe validates under autocast; coordinates need all their bits
            return heads.draw_head(subject, generator, shape=shape, spacing_mm=spacing_mm, root=self.root, **options)


@dataclass(frozen=True)
class Sources:
    """Sources of training and validation, which share no subject."""

    train: Source
    validation: Source


def make_simulated_sources(root: Path | None = None, *, phantom: bool = False) -> Sources:
    """Return sources of simulated heads of the training and the validation subjects; test subjects are in neither."""
    if phantom:
        return Sources(Source((PHANTOM,), root, phantom=True), Source((PHANTOM,), root, phantom=True))
    return Sources(Source(anatomy.TRAIN, root), Source(anatomy.VALIDATION, root))


C = TypeVar("C", bound=Configuration)
Prepare = Callable[[nn.Module, dict[str, Tensor], Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Recipe(Generic[C]):
    """Description of how one model of the zoo is trained.

    ``name``: on the command line; ``bundle``: of the bundle it makes. ``configurations``: "cpu", "gpu" and "smoke"
    (seconds, works with ``Source.phantom``). ``columns``: of its manifest, in addition to ``subject`` and ``split``.

    ``make_network(c)``: the untrained network; the loop has seeded torch before.
    ``draw_batch(c, source, generator)``: tensors of one step, on the generator's device.
    ``prepare(network, batch, c)``: the batch with the outputs of a part of the network that no longer learns, where a
    recipe trains one part after the other: called without gradients, a step ahead in parallel to the training, with a
    copy of the network as it was at the last of the configuration's ``restarts`` or when the run was resumed.
    ``compute_loss(network, batch, c)``: a scalar, called under autocast with the batch on the network's device; the
    loop adds ``progress``, the share of steps done; torch's own generator is seeded per step, for dropout.
    ``validate(network, c, source)``: numbers for the log and the metadata, called in evaluation mode under autocast
    and without gradients, with the averaged weights in place.
    ``describe_inference(c)``: content of ``configs/inference.json``: ``network_def`` with ``_target_`` and arguments,
    and the fixed scales and settings that the pipeline needs.
    ``calibrate(network, c, source)``: settings that are added to it, from the finished weights and the validation's
    source: called once, without gradients, when the bundle is written.
    ``opponent``: for recipes that may train against one; their configuration has its settings.
    ``with_plan``: the recipe of a plan, for recipes whose columns and bundle follow from a file (``plan.toml``);
    ``at_configuration``: the recipe of a configuration that states a plan.
    ``check_row``: why no item can be made of a manifest's row, or "", for recipes whose rows may lack columns.
    ``facts``: task, intended_use, network_input, input_contract, units, trained_on, data_licence of ``metadata.json``.
    """

    name: str
    bundle: str
    configurations: Mapping[str, C]
    make_network: Callable[[C], nn.Module]
    draw_batch: Callable[[C, Source, torch.Generator], dict[str, Tensor]]
    compute_loss: Callable[[nn.Module, dict[str, Tensor], C], Tensor]
    validate: Callable[[nn.Module, C, Source], dict[str, float]]
    describe_inference: Callable[[C], dict[str, Any]]
    facts: Mapping[str, Any]
    prepare: Prepare | None = None
    opponent: Opponent[Any] | None = None
    calibrate: Callable[[nn.Module, C, Source], dict[str, Any]] | None = None
    columns: tuple[Column, ...] = ()
    with_plan: Callable[[Path], Recipe[C]] | None = None
    at_configuration: Callable[[C], Recipe[C]] | None = None
    check_row: Callable[[Row], str] | None = None


def seeded(*key: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator that depends on the integers of ``key`` only: (seed, step), (seed, step, rank) …"""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return torch.Generator(device).manual_seed(seed)
