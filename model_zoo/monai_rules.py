"""Rules for the parts of a MONAI configuration that this node uses. Nothing here needs MONAI or torch.

These parts are ``preprocessing``, ``inferer`` and ``postprocessing`` with all that they refer to, never data sets,
evaluators, ``imports`` or ``run``. Transforms that read or write files are replaced by one that does nothing: arrays
come from the node and go back to it. The remaining parts may name, as ``_target_``, the transforms and inferers of
MONAI that are listed here, and evaluate expressions that pass ``expressions``. Anything else is code of the bundle's
own, which a site allows by the digest of the configuration, or not at all.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_zoo import expressions
from model_zoo.bundle import BundleError, weights_digest

__all__ = [
    "INFERENCE",
    "KNOWN_INFERERS",
    "KNOWN_TRANSFORMS",
    "ROOTS",
    "check_configuration",
    "collect_references",
    "configuration_digest",
    "disable_downloads",
    "find_violation",
    "has_inferer",
    "is_arithmetic",
    "is_too_large",
    "prepare_for_parser",
    "select_used_parts",
]

ROOTS = ("preprocessing", "inferer", "postprocessing")
INFERENCE = Path("configs") / "inference.json"

_TRANSFORMS, _INFERERS = "monai.transforms", "monai.inferers"
_READS_OR_WRITES = ("LoadImage", "SaveImage")
_IDENTITY = f"{_TRANSFORMS}.Identityd"
KNOWN_TRANSFORMS = frozenset({
    "Activations", "AdjustContrast", "AsDiscrete", "BorderPad", "CastToType", "CenterScaleCrop", "CenterSpatialCrop",
    "ClipIntensityPercentiles", "Compose", "ConcatItems", "CopyItems", "CropForeground", "DeleteItems", "DivisiblePad",
    "EnsureChannelFirst", "EnsureType", "FillHoles", "Flip", "GaussianSharpen", "GaussianSmooth", "HistogramNormalize",
    "Identity", "Invert", "KeepLargestConnectedComponent", "LabelFilter", "Lambda", "MapLabelValue", "MaskIntensity",
    "MeanEnsemble", "MedianSmooth", "NormalizeIntensity", "Orientation", "Pad", "RemoveRepeatedChannel",
    "RemoveSmallObjects", "RepeatChannel", "Resize", "ResizeWithPadOrCrop", "Rotate90", "ScaleIntensity",
    "ScaleIntensityRange", "ScaleIntensityRangePercentiles", "SelectItems", "ShiftIntensity", "Spacing", "SpatialCrop",
    "SpatialPad", "SpatialResample", "SplitDim", "SqueezeDim", "StdShiftIntensity", "ThresholdIntensity", "ToDevice",
    "ToTensor", "Transpose", "VoteEnsemble", "Zoom",
})  # fmt: skip
"""Array transforms of ``monai.transforms`` that a configuration may name, also as dictionary transforms."""
KNOWN_INFERERS = frozenset({"SimpleInferer", "SliceInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt"})
"""Inferers of ``monai.inferers`` that a configuration may name."""
_DIRECTIVES = frozenset({"_target_", "_disabled_", "_desc_"})
_DOWNLOADS: Mapping[str, Any] = {"pretrained": False, "pretrained_url": None, "weights": None, "checkpoint": None}
"""Arguments of MONAI's networks that load other weights, by name, and the value that loads none."""
_ALWAYS_DOWNLOADS = frozenset({"Transchex"})
_ADDRESS = "://"
_MOST_PARTS = 200
_MOST_VALUES = 100_000
_SIGNS = ("$", "@", "%", "#", "::")


def configuration_digest(bundle: Path) -> str:
    """Return the SHA-256 of the configuration by which the bundle runs."""
    return weights_digest(bundle / INFERENCE)


def has_inferer(settings: Mapping[str, Any]) -> bool:
    """Return whether the configuration describes the steps from an image to a result, as MONAI's do."""
    return "inferer" in settings


