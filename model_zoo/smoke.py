"""Does a bundle run at all? Its network on zeros of the shape that it declares: what comes out must be finite numbers.

MONAI's metadata declare the shape (``network_data_format``); our own networks are told by their definition, at the
``shape`` of inference.json or at the least that their stride allows.
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

__all__ = ["Ran", "devices", "run"]

_ABOUT = 32
"""Where the metadata leave the size open, about so many voxels each way."""

_MOST_VALUES = 1 << 28


@dataclass(frozen=True)
class Ran:
    """How it went: the shape of the first input, and the seconds of the run with loading."""

    device: str
    shape: tuple[int, ...]
    seconds: float


def devices() -> list[str]:
    """The CPU, and the GPU where there is one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def run(facts: BundleFacts, device: str, *, trusted_code: bool = False) -> Ran:
    """Load the bundle and run its network once; what it has of MONAI's configuration is built, not run.

    Raises BundleError, with the reason, where it does not. ``trusted_code``: the site allows what that evaluates.
    """
    import torch

    started = time.monotonic()
    called = f"{facts.name}@{facts.version}"
    model = registry.load_from(facts, device=device)
    inputs = _inputs(facts, model)
    if monai_rules.has_code(model.settings):
        monai_config.built(called, model.settings, device, trusted=trusted_code)
    try:
        with offline(called), torch.inference_mode():
            found = model.network(*(each.to(device) for each in inputs))
    except BundleError:
        raise
    except Exception as error:  # whatever a network makes of an input that does not fit
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{called} does not run on {device}: {reason}") from None
    tensors = _tensors(found)
    if not tensors or not all(bool(torch.isfinite(each).all()) for each in tensors):
        raise BundleError(f"{called} gives no finite numbers on {device} for an input of zeros")
    _check_channels(called, facts.metadata, tensors[0])
    return Ran(device, tuple(inputs[0].shape), round(time.monotonic() - started, 2))


def _inputs(facts: BundleFacts, model: Model) -> list[Tensor]:
    import torch

    declared = _declared(facts.metadata, "inputs")
    definition, settings = registry.definition_of(facts)
    if not declared:
        return _own(facts, definition, settings, model)
    called = f"{facts.name}@{facts.version}"
    return [torch.zeros(_shape(called, each)) for each in declared]


def _shape(called: str, declared: Mapping[str, Any]) -> tuple[int, ...]:
    """Of one image, with its channels: no more values than any machine has room for."""
    channels, sizes = declared.get("num_channels"), declared["spatial_shape"]
    if not isinstance(channels, int) or not isinstance(sizes, list) or not 1 <= len(sizes) <= 3:
        raise BundleError(f"{called}: metadata.json declares no num_channels and spatial_shape that are understood")
    shape = (1, channels, *(_size(called, size) for size in sizes))
    if min(shape) < 1 or math.prod(shape) > _MOST_VALUES:
        raise BundleError(f"{called}: metadata.json declares an input of {' x '.join(map(str, shape))} values")
    return shape


def _own(facts: BundleFacts, definition: Mapping[str, Any], settings: Mapping[str, Any], model: Model) -> list[Tensor]:
    """What our networks take, by their docstrings."""
    import torch

    kind = str(definition.get("_target_", "")).rpartition(".")[2]
    stride = int(getattr(model.network, "stride", 0))
    if kind not in ("LocalUNet", "VolumeUNet", "DoseTransfer", "PetUNet") or not stride:
        raise BundleError(f"{facts.name}@{facts.version}: metadata.json declares no network_data_format to try it with")
    if kind == "LocalUNet":
        return [torch.zeros(1, definition.get("in_channels", 2), stride, stride), torch.zeros(1)]
    lattice = tuple(settings.get("shape", (stride, stride, stride)))
    if kind == "PetUNet":
        tokens = torch.zeros(1, definition.get("tokens", 7), definition.get("token_width", 9))
        maps = torch.zeros(1, definition.get("structures", 23), *lattice)
        x = torch.zeros(1, definition.get("tracers", 2), *lattice)
        return [x, torch.zeros(1, 1, *lattice), torch.zeros(1), torch.zeros(1), tokens, maps]
    return [torch.zeros(1, definition["in_channels"], *lattice)]


def _declared(metadata: Mapping[str, Any], side: str) -> Sequence[Mapping[str, Any]]:
    """MONAI's declaration of the tensors that go in or come out, in their order."""
    found = metadata.get("network_data_format", {}).get(side, {})
    return [each for each in found.values() if isinstance(each, Mapping) and "spatial_shape" in each]


def _size(called: str, stated: object) -> int:
    """A size as MONAI states it: a number, or "*" for any, "16*n" for multiples, "2**p*n" for multiples of powers."""
    if isinstance(stated, int):
        return stated
    words = str(stated).replace(" ", "")
    if words == "*" or re.fullmatch(r"2\*\*p(\*n)?", words):
        return _ABOUT
    if multiple := re.fullmatch(r"(?:(\d+)\*n|n\*(\d+)|(\d+))", words):
        base = int(next(group for group in multiple.groups() if group))
        return base if multiple[3] or not base else base * max(1, round(_ABOUT / base))
    raise BundleError(f"{called}: metadata.json declares the size {stated!r}, which is not understood")


def _tensors(found: object) -> list[Tensor]:
    import torch

    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, Mapping):
        found = list(found.values())
    return [each for part in found for each in _tensors(part)] if isinstance(found, list | tuple) else []


def _check_channels(called: str, metadata: Mapping[str, Any], first: Tensor) -> None:
    for declared in _declared(metadata, "outputs")[:1]:
        wanted = declared.get("num_channels")
        if isinstance(wanted, int) and first.shape[1] != wanted:
            raise BundleError(f"{called} gives {first.shape[1]} channels, and metadata.json declares {wanted}")
