"""Networks of translation: input channels, conditions, and the prediction of a whole volume.

Input: for each source its scaled values as 2 x - 1 (0 where it is missing), then for each source 1 where the case has
it and 0 where not. Conditions: the target's code, the brightness of the tissues in each source, tokens of covariates.
Output: the scaled target and the logarithm of the Laplace scale of its error.

Volumes go through ``VolumeUNet``; slices, with their neighbours as channels, through MONAI's ``DiffusionModelUNet``,
whose time is 0; windows of a plan with holes through ``SliceFiller`` (``translation.holes``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.networks.mean_and_flow import MeanAndFlow
from model_zoo.networks.slice_filler import SliceFiller
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.precision import autocast
from model_zoo.structures import number
from model_zoo.synthetic_dir import LEVEL_TISSUES
from model_zoo.translation.plan import Plan

__all__ = [
    "LOG_B",
    "Conditions",
    "Prediction",
    "Sampling",
    "apply_network",
    "context_width",
    "covariate_tokens",
    "describe_conditions",
    "describe_network",
    "make_context",
    "make_network",
    "measure_brightness",
    "predict",
    "run_on_volume",
    "split_output",
    "stack_slices",
    "stack_sources",
]

LOG_B = (-6.0, 1.0)
SLICE_FILLER = "model_zoo.networks.slice_filler.SliceFiller"
LARGEST_WHOLE = 6_000_000
"""Voxels of the largest volume that is not cut into windows."""
WINDOW = 128
SLICES_AT_ONCE = 8
SLICE_STRIDE = 16
"""Sides of slices are filled up to multiples of it."""
FEWEST_LEVEL_VOXELS = 20
_CENTRES = {"age": (60.0, 15.0), "e4": (0.5, 0.5), "mmse": (27.0, 3.0)}
"""Middle and width of covariates."""


@dataclass(frozen=True)
class Conditions:
    """Conditions of a batch: ``target`` one-hot (b, codes), ``brightness`` (b, n), ``tokens`` (b, covariates, w)."""

    target: Tensor
    brightness: Tensor
    tokens: Tensor

    @staticmethod
    def stack(batch: Mapping[str, Tensor]) -> Conditions:
        return Conditions(batch["target_code"], batch["brightness"], batch["tokens"])

    def repeat(self, count: int) -> Conditions:
        """Return the conditions of one item ``count`` times."""
        return Conditions(*(x.expand(count, *x.shape[1:]) for x in (self.target, self.brightness, self.tokens)))

    def forget(self, items: Tensor) -> Conditions:
        """Return the conditions with target and covariates unknown for these items: bool (b,)."""
        target, tokens = self.target.clone(), self.tokens.clone()
        target[items] = 0.0
        tokens[items, :, -2:] = 0.0
        return replace(self, target=target, tokens=tokens)


@dataclass(frozen=True)
class Prediction:
    """A scaled target: ``mean`` and ``sd``, the standard deviation of its error; each float (k, j, i).

    ``sample``: one of what the target can be, of engines that draw samples.
    """

    mean: Tensor
    sd: Tensor
    sample: Tensor | None = None


@dataclass(frozen=True)
class Sampling:
    """Settings of the samples that an engine draws: how many, in how many steps, by which generator (on the CPU).

    ``guidance``: weight of the conditions against none, 1 for no more than they say.
    """

    samples: int
    steps: int
    generator: torch.Generator
    guidance: float = 1.0


def count_codes(plan: Plan) -> int:
    return max(target.code for target in plan.targets)


def count_brightness(plan: Plan) -> int:
    return len(plan.sources) * len(LEVEL_TISSUES) if plan.labels == "structures" else 0


def token_width(plan: Plan) -> int:
    return len(plan.covariates) + 2 if plan.covariates else 0


def describe_conditions(plan: Plan) -> dict[str, int]:
    """Return the widths of the conditions that networks of volumes take."""
    return {"embedding": count_codes(plan) + count_brightness(plan), "tokens": token_width(plan)}


def describe_network(plan: Plan, size: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``network_def``: the class and its arguments. ``size``: the free ones, as channels and blocks."""
    channels = 2 * len(plan.sources) * max(plan.slices, 1)
    if plan.holes:
        filler = {"slices": plan.slices, "channels": size["channels"], "blocks": size["blocks"]}
        return {"_target_": SLICE_FILLER, **filler}
    if not plan.slices:
        own = {"in_channels": channels, "out_channels": 2, "norm": "soft"}
        return {"_target_": "model_zoo.networks.volume_unet.VolumeUNet", **own, **describe_conditions(plan), **size}
    width = [int(n) for n in size["channels"]]
    return {
        "_target_": "DiffusionModelUNet",
        "spatial_dims": 2,
        "in_channels": channels,
        "out_channels": 2,
        "num_res_blocks": [int(size["blocks"])] * len(width),
        "channels": width,
        "attention_levels": [False] * (len(width) - 1) + [True],
        "norm_num_groups": math.gcd(*width, 16),
        "num_head_channels": math.gcd(*width, 16),
        "with_conditioning": True,
        "cross_attention_dim": context_width(plan),
        "num_class_embeds": count_codes(plan),
    }