def select_used_parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of the configuration that are used, by their names, without reading and writing of files."""
    roots = {root: _disable_files(copy.deepcopy(settings[root])) for root in ROOTS if root in settings}
    return collect_references(list(roots.values()), settings) | roots


def collect_references(part: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parts to which a part refers, directly or through other parts, by name."""
    parts: dict[str, Any] = {}
    pending = _referenced_names(part)
    while pending:
        name = pending.pop()
        if name not in parts and name in settings:
            parts[name] = _disable_files(copy.deepcopy(settings[name]))
            pending += _referenced_names(parts[name])
    return parts


def is_too_large(parts: Mapping[str, Any]) -> bool:
    """Return whether the parts are too many, or hold too many values when all references are written out."""
    if len(parts) > _MOST_PARTS:
        return True
    own_sizes = {name: sum(1 for _ in _strings(part)) + 1 for name, part in parts.items()}
    references = {name: _referenced_names(part) for name, part in parts.items()}
    sizes = dict(own_sizes)
    for _ in parts:  # the longest path from one part to another passes each at most once
        sizes = {name: own_sizes[name] + sum(sizes.get(other, 0) for other in references[name]) for name in parts}
        if max(sizes.values()) > _MOST_VALUES:
            return True
    return False


def is_arithmetic(part: Any) -> bool:
    """Return whether a part makes no object and evaluates nothing but harmless expressions."""
    if isinstance(part, Mapping):
        return "_target_" not in part and not any(_violations("", part)) and all(map(is_arithmetic, part.values()))
    return all(map(is_arithmetic, part)) if isinstance(part, list) else not any(_violations("", part))


def prepare_for_parser(settings: Mapping[str, Any], *, trusted: bool) -> dict[str, Any]:
    """Return the input of MONAI's parser: the used parts, every class by its full name.

    Where the site trusts the configuration, the input is all of it.
    """
    content = (
        {name: _disable_files(copy.deepcopy(each)) for name, each in settings.items()}
        if trusted
        else select_used_parts(settings)
    )
    _use_full_names(content)
    _invert_labels_by_nearest(content.get("postprocessing"))
    return content


def check_configuration(label: str, settings: Mapping[str, Any], digest_of_configuration: str) -> None:
    """Raise BundleError with the key and its value, unless everything that is used is known."""
    if violation := find_violation(settings):
        name = label.partition("@")[0]
        raise BundleError(
            f"{label}: {INFERENCE}: {violation}. This node evaluates no code of a bundle unless its site has read and "
            f'allowed it: [models] trusted_code = {{ "{name}" = "{digest_of_configuration}" }}'
        )


def find_violation(settings: Mapping[str, Any]) -> str:
    """Describe the first part that is used and not known; empty for none."""
    if is_too_large(select_used_parts(settings)):
        return f"its references stand for more than {_MOST_VALUES} values, or for {_MOST_PARTS} parts"
    return next(
        (violation for name, part in select_used_parts(settings).items() for violation in _violations(name, part)), ""
    )


