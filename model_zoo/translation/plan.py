"""Plan of a translation: the series that go in, the series that come out, their scales, and how the network sees them.

A plan is a TOML file (``plan.toml``), read before training and copied into the bundle's ``inference.json``:

    name = "mr_contrasts"
    spacing_mm = 1.0
    labels = "structures"
    sources = [{ name = "t1w", modality = "MR", scale = "tissue:white" }, { name = "flair", ... }]
    targets = [{ name = "t2w", modality = "MR", scale = "tissue:white", code = 1 }]

Keys that are not known are refused by name. Three kinds of translation are refused because the sources do not hold what
the target shows (``list_unsupported``); a plan has to state why it is done all the same.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model_zoo.translation.scales import Scale, parse_scale

__all__ = [
    "COVARIATES",
    "Plan",
    "PlanError",
    "PlannedSource",
    "PlannedTarget",
    "find_unsupported",
    "list_unsupported",
    "parse",
    "read",
]

COVARIATES = ("age", "sex", "e4", "mmse", "ptau217")
"""Facts on the patient that a plan may use: years; F or M; APOE e4 alleles; points; pg/ml in plasma."""
CONTRASTS = ("t1w", "t1w-post", "t2w", "flair", "pd", "dir", "dwi", "adc", "t2star", "swi", "other")
"""Contrasts of MR. A name of this list needs no ``contrast``."""
MOST_TARGETS = 32
RESERVED = ("image", "covariates", "structures", "lesions", "subject", "split", "resample", *COVARIATES)
"""Names of other inputs and columns."""
_NAME = r"^[a-z][a-z0-9_]{0,40}$"


class PlanError(ValueError):
    """A plan that cannot be used. The message names the key and the fault."""


class _Series(BaseModel):
    """A series of the plan: ``name`` is the column of a manifest and the input of the pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME)
    modality: Literal["MR", "CT", "PT"]
    contrast: str = ""
    scale: str

    @model_validator(mode="after")
    def _check_contrast(self) -> Self:
        if self.modality == "MR" and self.kind not in CONTRASTS:
            raise ValueError(f"{self.name} is an MR series: contrast has to be one of {', '.join(CONTRASTS)}")
        if self.name in RESERVED:
            raise ValueError(f"no series may be named {self.name}")
        parse_scale(self.scale)
        return self

    @property
    def kind(self) -> str:
        """The contrast as stated, or the name."""
        return self.contrast or self.name

    @property
    def parsed_scale(self) -> Scale:
        return parse_scale(self.scale)


class PlannedSource(_Series):
    """A series that goes in. ``required``: every case has it; else it is left out at random in training."""

    required: bool = False


class PlannedTarget(_Series):
    """A series that comes out: ``unit`` in UCUM; ``code`` by which the network knows it, which never changes."""

    unit: str = "1"
    code: int = Field(ge=1, le=MOST_TARGETS)

    @model_validator(mode="after")
    def _check_unit(self) -> Self:
        if self.parsed_scale.kind != "window" and self.unit != "1":
            raise ValueError(f'{self.name} has the scale {self.scale}, so its unit is "1", not {self.unit!r}')
        return self


S = TypeVar("S", bound=_Series)


class Plan(BaseModel):
    """All keys of a plan.

    ``body_part``: words of which Body Part Examined must contain one, where it is stated. ``space``: "3d", "2d" or
    "2.5d:N", N neighbouring slices in for one out. ``spacing_mm``: isotropic voxels of the network. ``patch``: voxels
    of a training patch along each axis. ``pairing = "unpaired"``: no subject needs both series. ``labels =
    "structures"``: scales and loss use the structures of the head (``model_zoo.structures``). ``emphasis = "lesions"``:
    lesions weigh more in the loss. ``accepted_risk``: why a translation of ``list_unsupported`` is done all the same.
    ``holes``: share of training patches with missing slices; above 0 the plan repairs one series, its source and its
    target (``model_zoo.translation.holes``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME)
    title: str = ""
    intended_use: str = "Research only. Not for diagnosis."
    sources: tuple[PlannedSource, ...] = Field(min_length=1)
    targets: tuple[PlannedTarget, ...] = Field(min_length=1)
    body_part: tuple[str, ...] = ()
    space: str = Field(default="3d", pattern=r"^(3d|2d|2\.5d:(3|5|7|9|11))$")
    spacing_mm: float = Field(default=1.0, ge=0.3, le=8.0)
    patch: int = Field(default=48, ge=8, le=256)
    pairing: Literal["paired", "unpaired"] = "paired"
    engine: Literal["regression", "adversarial", "flow", "latent", "syndiff"] = "regression"
    covariates: tuple[str, ...] = ()
    labels: Literal["", "structures"] = ""
    emphasis: Literal["", "lesions"] = ""
    accepted_risk: str = ""
    holes: float = Field(default=0.0, ge=0.0, le=1.0)

    @field_validator("covariates")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in COVARIATES]:
            raise ValueError(f"no covariate {unknown[0]!r}; there are: {', '.join(COVARIATES)}")
        return names

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        _refuse_repeated("the name of a source", [each.name for each in self.sources])
        _refuse_repeated("the name of a target", [each.name for each in self.targets])
        _refuse_repeated("the code", [str(each.code) for each in self.targets])
        for each in (*self.sources, *self.targets):
            if each.parsed_scale.kind == "tissue" and self.labels != "structures":
                raise ValueError(f'{each.name} has the scale {each.scale}, which needs labels = "structures"')
        if self.engine in ("adversarial", "flow") and self.slices:
            raise ValueError(f'the engine {self.engine} needs space = "3d"')
        _check_pairing(self)
        if self.holes:
            _check_holes(self)
        for target in self.targets:
            if not self.holes and all(source.name == target.name for source in self.sources):
                raise ValueError(f"{target.name} is a target whose only source is itself")
        for source in self.sources:
            for target in self.targets:
                _check_shared_name(source, target)
        if (reasons := list_unsupported(self)) and not self.accepted_risk.strip():
            raise ValueError(f"{reasons[0]}; accepted_risk may state why this is done all the same")
        return self

    @property
    def slices(self) -> int:
        """Neighbouring slices that the network sees at once; 0 for volumes."""
        return {"3d": 0, "2d": 1}[self.space] if ":" not in self.space else int(self.space.partition(":")[2])

    @property
    def most_missing(self) -> int:
        """Largest number of neighbouring slices that a plan with holes fills: two measured ones stay on either side."""
        return self.slices // 2 - 1 if self.holes else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all series, sources first, each once."""
        return tuple(dict.fromkeys([*(s.name for s in self.sources), *(t.name for t in self.targets)]))

    def find_source(self, name: str) -> PlannedSource:
        """Return the source of that name. Raises PlanError that lists the sources."""
        return _find(self.sources, name, "source")

    def find_target(self, name: str) -> PlannedTarget:
        """Return the target of that name. Raises PlanError that lists the targets."""
        return _find(self.targets, name, "target")


