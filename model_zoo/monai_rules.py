"""What of a MONAI configuration this node uses, and what that may be. Nothing here needs MONAI or torch.

Used are ``preprocessing``, ``inferer`` and ``postprocessing`` with all that they refer to, never data sets, evaluators,
``imports`` or ``run``. Transforms that read or write files are replaced by one that does nothing: arrays come from the
node and go back to it. What remains may name, as ``_target_``, the transforms and inferers of MONAI that are listed
here, and evaluate what ``expressions`` lets pass. Anything else is code of the bundle's own, which a site allows by the
digest of the configuration, or not at all.
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
    "ROOTS",
    "behind",
    "check",
    "digest",
    "first_wrong",
    "has_code",
    "is_arithmetic",
    "prepared",
    "swells",
    "used",
    "without_downloads",
]

ROOTS = ("preprocessing", "inferer", "postprocessing")
INFERENCE = Path("configs") / "inference.json"

_TRANSFORMS, _INFERERS = "monai.transforms", "monai.inferers"
_READS_OR_WRITES = ("LoadImage", "SaveImage")
_NOTHING = f"{_TRANSFORMS}.Identityd"
_KNOWN_TRANSFORMS = frozenset({
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
_KNOWN_INFERERS = frozenset({"SimpleInferer", "SliceInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt"})
_DIRECTIVES = frozenset({"_target_", "_disabled_", "_desc_"})
_DOWNLOADS: Mapping[str, Any] = {"pretrained": False, "pretrained_url": None, "weights": None, "checkpoint": None}
"""Arguments of MONAI's networks that load weights of others, by name, and the value that loads none."""
_ALWAYS_DOWNLOADS = frozenset({"Transchex"})
_ADDRESS = "://"
_MOST_PARTS = 200
_MOST_VALUES = 100_000
_SIGNS = ("$", "@", "%", "#", "::")


def digest(bundle: Path) -> str:
    """SHA-256 of the configuration that the bundle runs by."""
    return weights_digest(bundle / INFERENCE)


def has_code(settings: Mapping[str, Any]) -> bool:
    """Whether the configuration says how to come from an image to a result, as MONAI's do."""
    return "inferer" in settings


