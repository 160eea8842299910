"""Packed projections: the array and the text of its geometry become line integrals, or they are refused."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dicomnode import sinogram
from model_zoo.ct_geometry import CtGeometry
from pipelines.contract import Refused
from tests.fuzz.changes import change
from tests.sinograms import make_counts, make_geometry, npy

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (Refused,)
_FAN = CtGeometry((8, 8), 20.0, 9, 12, 20.0, arc_deg=360.0, source_mm=500.0)
_ODD: tuple[Any, ...] = (0, -1, 1, 1e308, 1e-308, 2**63, "x", None, [], [1], [1e308] * 3, [0] * 6, True, {}, 1e9, 360)
_SEPARATOR = b"\0\0geometry\0\0"


def target(data: bytes) -> None:
    """``data``: the .npy file and the text of the geometry, between them a separator."""
    array, _, geometry = data.partition(_SEPARATOR)
    sinogram.pack(array, geometry.decode("utf-8", "replace"))


def examples() -> SearchStrategy[bytes]:
    """Arrays whose header is changed, with odd values in the geometry."""
    return st.one_of(_edited(), change(_array() + _SEPARATOR + json.dumps(make_geometry(_FAN)).encode()))


@cache
def _array() -> bytes:
    return npy(make_counts(_FAN))


@st.composite
def _edited(draw: DrawFn) -> bytes:
    geometry = make_geometry(_FAN)
    for _ in range(draw(st.integers(0, 3))):
        geometry[draw(st.sampled_from(sorted(geometry)))] = draw(st.sampled_from(_ODD))
    return draw(change(_array())) + _SEPARATOR + json.dumps(geometry).encode()