def make_network(definition: Mapping[str, Any]) -> nn.Module:
    """Return the untrained network of a ``network_def``: one of ours, or one of MONAI's."""
    arguments = {name: value for name, value in definition.items() if name != "_target_"}
    module, _, name = str(definition["_target_"]).rpartition(".")
    network_class = getattr(import_module(module or "monai.networks.nets"), name)
    network: nn.Module = network_class(**arguments)
    return network


def apply_network(network: nn.Module, x: Tensor, c: Conditions) -> Tensor:
    """Return the channels (b, out, k, j, i) for ``x`` (b, channels, k, j, i); of slices k is 1, the middle one."""
    if isinstance(network, VolumeUNet | MeanAndFlow):
        volume: Tensor = network(x, torch.cat([c.target, c.brightness], dim=1), c.tokens if c.tokens.shape[1] else None)
        return volume
    if isinstance(network, SliceFiller):
        filled: Tensor = network(x)
        return filled
    flat = x.flatten(1, 2)
    time = torch.zeros(len(x), device=x.device)
    slices: Tensor = network(flat, time, context=make_context(c), class_labels=c.target.argmax(dim=1))
    return slices[:, :, None]


def context_width(plan: Plan) -> int:
    """Return the width of ``make_context``'s tokens."""
    return max(count_brightness(plan), token_width(plan), 1)


def make_context(c: Conditions) -> Tensor:
    """Return the brightness and the covariates as tokens of one width: (b, tokens, width)."""
    width = max(c.brightness.shape[1], c.tokens.shape[2] if c.tokens.shape[1] else 0, 1)
    tokens = [functional.pad(c.brightness, (0, width - c.brightness.shape[1]))[:, None]]
    if c.tokens.shape[1]:
        tokens.append(functional.pad(c.tokens, (0, width - c.tokens.shape[2])))
    return torch.cat(tokens, dim=1)


