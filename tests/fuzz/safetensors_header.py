"""Weights: a safetensors file is loaded, or refused by name, before it takes memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from model_zoo import registry
from model_zoo.bundle import BundleError, weights_digest
from model_zoo.networks import local_unet
from model_zoo.state_dicts import refuse_disguise
from tests.fuzz.changes import change, lengths

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (BundleError,)
_DEFINITION = {"_target_": f"{local_unet.__name__}.LocalUNet", "channels": [1], "blocks": 0}
"""A network that no file here fits: one that is loaded is refused for its tensors."""
_SHAPES: tuple[Any, ...] = (
    [1, 1],
    [1],
    [],
    [0],
    [-1],
    [2**63],
    [2**32, 2**32],
    [1] * 100,
    "x",
    None,
    [1.5],
    [99999999999999],
)
_TYPES = ("F32", "F64", "BF16", "F8_E4M3", "U64", "C64", "X", "", None, 4)
_OFFSETS = ([0, 4], [4, 8], [0, 8], [4, 0], [0, 2**63], [-4, 0], [0], "x", None)
_NAMES = ("first.weight", "first.bias", "x", "", "__metadata__", "../x", "\ud800")


def target(data: bytes) -> None:
    """``data``: the file with the weights of a bundle."""
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / "b"
        (bundle / "configs").mkdir(parents=True)
        weights = bundle / registry.WEIGHTS
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(data)
        refuse_disguise(weights, "b")
        metadata = {"name": "b", "version": "1", "weights_sha256": weights_digest(weights)}
        (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
        (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": _DEFINITION}))
        registry.load_from(registry.read_facts(bundle))


def examples() -> SearchStrategy[bytes]:
    """Files with odd shapes, types, offsets and lengths, changed at their bytes."""
    valid = {"first.weight": _entry([1, 1], [0, 4]), "first.bias": _entry([1], [4, 8])}
    whole = _encode(valid)
    return st.one_of(_files(valid), st.just(whole)).flatmap(lambda content: change(content, [whole]))


def _entry(shape: Any, offsets: Any, kind: Any = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


def _encode(header: Any, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(8)


@st.composite
def _files(draw: DrawFn, valid: dict[str, Any]) -> bytes:
    header: dict[str, Any] = dict(valid)
    for name in draw(st.lists(st.sampled_from(_NAMES), max_size=2)):
        entry = _entry(draw(st.sampled_from(_SHAPES)), draw(st.sampled_from(_OFFSETS)), draw(st.sampled_from(_TYPES)))
        header[name] = draw(st.sampled_from((entry, [], "x", {}, {"a": 1})))
    return _encode(header, draw(st.one_of(st.none(), lengths(len(json.dumps(header))))))