def used(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the configuration that are used, by their names, without reading and writing of files."""
    roots = {root: _without_files(copy.deepcopy(settings[root])) for root in ROOTS if root in settings}
    return behind(list(roots.values()), settings) | roots


def behind(part: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a part refers to, by name, and all that this refers to."""
    found: dict[str, Any] = {}
    waiting = _named_in(part)
    while waiting:
        name = waiting.pop()
        if name not in found and name in settings:
            found[name] = _without_files(copy.deepcopy(settings[name]))
            waiting += _named_in(found[name])
    return found


def swells(parts: Mapping[str, Any]) -> bool:
    """Whether there are too many of these parts that refer to each other, or too much when all is written out."""
    if len(parts) > _MOST_PARTS:
        return True
    own = {name: sum(1 for _ in _strings(part)) + 1 for name, part in parts.items()}
    named = {name: _named_in(part) for name, part in parts.items()}
    sizes = dict(own)
    for _ in parts:  # the longest way from one part to another passes each at most once
        sizes = {name: own[name] + sum(sizes.get(other, 0) for other in named[name]) for name in parts}
        if max(sizes.values()) > _MOST_VALUES:
            return True
    return False


def is_arithmetic(part: Any) -> bool:
    """Whether nothing in it makes an object, and nothing that it evaluates is more than harmless."""
    if isinstance(part, Mapping):
        return "_target_" not in part and not any(_wrong("", part)) and all(map(is_arithmetic, part.values()))
    return all(map(is_arithmetic, part)) if isinstance(part, list) else not any(_wrong("", part))


def prepared(settings: Mapping[str, Any], *, trusted: bool) -> dict[str, Any]:
    """What MONAI's parser is given: what is used, every class by its whole name; all of it where the site trusts it."""
    found = (
        {name: _without_files(copy.deepcopy(each)) for name, each in settings.items()} if trusted else used(settings)
    )
    _name_whole(found)
    _keep_labels_whole(found.get("postprocessing"))
    return found


def check(called: str, settings: Mapping[str, Any], digest_of_configuration: str) -> None:
    """Raise BundleError naming the key and what stands there, unless all that is used is known."""
    if wrong := first_wrong(settings):
        name = called.partition("@")[0]
        raise BundleError(
            f"{called}: {INFERENCE}: {wrong}. This node evaluates no code of a bundle unless its site has read and "
            f'allowed it: [models] trusted_code = {{ "{name}" = "{digest_of_configuration}" }}'
        )


def first_wrong(settings: Mapping[str, Any]) -> str:
    """The first thing that is used and not known, in words; empty where there is none."""
    if swells(used(settings)):
        return f"its references stand for more than {_MOST_VALUES} values, or for {_MOST_PARTS} parts"
    return next((words for name, part in used(settings).items() for words in _wrong(name, part)), "")


def without_downloads(called: str, network: type, definition: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network so that it loads no weights but the bundle's, whatever its defaults are.

    Raises BundleError for a network that always loads others, and for an address among the arguments.
    """
    if network.__name__ in _ALWAYS_DOWNLOADS:
        raise BundleError(f"{called}: the network {network.__name__} always downloads weights; it is not built here")
    taken = inspect.signature(network).parameters
    found = {**definition, **{name: off for name, off in _DOWNLOADS.items() if name in taken}}
    if addresses := [text for text in _strings(found) if _ADDRESS in text]:
        raise BundleError(f"{called}: network_def holds the address {addresses[0]!r}; nothing is downloaded")
    return found


def _wrong(where: str, part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        for key, each in part.items():
            yield from _wrong_key(where, key)
            yield from _wrong(f"{where}.{key}", each)
        if "_target_" in part and (why := _wrong_target(part["_target_"])):
            yield f"{where}._target_ = {part['_target_']!r} {why}"
    elif isinstance(part, list):
        for at, each in enumerate(part):
            yield from _wrong(f"{where}[{at}]", each)
    elif isinstance(part, str) and _ADDRESS in part and not where.endswith("._desc_"):
        yield f"{where} = {part!r} is an address, and nothing is downloaded"
    elif isinstance(part, str) and (why := expressions.wrong(part)):
        yield f"{where} = {part!r} is {why}" if not part.startswith("$") else f"{where} = {part!r} holds {why}"


def _wrong_key(where: str, key: object) -> Iterator[str]:
    text = str(key)
    if text.startswith("_") and text.endswith("_") and text not in _DIRECTIVES:
        yield f"{where} holds {text!r}, a directive that is not followed here"
    if any(sign in text for sign in _SIGNS):
        yield f"{where} holds the key {text!r}, which is no name"


def _wrong_target(target: object) -> str:
    return (
        "" if isinstance(target, str) and _whole_name(target) else "is none of the transforms and inferers known here"
    )


def _whole_name(target: str) -> str:
    """Module and name of a known class of MONAI, however it is called; empty for any other."""
    module, _, name = target.rpartition(".")
    for package, known in ((_TRANSFORMS, _is_transform), (_INFERERS, _is_inferer)):
        if known(name) and (module in ("", package) or module.startswith(f"{package}.")):
            return f"{package}.{name}"
    return ""


def _is_inferer(name: str) -> bool:
    return name in _KNOWN_INFERERS


def _is_transform(name: str) -> bool:
    return _base(name) in _KNOWN_TRANSFORMS


def _base(name: str) -> str:
    """Of a transform of arrays or of dictionaries, whose names end in d, D or Dict."""
    if name in _KNOWN_TRANSFORMS or name in _READS_OR_WRITES:
        return name
    return name.removesuffix("Dict") if name.endswith("Dict") else name.removesuffix("d").removesuffix("D")


def _without_files(part: Any) -> Any:
    """The same with transforms that read or write files doing nothing to the same keys, so that places stay."""
    if isinstance(part, dict):
        if _base(str(part.get("_target_", "")).rpartition(".")[2]) in _READS_OR_WRITES:
            return _nothing_done(part, part.get("ensure_channel_first") is True)
        return {key: _without_files(each) for key, each in part.items()}
    return [_without_files(each) for each in part] if isinstance(part, list) else part


def _nothing_done(part: Mapping[str, Any], channel_first: bool) -> dict[str, Any]:
    """Reading may have brought the channel to the front, which then is left to do."""
    target = f"{_TRANSFORMS}.EnsureChannelFirstd" if channel_first else _NOTHING
    return {"_target_": target, "keys": part.get("keys", "image"), "allow_missing_keys": True}


def _name_whole(part: Any) -> None:
    """A short name could mean whatever of that name is loaded."""
    if isinstance(part, dict):
        if isinstance(target := part.get("_target_"), str) and (whole := _whole_name(target)):
            part["_target_"] = whole
        for each in part.values():
            _name_whole(each)
    elif isinstance(part, list):
        for each in part:
            _name_whole(each)


def _keep_labels_whole(postprocessing: Any) -> None:
    """Labels that are brought back to the image's lattice are not averaged: between 1 and 3 there is no 2."""
    discrete = False
    transforms = postprocessing.get("transforms") if isinstance(postprocessing, dict) else None
    for each in (each for each in transforms or () if isinstance(each, dict)):
        name = _base(str(each.get("_target_", "")).rpartition(".")[2])
        discrete = discrete or name == "AsDiscrete"
        if name == "Invert" and discrete:
            each["nearest_interp"] = True


def _named_in(part: Any) -> list[str]:
    """The names that its references begin with."""
    return [each.partition("::")[0] for text in _strings(part) for each in expressions.references(text)]


def _strings(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        for each in part.values():
            yield from _strings(each)
    elif isinstance(part, list):
        for each in part:
            yield from _strings(each)
    elif isinstance(part, str):
        yield part
