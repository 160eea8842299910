"""What a MONAI bundle gave, as findings: the channels that its metadata declare become segments or images.

``network_data_format.outputs.pred`` of metadata.json says whether labels or an image come out (``format``) and what
each channel is (``channel_def``). Labels are one channel of numbers or one channel of zeros and ones for each
structure; where these overlap, each is a segmentation of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import bundle_codes, bundle_volumes
from pipelines.codes import VOLUME
from pipelines.contract import Finding, Image, Measurement, Note, Refused, Segment, Segmentation, Volume

__all__ = ["OutputFormat", "make_findings", "read_output_format", "read_tensor_format"]

_BACKGROUND = ("background", "other", "void", "bg")
_LABELS = ("segmentation", "label", "labels", "one-hot", "onehot")
_NO_PICTURE = ("classes", "classification", "detection", "text", "graph", "box")
_MOST = 255
_UNNAMED = "label "


@dataclass(frozen=True)
class OutputFormat:
    """``labels``: whether labels come out, else images. ``channels``: what each channel of the network is; ``names``:
    of label numbers, where somebody said them; ``unit``: of images, UCUM."""

    title: str
    labels: bool
    channels: tuple[str, ...]
    names: Mapping[int, str]
    unit: str


@dataclass(frozen=True)
class _Layer:
    """Structures of which no two share a voxel: ``labels`` uint8 (k, j, i), numbered from 1 as ``names`` stand."""

    names: tuple[str, ...]
    labels: NDArray[np.uint8]


def read_tensor_format(metadata: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    """MONAI's declaration of the tensor that goes in ("inputs") or comes out; empty where there is none.

    Raises Refused where there are several: which is the image nobody says.
    """
    stated = metadata.get("network_data_format", {}).get(side, {})
    found = {name: each for name, each in stated.items() if isinstance(each, Mapping)}
    if len(found) > 1 and not {"image", "pred"} & found.keys():
        raise Refused(f"metadata.json declares the {side} {', '.join(found)}: this pipeline takes one")
    return found.get("image") or found.get("pred") or next(iter(found.values()), {})


def read_output_format(metadata: Mapping[str, Any], gives: str, labels: Mapping[str, str], unit: str) -> OutputFormat:
    """What comes out, by the metadata or by what a route says instead. Raises Refused where neither tells."""
    stated = read_tensor_format(metadata, "outputs")
    kind = str(stated.get("format", "")).lower()
    if not gives and (not kind or any(word in kind for word in _NO_PICTURE)):
        raise Refused(
            f"metadata.json declares the output format {kind or 'nowhere'!r}: neither labels nor an image; the option "
            "'gives' may say which it is"
        )
    said = stated.get("channel_def", {})
    channels = tuple(str(said.get(str(n), f"channel {n}")) for n in range(int(stated.get("num_channels", len(said)))))
    try:
        names = {int(number): name for number, name in labels.items()}
    except ValueError:
        raise Refused(f"option labels: {', '.join(labels)} are not all numbers") from None
    title = str(metadata.get("task") or metadata.get("name", "bundle"))
    return OutputFormat(
        title, gives == "labels" if gives else kind in _LABELS, channels, names, unit or _unit(kind) or "1"
    )


def make_findings(pred: Any, source: Volume, answer: OutputFormat) -> list[Finding]:
    """The findings of ``pred``, a MetaTensor (c, i, j, k), on the lattice of ``source``. Raises Refused."""
    if pred.ndim != 4:
        raise Refused(f"the bundle gives an array of {pred.ndim} axes; channels and three of space are wanted")
    data = bundle_volumes.resample_tensor(pred, source.grid, labels=answer.labels)
    if not np.isfinite(data).all():
        raise Refused("the bundle gives values that are no numbers")
    return _segmentations(data, source, answer) if answer.labels else _images(data, source, answer)


def _images(data: NDArray[np.float32], source: Volume, answer: OutputFormat) -> list[Finding]:
    named = answer.channels if len(answer.channels) == len(data) else tuple(f"channel {n}" for n in range(len(data)))
    found: list[Finding] = []
    for name, values in zip(named, data, strict=True):
        volume = Volume(np.ascontiguousarray(values), source.grid, answer.unit, source.slice_thickness_mm)
        found.append(Image(name, volume, f"{answer.title}: {_words(name)}", _thickness_mm(source)))
        found.append(Measurement(f"mean of {name}", float(values.mean()), answer.unit, "Over the whole image"))
    return found


def _segmentations(data: NDArray[np.float32], source: Volume, answer: OutputFormat) -> list[Finding]:
    """One segmentation, or one for each structure where they overlap; each structure's volume; what has no name."""
    layers = [_numbered(data[0], answer)] if len(data) == 1 else _by_channel(data, answer)
    found: list[Finding] = [_segmentation(each, source, answer, alone=len(layers) > 1) for each in layers]
    voxel_ml = float(np.prod(source.grid.spacing_mm)) / 1000
    number_found = 0
    for layer in layers:
        voxels = np.bincount(layer.labels.ravel(), minlength=len(layer.names) + 1)[1:]
        number_found += int((voxels > 0).sum())
        for name, count in zip(layer.names, voxels, strict=True):
            kind = bundle_codes.encode_label(name)
            site = kind if kind != bundle_codes.UNCODED else None
            ml = float(count) * voxel_ml
            found.append(Measurement("volume", ml, "ml", group=_words(name), site=site, quantity=VOLUME))
    found.append(Measurement("segments found", float(number_found), "1"))
    if unnamed := [name for layer in layers for name in layer.names if name.startswith(_UNNAMED)]:
        words = f"The bundle does not say what these are: {', '.join(unnamed)}; the option 'labels' may."
        found.append(Note("labels without a name", words))
    return found


