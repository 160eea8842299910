"""Items of plans with holes: windows of one series whose middle slice is missing, with up to the plan's most in a row.

The slices lie along any axis of the volume. The target is the scan itself, its noise included: what a missing slice
would have shown. Two measured slices stay on either side of the gap; at times a further slice of the window is missing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo.simulate.acquisition import uniform
from model_zoo.training.translation_items import OUTSIDE, PreparedSubject, draw_box, draw_index
from model_zoo.translation import holes, network

if TYPE_CHECKING:
    from model_zoo.training.translation import Configuration
    from model_zoo.translation.plan import Plan

__all__ = ["draw_measured", "draw_window"]

FURTHER = 0.2
"""Share of windows with a further missing slice."""


def draw_window(c: Configuration, subject: PreparedSubject, generator: torch.Generator) -> dict[str, Tensor]:
    """Return one item of a batch, as ``translation_items.draw_patch`` does: ``input`` (2, slices, j, i)."""
    plan = c.plan
    turned = _turn(subject, torch.randperm(3, generator=generator, device=generator.device).tolist())
    box = draw_box(c, turned, generator)
    measured, middle = draw_measured(plan, generator), slice(plan.slices // 2, plan.slices // 2 + 1)
    window = turned.sources[plan.sources[0].name][box].float()
    item = {
        "input": holes.stack_window(plan, window, measured),
        "target": window[middle][None],
        "weight": torch.where(turned.inside[box] > 0.5, 1.0, OUTSIDE)[middle][None],
        "emphasis": torch.zeros_like(window[middle])[None],
    }
    flipped = [axis for axis in (1, 2, 3) if uniform(generator, 0, 1) < 0.5]
    return {name: x.flip(flipped).contiguous() for name, x in item.items()} | {
        "target_code": network.one_hot_code(plan, plan.targets[0].name),
        "brightness": torch.zeros(0),
        "tokens": network.covariate_tokens(plan, {}),
        "span": torch.tensor(plan.targets[0].parsed_scale.span),
    }


def draw_measured(plan: Plan, generator: torch.Generator) -> list[bool]:
    """Return which slices of a window are measured: all of them in the share of windows without a hole."""
    measured = [True] * plan.slices
    if uniform(generator, 0, 1) >= plan.holes:
        return measured
    count = 1 + draw_index(plan.most_missing, generator)
    first = plan.slices // 2 - draw_index(count, generator)
    measured[first : first + count] = [False] * count
    near = range(first - holes.MEASURED_BESIDE, first + count + holes.MEASURED_BESIDE)
    free = [n for n in range(plan.slices) if n not in near]
    if free and uniform(generator, 0, 1) < FURTHER:
        measured[free[draw_index(len(free), generator)]] = False
    return measured


def _turn(subject: PreparedSubject, order: list[int]) -> PreparedSubject:
    """Return the subject with its axes in another order."""
    return replace(
        subject,
        sources={name: x.permute(order) for name, x in subject.sources.items()},
        inside=subject.inside.permute(order),
        emphasis=subject.emphasis.permute(order),
    )
