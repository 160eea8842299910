"""A smoke test of a bundle: its network runs on zeros of the declared shape and must return finite numbers.

MONAI's metadata declare the shape (``network_data_format``). For our own networks it follows from their definition, at
the ``shape`` of inference.json or at the smallest that their stride allows.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_zoo import monai_config, monai_rules, registry
from model_zoo.bundle import BundleError, BundleFacts, Model
from model_zoo.offline import offline

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SmokeResult", "available_devices", "run"]

_TYPICAL_SIZE = 32
"""Approximate number of voxels along each axis where the metadata leave the size open."""

_MOST_VALUES = 1 << 28


@dataclass(frozen=True)
class SmokeResult:
    """Result of a smoke test: device, shape of the first input, and seconds of the run with loading."""

    device: str
    shape: tuple[int, ...]
    seconds: float


def available_devices() -> list[str]:
    """Return the CPU, and the GPU where the machine has one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def run(facts: BundleFacts, device: str, *, trusted_code: bool = False) -> SmokeResult:
    """Load the bundle and run its network once; the steps of a MONAI configuration are built, not run.

    ``trusted_code``: the site allows the expressions of that configuration. Raises BundleError with the reason where
    the bundle does not run.
    """
    import torch

    start_s = time.monotonic()
    label = f"{facts.name}@{facts.version}"
    model = registry.load_from(facts, device=device)
    inputs = _inputs(facts, model)
    if monai_rules.has_inferer(model.settings):
        monai_config.build_steps(label, model.settings, device, trusted=trusted_code)
    try:
        with offline(label), torch.inference_mode():
            outputs = model.network(*(each.to(device) for each in inputs))
    except BundleError:
        raise
    except Exception as error:  # networks raise anything for an input that does not fit
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{label} does not run on {device}: {reason}") from None
    tensors = _tensors(outputs)
    if not tensors or not all(bool(torch.isfinite(each).all()) for each in tensors):
        raise BundleError(f"{label} gives no finite numbers on {device} for an input of zeros")
    _check_channels(label, facts.metadata, tensors[0])
    return SmokeResult(device, tuple(inputs[0].shape), round(time.monotonic() - start_s, 2))


def _inputs(facts: BundleFacts, model: Model) -> list[Tensor]:
    import torch

    declared = _declared_tensors(facts.metadata, "inputs")
    definition, settings = registry.read_definition(facts)
    if not declared:
        return _own_inputs(facts, definition, settings, model)
    label = f"{facts.name}@{facts.version}"
    return [torch.zeros(_shape(label, each)) for each in declared]


def _shape(label: str, declared: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of one image with its channels. Raises BundleError for more values than a machine holds."""
    channels, sizes = declared.get("num_channels"), declared["spatial_shape"]
    if not isinstance(channels, int) or not isinstance(sizes, list) or not 1 <= len(sizes) <= 3:
        raise BundleError(f"{label}: metadata.json declares no num_channels and spatial_shape that are understood")
    shape = (1, channels, *(_size(label, size) for size in sizes))
    if min(shape) < 1 or math.prod(shape) > _MOST_VALUES:
        raise BundleError(f"{label}: metadata.json declares an input of {' x '.join(map(str, shape))} values")
    return shape


def _own_inputs(
    facts: BundleFacts, definition: Mapping[str, Any], settings: Mapping[str, Any], model: Model
) -> list[Tensor]:
    """Return the inputs of our own networks, as their docstrings have them."""
    import torch

    kind = str(definition.get("_target_", "")).rpartition(".")[2]
    if kind == "DiffusionModelUNet" and "plan" in settings:
        sides = [_TYPICAL_SIZE] * int(definition["spatial_dims"])
        context = torch.zeros(1, 1, int(definition["cross_attention_dim"]))
        labels = torch.zeros(1, dtype=torch.int64)
        return [torch.zeros(1, definition["in_channels"], *sides), torch.zeros(1), context, labels]
    stride = int(getattr(model.network, "stride", 0))
    if (
        kind not in ("LocalUNet", "VolumeUNet", "MeanAndFlow", "LatentFlow", "SynDiff", "DoseTransfer", "PetUNet")
        or not stride
    ):
        raise BundleError(f"{facts.name}@{facts.version}: metadata.json declares no network_data_format to try it with")
    if kind == "LocalUNet":
        return [torch.zeros(1, definition.get("in_channels", 2), stride, stride), torch.zeros(1)]
    shape = tuple(settings.get("shape", (stride, stride, stride)))
    if kind == "PetUNet":
        tokens = torch.zeros(1, definition.get("tokens", 7), definition.get("token_width", 9))
        maps = torch.zeros(1, definition.get("structures", 23), *shape)
        x = torch.zeros(1, definition.get("tracers", 2), *shape)
        return [x, torch.zeros(1, 1, *shape), torch.zeros(1), torch.zeros(1), tokens, maps]
    return [torch.zeros(1, definition["in_channels"], *shape)]


def _declared_tensors(metadata: Mapping[str, Any], side: str) -> Sequence[Mapping[str, Any]]:
    """Return MONAI's declaration of the tensors that go in or come out, in their order."""
    tensors = metadata.get("network_data_format", {}).get(side, {})
    return [each for each in tensors.values() if isinstance(each, Mapping) and "spatial_shape" in each]


def _size(label: str, declared: object) -> int:
    """Return a size that MONAI declares as a number, or "*" for any, "16*n" or "2**p*n" for multiples."""
    if isinstance(declared, int):
        return declared
    text = str(declared).replace(" ", "")
    if text == "*" or re.fullmatch(r"2\*\*p(\*n)?", text):
        return _TYPICAL_SIZE
    if multiple := re.fullmatch(r"(?:(\d+)\*n|n\*(\d+)|(\d+))", text):
        base = int(next(group for group in multiple.groups() if group))
        return base if multiple[3] or not base else base * max(1, round(_TYPICAL_SIZE / base))
    raise BundleError(f"{label}: metadata.json declares the size {declared!r}, which is not understood")


def _tensors(outputs: object) -> list[Tensor]:
    import torch

    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [each for part in outputs for each in _tensors(part)] if isinstance(outputs, list | tuple) else []


def _check_channels(label: str, metadata: Mapping[str, Any], first: Tensor) -> None:
    for declared in _declared_tensors(metadata, "outputs")[:1]:
        channels = declared.get("num_channels")
        if isinstance(channels, int) and first.shape[1] != channels:
            raise BundleError(f"{label} gives {first.shape[1]} channels, and metadata.json declares {channels}")
