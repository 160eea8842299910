"""Networks run in bfloat16 only where the processor is fast in it."""

from __future__ import annotations

import time

import pytest
import torch

from model_zoo import precision


def _measure_cpu_seconds(enabled: bool) -> float:
    layer, x = torch.nn.Conv3d(8, 8, 3, padding=1), torch.ones(1, 8, 24, 24, 24)
    with torch.no_grad(), precision.autocast("cpu", enabled=enabled):
        layer(x)
        begin = time.process_time()
        layer(x)
        return time.process_time() - begin


def test_a_convolution_is_not_slower_by_orders_of_magnitude() -> None:
    chosen, single = (min(_measure_cpu_seconds(enabled) for _ in range(3)) for enabled in (True, False))
    assert chosen < 20 * single + 0.1


@pytest.mark.parametrize("has_it", [True, False])
def test_a_graphics_processor_that_only_emulates_bfloat16_computes_in_float32(
    has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_supported(*, including_emulation: bool) -> bool:
        return including_emulation or has_it

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert precision.has_bfloat16.__wrapped__("cuda") is has_it


@pytest.mark.parametrize("has_it", [True, False])
def test_the_precision_is_that_of_the_processor(has_it: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device_type: has_it)
    with torch.no_grad(), precision.autocast("cpu"):
        found = torch.ones(2, 2) @ torch.ones(2, 2)
    assert found.dtype == (torch.bfloat16 if has_it else torch.float32)
    with precision.autocast("cpu", enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("has_it", "name"), [(True, "cpu"), (False, "cpu without bfloat16")])
def test_provenance_names_a_processor_without_bfloat16(
    has_it: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device_type: has_it)
    assert precision.device_name("cpu") == name