def split_output(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scaled target and log b, each (b, 1, k, j, i), in float32."""
    y = channels.float()
    return y[:, 0:1], y[:, 1:2].clamp(*LOG_B)


def stack_sources(plan: Plan, volumes: Mapping[str, Tensor]) -> Tensor:
    """Return the input (2 sources, k, j, i) of the scaled volumes (k, j, i) that the case has, one or more.

    Raises ValueError without any.
    """
    own = [volumes.get(source.name) for source in plan.sources]
    first = next((x for x in own if x is not None), None)
    if first is None:
        raise ValueError("a translation needs one source or more")
    limits = [source.parsed_scale.limit for source in plan.sources]
    values = [
        torch.zeros_like(first) if x is None else 2 * x.clamp(0, most) - 1 for x, most in zip(own, limits, strict=True)
    ]
    return torch.stack([*values, *(torch.full_like(first, float(x is not None)) for x in own)])


def measure_brightness(plan: Plan, volumes: Mapping[str, Tensor], structure: Tensor | None) -> Tensor:
    """Return the medians of the scaled sources in each group of structures, less 1: float (sources times groups,).

    0 for a source or a structure that is missing. They show the protocol, which no patch alone does.
    """
    if plan.labels != "structures" or structure is None:
        return torch.zeros(count_brightness(plan))
    groups = [torch.tensor([number(name) for name in names]).to(structure) for names in LEVEL_TISSUES]
    masks = [torch.isin(structure, group) for group in groups]
    values = [
        _median_less_one(volumes[source.name], mask) if source.name in volumes else 0.0
        for source in plan.sources
        for mask in masks
    ]
    return torch.tensor(values)


def _median_less_one(image: Tensor, mask: Tensor) -> float:
    values = image[mask]
    return float(values.float().median()) - 1 if values.numel() >= FEWEST_LEVEL_VOXELS else 0.0


def covariate_tokens(plan: Plan, values: Mapping[str, float | str | None]) -> Tensor:
    """Return tokens (covariates, width): one-hot, 1 where the value is known, and the value centred and scaled.

    Raises ValueError for a sex other than F and M.
    """
    count = len(plan.covariates)
    tokens = torch.zeros(count, token_width(plan))
    for row, name in enumerate(plan.covariates):
        tokens[row, row] = 1.0
        if (value := values.get(name)) is not None:
            tokens[row, -2:] = torch.tensor([1.0, _scale_covariate(name, value)])
    return tokens


def _scale_covariate(name: str, value: float | str) -> float:
    if name == "sex":
        if value not in ("F", "M"):
            raise ValueError(f"sex {value!r} is neither F nor M")
        return 1.0 if value == "M" else -1.0
    if name == "ptau217":
        return math.log(max(float(value), 1e-3) / 0.5) / 0.4
    middle, width = _CENTRES[name]
    return (float(value) - middle) / width


def one_hot_code(plan: Plan, target: str) -> Tensor:
    """Return the target's code (codes,)."""
    code = torch.zeros(count_codes(plan))
    code[plan.find_target(target).code - 1] = 1.0
    return code


@torch.no_grad()
def predict(network: nn.Module, plan: Plan, x: Tensor, c: Conditions, *, bf16: bool = False) -> Prediction:
    """Return the prediction for a volume: ``x`` (2 sources, k, j, i), conditions of one item.

    ``bf16`` is off: bfloat16 has steps of 1 / 128 between 1 and 2, which would be seen.
    """
    network.eval()

    def run(part: Tensor) -> Tensor:
        with autocast(part.device.type, enabled=bf16):
            mean, log_b = split_output(apply_network(network, part, c.repeat(len(part))))
        return torch.cat([mean, log_b], dim=1)

    y = _run_on_slices(run, x, plan.slices) if plan.slices else run_on_volume(run, x, getattr(network, "stride", 1))
    return Prediction(y[0], math.sqrt(2) * y[1].exp())


def run_on_volume(run: Any, x: Tensor, stride: int) -> Tensor:
    """Return ``run`` on the volume, in overlapping windows where it is large."""
    from monai.inferers.utils import sliding_window_inference

    size = [math.ceil(n / stride) * stride for n in x.shape[1:]]
    window = size if math.prod(size) <= LARGEST_WHOLE else [min(n, WINDOW) for n in size]
    y: Tensor = sliding_window_inference(x[None], window, 1, run, overlap=0.25, mode="gaussian")
    return y[0]


def _run_on_slices(run: Any, x: Tensor, slices: int) -> Tensor:
    """Return ``run`` on each slice with its neighbours."""
    size = x.shape[-2:]
    missing = [math.ceil(n / SLICE_STRIDE) * SLICE_STRIDE - n for n in size]
    padded = functional.pad(x, (0, missing[1], 0, missing[0]))
    parts = [run(part) for part in torch.split(stack_slices(padded, slices), SLICES_AT_ONCE)]
    y = torch.cat(parts)[:, :, 0].movedim(0, 1)
    return y[..., : size[0], : size[1]]


def stack_slices(x: Tensor, slices: int) -> Tensor:
    """Return each slice of ``x`` (channels, k, j, i) with its neighbours, (k, channels, slices, j, i); the first and
    the last slice go on beyond the ends.
    """
    half = slices // 2
    at = torch.arange(x.shape[1])[:, None] + torch.arange(-half, half + 1)
    return x[:, at.clamp(0, x.shape[1] - 1)].movedim(0, 1)
