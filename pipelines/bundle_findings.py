"""Findings from the output of a MONAI bundle: the channels that its metadata declare become segments or images.

``network_data_format.outputs.pred`` of metadata.json states whether the output is labels or an image (``format``) and
the meaning of each channel (``channel_def``). Labels are one channel of numbers or one channel of zeros and ones for
each structure; where these overlap, each is a segmentation of its own.
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
_NOT_AN_IMAGE = ("classes", "classification", "detection", "text", "graph", "box")
_MAX_LABEL = 255
_UNNAMED = "label "


@dataclass(frozen=True)
class OutputFormat:
    """Declared output of a bundle.

    ``labels``: True for labels, False for images. ``channels``: meaning of each channel of the network; ``names``:
    names of label numbers, where a route states them; ``unit``: unit of images, UCUM.
    """

    title: str
    labels: bool
    channels: tuple[str, ...]
    names: Mapping[int, str]
    unit: str


@dataclass(frozen=True)
class _Layer:
    """Structures that do not overlap: ``labels`` uint8 (k, j, i), numbered from 1 in the order of ``names``."""

    names: tuple[str, ...]
    labels: NDArray[np.uint8]


def read_tensor_format(metadata: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    """Return MONAI's declaration of the input tensor ("inputs") or output tensor ("outputs"); empty where none stands.

    Raises Refused for several tensors, because none of them is marked as the image.
    """
    declarations = metadata.get("network_data_format", {}).get(side, {})
    tensors = {name: each for name, each in declarations.items() if isinstance(each, Mapping)}
    if len(tensors) > 1 and not {"image", "pred"} & tensors.keys():
        raise Refused(f"metadata.json declares the {side} {', '.join(tensors)}: this pipeline takes one")
    return tensors.get("image") or tensors.get("pred") or next(iter(tensors.values()), {})


def read_output_format(metadata: Mapping[str, Any], gives: str, labels: Mapping[str, str], unit: str) -> OutputFormat:
    """Return the output's format, by the metadata or by a route's options. Raises Refused where neither states it."""
    declaration = read_tensor_format(metadata, "outputs")
    kind = str(declaration.get("format", "")).lower()
    if not gives and (not kind or any(term in kind for term in _NOT_AN_IMAGE)):
        raise Refused(
            f"metadata.json declares the output format {kind or 'nowhere'!r}: neither labels nor an image; the option "
            "'gives' may say which it is"
        )
    channel_def = declaration.get("channel_def", {})
    channels = tuple(
        str(channel_def.get(str(n), f"channel {n}"))
        for n in range(int(declaration.get("num_channels", len(channel_def))))
    )
    try:
        names = {int(number): name for number, name in labels.items()}
    except ValueError:
        raise Refused(f"option labels: {', '.join(labels)} are not all numbers") from None
    title = str(metadata.get("task") or metadata.get("name", "bundle"))
    return OutputFormat(
        title, gives == "labels" if gives else kind in _LABELS, channels, names, unit or _unit(kind) or "1"
    )


def make_findings(pred: Any, source: Volume, output_format: OutputFormat) -> list[Finding]:
    """Return the findings of ``pred``, a MetaTensor (c, i, j, k), on the grid of ``source``. Raises Refused."""
    if pred.ndim != 4:
        raise Refused(f"the bundle gives an array of {pred.ndim} axes; channels and three of space are wanted")
    data = bundle_volumes.resample_tensor(pred, source.grid, labels=output_format.labels)
    if not np.isfinite(data).all():
        raise Refused("the bundle gives values that are no numbers")
    return _segmentations(data, source, output_format) if output_format.labels else _images(data, source, output_format)


def _images(data: NDArray[np.float32], source: Volume, output_format: OutputFormat) -> list[Finding]:
    names = (
        output_format.channels
        if len(output_format.channels) == len(data)
        else tuple(f"channel {n}" for n in range(len(data)))
    )
    findings: list[Finding] = []
    for name, values in zip(names, data, strict=True):
        volume = Volume(np.ascontiguousarray(values), source.grid, output_format.unit, source.slice_thickness_mm)
        findings.append(Image(name, volume, f"{output_format.title}: {_capitalise(name)}", _thickness_mm(source)))
        findings.append(
            Measurement(f"mean of {name}", float(values.mean()), output_format.unit, "Over the whole image")
        )
    return findings


def _segmentations(data: NDArray[np.float32], source: Volume, output_format: OutputFormat) -> list[Finding]:
    """Return one segmentation, or one per structure where they overlap, with volumes and a note on unnamed labels."""
    layers = [_layer_of_labels(data[0], output_format)] if len(data) == 1 else _layers_of_channels(data, output_format)
    findings: list[Finding] = [_segmentation(each, source, output_format, alone=len(layers) > 1) for each in layers]
    voxel_ml = float(np.prod(source.grid.spacing_mm)) / 1000
    number_found = 0
    for layer in layers:
        voxels = np.bincount(layer.labels.ravel(), minlength=len(layer.names) + 1)[1:]
        number_found += int((voxels > 0).sum())
        for name, count in zip(layer.names, voxels, strict=True):
            kind = bundle_codes.encode_label(name)
            site = kind if kind != bundle_codes.UNCODED else None
            ml = float(count) * voxel_ml
            findings.append(Measurement("volume", ml, "ml", group=_capitalise(name), site=site, quantity=VOLUME))
    findings.append(Measurement("segments found", float(number_found), "1"))
    if unnamed := [name for layer in layers for name in layer.names if name.startswith(_UNNAMED)]:
        words = f"The bundle does not say what these are: {', '.join(unnamed)}; the option 'labels' may."
        findings.append(Note("labels without a name", words))
    return findings


def _segmentation(layer: _Layer, source: Volume, output_format: OutputFormat, *, alone: bool) -> Segmentation:
    segments = tuple(
        Segment(number, _capitalise(name), bundle_codes.categorise_label(name), bundle_codes.encode_label(name))
        for number, name in enumerate(layer.names, start=1)
    )
    called = layer.names[0] if alone else "segmentation"
    described = f"{output_format.title}: {_capitalise(called)}" if alone else output_format.title
    return Segmentation(called, layer.labels, source.grid, segments, described, _thickness_mm(source))


def _layer_of_labels(data: NDArray[np.float32], output_format: OutputFormat) -> _Layer:
    """Return a label map with labels numbered without gaps, including declared structures that are empty."""
    if (data != np.round(data)).any() or data.min() < 0 or data.max() > _MAX_LABEL:
        values = f"{data.min():g} to {data.max():g}"
        raise Refused(f"the bundle gives one channel of {values}, no labels; its postprocessing needs AsDiscreted")
    known_names = _label_names(output_format)
    present = [int(number) for number in np.unique(data) if number]
    numbers = sorted({*known_names, *present} - {0})
    if not numbers:
        raise Refused("the bundle declares no structure and found none: there is nothing to say of this image")
    if numbers[-1] > _MAX_LABEL:
        raise Refused(f"the bundle declares label {numbers[-1]}; no more than {_MAX_LABEL} can be stored")
    lookup = np.zeros(_MAX_LABEL + 1, np.uint8)
    lookup[numbers] = np.arange(1, len(numbers) + 1)
    names = tuple(known_names.get(n, f"{_UNNAMED}{n}") for n in numbers)
    return _Layer(_make_distinct(names), lookup[data.astype(np.uint8)])


def _label_names(output_format: OutputFormat) -> dict[int, str]:
    """Return the names of label numbers.

    Label numbers are channel numbers only where an argmax over channels was taken, the first of which is background.
    """
    if output_format.names:
        return dict(output_format.names)
    if len(output_format.channels) == 1:
        return {1: output_format.channels[0]}
    if output_format.channels and output_format.channels[0].strip().lower() in _BACKGROUND:
        return {n: name for n, name in enumerate(output_format.channels) if n}
    return {}


def _layers_of_channels(data: NDArray[np.float32], output_format: OutputFormat) -> list[_Layer]:
    """Return a mask for each channel: all in one layer where none overlap, else one layer each."""
    if not all(np.isin(each, (0, 1)).all() for each in data):
        raise Refused("the bundle gives channels that are no masks of 0 and 1; its postprocessing needs AsDiscreted")
    if len(output_format.channels) != len(data):
        raise Refused(
            f"the bundle gives {len(data)} channels, and metadata.json declares {len(output_format.channels)}"
        )
    names = _make_distinct(tuple(output_format.names.get(n, name) for n, name in enumerate(output_format.channels)))
    foreground = [n for n, name in enumerate(output_format.channels) if name.strip().lower() not in _BACKGROUND]
    if not foreground:
        raise Refused("the bundle declares nothing but background: there is nothing to say of this image")
    if data[foreground].sum(axis=0).max() > 1:
        return [_Layer((names[n],), data[n].astype(np.uint8)) for n in foreground]
    labels = np.zeros(data.shape[1:], np.uint8)
    for number, n in enumerate(foreground, start=1):
        labels[data[n] > 0] = number
    return [_Layer(tuple(names[n] for n in foreground), labels)]


def _make_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names, made distinct by their numbers where several are equal."""
    return tuple(name if names.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(names, start=1))


def _capitalise(name: str) -> str:
    text = " ".join(name.replace("_", " ").split())
    return text[:1].upper() + text[1:]


def _unit(kind: str) -> str:
    return "[hnsf'U]" if kind == "hounsfield" else ""


def _thickness_mm(source: Volume) -> float:
    return source.slice_thickness_mm or source.grid.spacing_mm[0]
