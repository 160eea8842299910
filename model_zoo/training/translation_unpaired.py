"""Items of plans without pairs: a patch of a target and a patch of a source, each of a subject drawn by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo.simulate.acquisition import uniform
from model_zoo.training.recipe import Source
from model_zoo.training.translation_items import (
    OUTSIDE,
    PreparedSubject,
    draw_box,
    draw_index,
    draw_subject,
    list_possible_targets,
    prepare_row,
)
from model_zoo.translation import network

if TYPE_CHECKING:
    from model_zoo.training.translation import Configuration

__all__ = ["draw_unpaired", "has_pairs"]


def draw_unpaired(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Return one item of a batch, as ``translation_items.draw_patch`` does, and ``source_weight``: that of the input,
    which shows another place, and mostly another patient, than the target.
    """
    plan = c.plan
    x, y = plan.targets[0], plan.sources[0]
    of_target, of_source = (_draw_subject(c, source, each.name, generator) for each in (x, y))
    target, weight = _cut(c, of_target, of_target.targets[x.name], generator)
    image, source_weight = _cut(c, of_source, of_source.sources[y.name], generator)
    return {
        "input": network.stack_sources(plan, {y.name: image}),
        "source_weight": source_weight[None],
        "target": target[None],
        "weight": weight[None],
        "emphasis": torch.zeros_like(target)[None],
        "target_code": network.one_hot_code(plan, x.name),
        "brightness": torch.zeros(network.count_brightness(plan)),
        "tokens": network.covariate_tokens(plan, {}),
        "span": torch.tensor(x.parsed_scale.span),
    }


def has_pairs(c: Configuration, source: Source) -> bool:
    """Return whether a subject of the source has both images, so that a prediction can be compared."""
    if source.cohort is None:
        return True
    return any(list_possible_targets(c.plan, row.images, row.images) for row in source.cohort.rows)


def _draw_subject(c: Configuration, source: Source, name: str, generator: torch.Generator) -> PreparedSubject:
    """Return a subject that has this series. Raises ValueError where no row has it."""
    if source.cohort is None:
        return draw_subject(c, source, generator)
    usable = [row for row in source.cohort.rows if name in row.images]
    if not usable:
        raise ValueError(f"no row of this split has {name}")
    return prepare_row(c.plan, c.least_shape, source.cohort, usable[draw_index(len(usable), generator)])


def _cut(
    c: Configuration, subject: PreparedSubject, image: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a random patch (k, j, i), flipped at random, and its weight."""
    box = draw_box(c, subject, generator)
    turned = [axis for axis in ((1, 2) if c.plan.slices else (0, 1, 2)) if uniform(generator, 0, 1) < 0.5]
    weight = torch.where(subject.inside[box] > 0.5, 1.0, OUTSIDE)
    return image[box].float().flip(turned), weight.flip(turned)