def _segmentation(layer: _Layer, source: Volume, answer: OutputFormat, *, alone: bool) -> Segmentation:
    segments = tuple(
        Segment(number, _words(name), bundle_codes.categorise_label(name), bundle_codes.encode_label(name))
        for number, name in enumerate(layer.names, start=1)
    )
    called = layer.names[0] if alone else "segmentation"
    described = f"{answer.title}: {_words(called)}" if alone else answer.title
    return Segmentation(called, layer.labels, source.grid, segments, described, _thickness_mm(source))


def _numbered(data: NDArray[np.float32], answer: OutputFormat) -> _Layer:
    """A label map, its labels numbered without gaps. Declared structures are there though nothing of them was found."""
    if (data != np.round(data)).any() or data.min() < 0 or data.max() > _MOST:
        values = f"{data.min():g} to {data.max():g}"
        raise Refused(f"the bundle gives one channel of {values}, no labels; its postprocessing needs AsDiscreted")
    named = _names(answer)
    present = [int(number) for number in np.unique(data) if number]
    numbers = sorted({*named, *present} - {0})
    if not numbers:
        raise Refused("the bundle declares no structure and found none: there is nothing to say of this image")
    if numbers[-1] > _MOST:
        raise Refused(f"the bundle declares label {numbers[-1]}; no more than {_MOST} can be stored")
    lookup = np.zeros(_MOST + 1, np.uint8)
    lookup[numbers] = np.arange(1, len(numbers) + 1)
    names = tuple(named.get(n, f"{_UNNAMED}{n}") for n in numbers)
    return _Layer(_distinct(names), lookup[data.astype(np.uint8)])


def _names(answer: OutputFormat) -> dict[int, str]:
    """Label numbers are channel numbers only where the largest channel was taken, of which the first is background."""
    if answer.names:
        return dict(answer.names)
    if len(answer.channels) == 1:
        return {1: answer.channels[0]}
    if answer.channels and answer.channels[0].strip().lower() in _BACKGROUND:
        return {n: name for n, name in enumerate(answer.channels) if n}
    return {}


def _by_channel(data: NDArray[np.float32], answer: OutputFormat) -> list[_Layer]:
    """A mask for each channel: together where no voxel is in two, else each for itself."""
    if not all(np.isin(each, (0, 1)).all() for each in data):
        raise Refused("the bundle gives channels that are no masks of 0 and 1; its postprocessing needs AsDiscreted")
    if len(answer.channels) != len(data):
        raise Refused(f"the bundle gives {len(data)} channels, and metadata.json declares {len(answer.channels)}")
    names = _distinct(tuple(answer.names.get(n, name) for n, name in enumerate(answer.channels)))
    wanted = [n for n, name in enumerate(answer.channels) if name.strip().lower() not in _BACKGROUND]
    if not wanted:
        raise Refused("the bundle declares nothing but background: there is nothing to say of this image")
    if data[wanted].sum(axis=0).max() > 1:
        return [_Layer((names[n],), data[n].astype(np.uint8)) for n in wanted]
    labels = np.zeros(data.shape[1:], np.uint8)
    for number, n in enumerate(wanted, start=1):
        labels[data[n] > 0] = number
    return [_Layer(tuple(names[n] for n in wanted), labels)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Two structures of one name stay two."""
    return tuple(name if names.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(names, start=1))


def _words(name: str) -> str:
    text = " ".join(name.replace("_", " ").split())
    return text[:1].upper() + text[1:]


def _unit(kind: str) -> str:
    return "[hnsf'U]" if kind == "hounsfield" else ""


def _thickness_mm(source: Volume) -> float:
    return source.slice_thickness_mm or source.grid.spacing_mm[0]
