"""A limit on the size of a network under construction: a configuration could ask for more memory than a machine has."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model_zoo.bundle import BundleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["limit_network_size"]

_SPARE = 4
"""Factor on the weights, since a network may build layers and replace them."""
_SMALL = (1_000, 1_000_000)
"""Numbers of tensors and of values that are always allowed."""


@contextmanager
def limit_network_size(label: str, weights: Path) -> Iterator[None]:
    """Raise BundleError when a network built by this thread has several times the tensors or values of the weights."""
    from safetensors import safe_open
    from torch.nn.modules.module import register_module_parameter_registration_hook

    with safe_open(weights, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  # no mapping
    limits = (_SPARE * len(shapes) + _SMALL[0], _SPARE * sum(map(math.prod, shapes)) + _SMALL[1])
    own_thread, counts = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != own_thread:
            return
        counts[0] += 1
        counts[1] += parameter.numel()
        if counts[0] > limits[0] or counts[1] > limits[1]:
            raise BundleError(f"{label}: network_def asks for a network several times as large as its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