def disable_downloads(label: str, network: type, definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network with which it loads no weights but the bundle's, whatever its defaults are.

    Raises BundleError for a network that always loads other weights, and for an address among the arguments.
    """
    if network.__name__ in _ALWAYS_DOWNLOADS:
        raise BundleError(f"{label}: the network {network.__name__} always downloads weights; it is not built here")
    parameters = inspect.signature(network).parameters
    arguments = {**definition, **{name: disabled for name, disabled in _DOWNLOADS.items() if name in parameters}}
    if addresses := [text for text in _strings(arguments) if _ADDRESS in text]:
        raise BundleError(f"{label}: network_def holds the address {addresses[0]!r}; nothing is downloaded")
    return arguments


def _violations(place: str, part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        for key, each in part.items():
            yield from _key_violations(place, key)
            yield from _violations(f"{place}.{key}", each)
        if "_target_" in part and (reason := _find_violation_of_target(part["_target_"])):
            yield f"{place}._target_ = {part['_target_']!r} {reason}"
    elif isinstance(part, list):
        for index, each in enumerate(part):
            yield from _violations(f"{place}[{index}]", each)
    elif isinstance(part, str) and _ADDRESS in part and not place.endswith("._desc_"):
        yield f"{place} = {part!r} is an address, and nothing is downloaded"
    elif isinstance(part, str) and (reason := expressions.find_violation(part)):
        yield f"{place} = {part!r} is {reason}" if not part.startswith("$") else f"{place} = {part!r} holds {reason}"


def _key_violations(place: str, key: object) -> Iterator[str]:
    text = str(key)
    if text.startswith("_") and text.endswith("_") and text not in _DIRECTIVES:
        yield f"{place} holds {text!r}, a directive that is not followed here"
    if any(sign in text for sign in _SIGNS):
        yield f"{place} holds the key {text!r}, which is no name"


def _find_violation_of_target(target: object) -> str:
    return "" if isinstance(target, str) and _full_name(target) else "is none of the transforms and inferers known here"


def _full_name(target: str) -> str:
    """Return module and name of a known class of MONAI by any of its names; empty for any other class."""
    module, _, name = target.rpartition(".")
    for package, known in ((_TRANSFORMS, _is_transform), (_INFERERS, _is_inferer)):
        if known(name) and (module in ("", package) or module.startswith(f"{package}.")):
            return f"{package}.{name}"
    return ""


def _is_inferer(name: str) -> bool:
    return name in KNOWN_INFERERS


def _is_transform(name: str) -> bool:
    return _array_transform(name) in KNOWN_TRANSFORMS


def _array_transform(name: str) -> str:
    """Return the name of the array transform for a transform of dictionaries, whose name ends in d, D or Dict."""
    if name in KNOWN_TRANSFORMS or name in _READS_OR_WRITES:
        return name
    return name.removesuffix("Dict") if name.endswith("Dict") else name.removesuffix("d").removesuffix("D")


def _disable_files(part: Any) -> Any:
    """Replace transforms that read or write files by ones that do nothing to the same keys.

    Positions in lists therefore stay the same.
    """
    if isinstance(part, dict):
        if _array_transform(str(part.get("_target_", "")).rpartition(".")[2]) in _READS_OR_WRITES:
            return _identity_transform(part, part.get("ensure_channel_first") is True)
        return {key: _disable_files(each) for key, each in part.items()}
    return [_disable_files(each) for each in part] if isinstance(part, list) else part


def _identity_transform(part: Mapping[str, Any], channel_first: bool) -> dict[str, Any]:
    """Return the transform in the place of a reader or writer.

    A reader may move the channel to the front (``channel_first``); this step remains.
    """
    target = f"{_TRANSFORMS}.EnsureChannelFirstd" if channel_first else _IDENTITY
    return {"_target_": target, "keys": part.get("keys", "image"), "allow_missing_keys": True}


def _use_full_names(part: Any) -> None:
    """Replace short names of known classes by full ones: a short name could mean any loaded class of that name."""
    if isinstance(part, dict):
        if isinstance(target := part.get("_target_"), str) and (full_name := _full_name(target)):
            part["_target_"] = full_name
        for each in part.values():
            _use_full_names(each)
    elif isinstance(part, list):
        for each in part:
            _use_full_names(each)


def _invert_labels_by_nearest(postprocessing: Any) -> None:
    """Invert transforms of labels by the nearest voxel: an average of the labels 1 and 3 would be 2."""
    discrete = False
    transforms = postprocessing.get("transforms") if isinstance(postprocessing, dict) else None
    for each in (each for each in transforms or () if isinstance(each, dict)):
        name = _array_transform(str(each.get("_target_", "")).rpartition(".")[2])
        discrete = discrete or name == "AsDiscrete"
        if name == "Invert" and discrete:
            each["nearest_interp"] = True


def _referenced_names(part: Any) -> list[str]:
    """Return the names at the start of a part's references."""
    return [each.partition("::")[0] for text in _strings(part) for each in expressions.find_references(text)]


def _strings(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        for each in part.values():
            yield from _strings(each)
    elif isinstance(part, list):
        for each in part:
            yield from _strings(each)
    elif isinstance(part, str):
        yield part