def list_unsupported(plan: Plan) -> list[str]:
    """Return the reason why the sources do not hold what each target shows, for targets where they do not."""
    found: list[str] = []
    if plan.holes:
        return found
    for target in plan.targets:
        others = [source for source in plan.sources if source.name != target.name]
        if reason := find_unsupported(others, target):
            found.append(reason)
    return found


def find_unsupported(sources: Sequence[PlannedSource], target: PlannedTarget) -> str:
    """Return why these sources, without any other, do not hold what the target shows; "" where they do."""
    kinds = {source.kind for source in sources}
    if target.modality != "PT" and all(source.modality == "PT" for source in sources):
        return f"{target.name}: PET shows uptake, not the anatomy that {target.modality} shows"
    if target.kind == "t1w-post" and "t1w-post" not in kinds:
        return f"{target.name}: no image without contrast agent shows where the agent goes"
    if target.kind in ("dwi", "adc") and not kinds & {"dwi", "adc"}:
        return f"{target.name}: no image without diffusion weighting shows restricted diffusion"
    return ""


def read(path: Path) -> Plan:
    """Return the plan in a TOML file. Raises FileNotFoundError, and PlanError with the key and the fault."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path.name}: {error}") from None
    try:
        return parse(content)
    except PlanError as error:
        raise PlanError(f"{path.name}: {error}") from None


def parse(content: Mapping[str, Any]) -> Plan:
    """Return the plan of a table. Raises PlanError with the key and the fault."""
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise PlanError(f"no key {where!r} is known; known are {', '.join(_known_keys(first['loc']))}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise PlanError(f"{where}: {message}" if where else message) from None


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    kinds: dict[object, type[BaseModel]] = {"sources": PlannedSource, "targets": PlannedTarget}
    return list(kinds.get(place[0] if len(place) > 1 else "", Plan).model_fields)


def _refuse_repeated(label: str, values: list[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{label} {value} is there twice")


def _check_pairing(plan: Plan) -> None:
    """Raise ValueError unless syndiff, and no other engine, is trained without pairs, from one series to another."""
    if (plan.pairing == "unpaired") != (plan.engine == "syndiff"):
        raise ValueError(f'the engine {plan.engine} with pairing = "{plan.pairing}": only syndiff learns without pairs')
    if plan.pairing == "paired":
        return
    if len(plan.sources) != 1 or len(plan.targets) != 1:
        raise ValueError("the engine syndiff makes one target from one source")
    if plan.slices > 1:
        raise ValueError(f'the engine syndiff needs space = "2d" or "3d", not "{plan.space}": no pair has neighbours')
    for key in ("covariates", "emphasis"):
        if getattr(plan, key):
            raise ValueError(f"the engine syndiff uses no {key}")


def _check_holes(plan: Plan) -> None:
    """Raise ValueError unless the plan repairs one series by its neighbouring slices."""
    if len(plan.sources) != 1 or len(plan.targets) != 1 or plan.sources[0].name != plan.targets[0].name:
        raise ValueError("holes: the plan needs one source and one target, of one name: the series with missing slices")
    if plan.most_missing < 1:
        raise ValueError('holes: space has to be "2.5d:5" or more, so that measured slices lie on both sides')
    if plan.engine != "regression":
        raise ValueError(f"holes: the engine {plan.engine} fills no slices; regression does")
    for key in ("labels", "emphasis", "covariates"):
        if getattr(plan, key):
            raise ValueError(f"holes: a plan with holes has no {key}")


def _check_shared_name(source: PlannedSource, target: PlannedTarget) -> None:
    """Raise ValueError where a source and a target of one name are not the same series."""
    facts = [(each.modality, each.kind, each.scale) for each in (source, target)]
    if source.name == target.name and facts[0] != facts[1]:
        raise ValueError(f"{source.name} is a source and a target with another modality, contrast or scale")


def _find(series: tuple[S, ...], name: str, kind: str) -> S:
    for each in series:
        if each.name == name:
            return each
    raise PlanError(f"no {kind} {name!r}; there are: {', '.join(each.name for each in series)}")
