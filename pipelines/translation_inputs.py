"""Sources of a translation: which series is which, on one grid, registered and scaled as in training.

The route's series is the input ``image``; the option ``source`` names it. Further series come by their own names. On
heads they are registered to the first; elsewhere they have to share its frame of reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model_zoo.bundle import BundleError
from model_zoo.translation import plan as plans
from model_zoo.translation.plan import Plan, PlanError, PlannedTarget
from model_zoo.translation.preparation import find_inside, scale_series
from pipelines import anatomy, quality, resampling
from pipelines.contract import Case, Grid, Progress, Refused, Volume
from pipelines.dir_estimate import crop_to_brain
from pipelines.registration import register_rigid

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["IMAGE", "Examination", "PreparedSources", "prepare_sources", "read_examination", "read_plan", "resample_to"]

IMAGE = "image"
"""Input that the route matches."""


@dataclass(frozen=True)
class Examination:
    """Series of one study by the names of the plan: ``sources``, the first of which is ``image``, and the acquired
    target, where it is to be compared. ``doubts``: reasons to hold the result.
    """

    sources: Mapping[str, Volume]
    acquired: Volume | None
    doubts: tuple[str, ...]

    @property
    def first(self) -> Volume:
        return next(iter(self.sources.values()))


@dataclass(frozen=True)
class PreparedSources:
    """Sources as the network sees them, each float (k, j, i) on ``grid``, isotropic along the patient's axes.

    ``structure``: numbers of ``model_zoo.structures``, for plans that use them; ``inside``: mask of head or body.
    """

    grid: Grid
    volumes: dict[str, Tensor]
    structure: Tensor | None
    inside: Tensor


def read_plan(bundle: str, content: object) -> Plan:
    """Return the plan in the settings of a bundle. Raises BundleError where it has none that can be used."""
    if not isinstance(content, dict):
        raise BundleError(f"{bundle}: configs/inference.json has no plan, so it translates nothing")
    try:
        return plans.parse(content)
    except PlanError as error:
        raise BundleError(f"{bundle}: the plan in configs/inference.json cannot be used: {error}") from error


def read_examination(
    case: Case, plan: Plan, target: PlannedTarget, source: str, model: Model, *, evaluate: bool
) -> Examination:
    """Return the sources and the acquired target, checked by the input contract. Raises Refused.

    ``source``: name of the input ``image``, empty for the plan's first source.
    """
    name = _name_image(plan, target, source)
    volumes = {each: case.inputs.get(each) for each in plan.names}
    if volumes.get(name) is not None:
        raise Refused(f"{name} is there twice: as the series that the route matches, and as the input {name}")
    volumes[name] = case[IMAGE]
    sources = {
        each: volumes[each]
        for each in dict.fromkeys([name, *(s.name for s in plan.sources)])
        if isinstance(volumes.get(each), Volume) and each != target.name
    }
    if missing := [s.name for s in plan.sources if s.required and s.name not in sources]:
        raise Refused(f"the model needs {missing[0]}; no series of the study is it")
    acquired = volumes.get(target.name)
    _check_acquired(acquired is not None, target, evaluate)
    doubts = _check_frames(case, plan, [*sources, *([target.name] if acquired is not None else [])])
    facts = {key: value for key, value in case.facts.items() if key not in plan.names}
    renamed = Case({name: case[IMAGE]}, facts)
    doubts = (*doubts, *quality.check_input(renamed, model.metadata, name))
    return Examination(sources, acquired if isinstance(acquired, Volume) else None, doubts)  # type: ignore[arg-type]


def _name_image(plan: Plan, target: PlannedTarget, source: str) -> str:
    try:
        name = plan.find_source(source or plan.sources[0].name).name
    except PlanError as error:
        raise Refused(f"option source: {error}") from error
    if name == target.name:
        raise Refused(f"the image is the {name} that is to be made: the option source has to name another source")
    return name


def _check_acquired(exists: bool, target: PlannedTarget, evaluate: bool) -> None:
    if exists and not evaluate:
        raise Refused(
            f"the study has the {target.name} that is to be made. An estimate beside it would only mislead; the "
            "option evaluate measures how far it is from it"
        )
    if evaluate and not exists:
        raise Refused(f"option evaluate: no series of the study is the {target.name} to compare with")


def _check_frames(case: Case, plan: Plan, names: Sequence[str]) -> tuple[str, ...]:
    """Return why it is not sure that series lie in one frame of reference, where nothing is registered.

    Raises Refused where one is of another frame than the image.
    """
    if plan.labels == "structures":
        return ()
    shared = {name: case.facts.get(name, {}).get("same_frame", True) for name in names}
    for name, is_shared in shared.items():
        if is_shared is False:
            raise Refused(f"{name} is of another frame of reference than the image, and this model registers nothing")
    return tuple(
        f"image or {name} states no frame of reference: whether they show the same place is not known"
        for name, is_shared in shared.items()
        if is_shared is None
    )


def prepare_sources(
    examination: Examination, plan: Plan, model: Model, seed: int, progress: Progress
) -> PreparedSources:
    """Register, segment, resample and scale the sources. Raises Refused."""
    first = examination.first
    registered = dict(examination.sources)
    if plan.labels == "structures":
        for name in [*registered][1:]:
            progress(0.1, f"registration of {name}")
            registered[name] = register_rigid(first, registered[name], seed, name=f"the {name}").volume
    structure, grid = _find_structures(first, plan, model, progress)
    volumes = {}
    for name, volume in registered.items():
        progress(0.8, f"scale of {name}")
        try:
            x = resample_to(volume, grid)
            volumes[name] = scale_series(plan.find_source(name), x, structure, plan.spacing_mm)[0]
        except ValueError as error:
            raise Refused(str(error)) from error
    return PreparedSources(grid, volumes, structure, find_inside(plan, volumes, structure))


def resample_to(volume: Volume, grid: Grid) -> Tensor:
    """Return the volume on ``grid`` (k, j, i); beyond its border it has its lowest value."""
    low = float(volume.data.min())
    x = resampling.resample(torch.from_numpy(volume.data - np.float32(low))[None], volume.grid, grid)[0]
    return x + low


def _find_structures(first: Volume, plan: Plan, model: Model, progress: Progress) -> tuple[Tensor | None, Grid]:
    """Return the structures of the head in a box about the brain; for other plans None, and the whole image's grid."""
    whole_grid = resampling.axis_aligned(first.grid, plan.spacing_mm)
    if plan.labels != "structures":
        return None, whole_grid
    anatomy.check_head(first)
    head = anatomy.segment_head(first, model.helpers["anatomy"], lambda done, step: progress(0.2 + 0.5 * done, step))
    labels, grid = crop_to_brain(head, whole_grid)
    return torch.from_numpy(labels), grid
