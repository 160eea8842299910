"""A bundle's own steps from an image to a result, built by MONAI's ConfigParser. MONAI is imported on use.

A configuration that is parsed has passed ``monai_rules``, at installation and again here, unless the site trusts this
configuration.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from model_zoo import monai_rules
from model_zoo.bundle import BundleError, Model
from model_zoo.memory_limit import limit_memory
from model_zoo.offline import offline

__all__ = ["Steps", "build_model_steps", "build_steps", "evaluate_definition", "innermost_reason", "suppress_warnings"]

WITHOUT_MONAI = "needs MONAI, which is not installed here: pip install monai"
_MOST_BYTES = 1 << 30
"""Memory for the values of a configuration: an expression of ten letters may ask for all that there is."""


@dataclass(frozen=True)
class Steps:
    """The steps of a bundle.

    ``preprocessing`` and ``postprocessing`` take and return a dict of tensors by name, ``inferer`` takes (batch,
    network). ``image``: name of the image for preprocessing; ``pred``: name of the network's output for postprocessing.
    """

    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[..., Any]
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    image: str
    pred: str


def build_model_steps(model: Model) -> Steps:
    """Build the steps of a loaded model. Raises BundleError where they are unknown or do not fit, or without MONAI."""
    label = f"{model.name}@{model.version}"
    return build_steps(label, model.settings, model.device, trusted=model.trusted_code)


def build_steps(label: str, settings: Mapping[str, Any], device: str, *, trusted: bool) -> Steps:
    """Build the steps of the configuration ``settings``, on ``device`` whatever device the bundle names."""
    if "inferer" not in settings:
        raise BundleError(f"{label}: {monai_rules.INFERENCE} has no inferer: it does not say how to come to a result")
    if not trusted and (violation := monai_rules.find_violation(settings)):
        raise BundleError(f"{label}: {monai_rules.INFERENCE}: {violation}")
    try:
        from monai.bundle import ConfigParser
    except ModuleNotFoundError:
        raise BundleError(f"{label} {WITHOUT_MONAI}") from None
    content = monai_rules.prepare_for_parser(settings, trusted=trusted) | {"device": f"$torch.device('{device}')"}
    try:
        with offline(label), suppress_warnings(), limit_memory(_MOST_BYTES):
            parser = ConfigParser(content)
            parts = {root: parser.get_parsed_content(root) for root in monai_rules.ROOTS if root in content}
    except BundleError:
        raise
    except Exception as error:  # MONAI's classes raise anything for arguments that they do not take
        raise BundleError(f"{label}: {monai_rules.INFERENCE} cannot be used ({_explain(error)})") from None
    preprocessing, postprocessing = parts.get("preprocessing"), parts.get("postprocessing")
    return Steps(
        preprocessing or dict,
        parts["inferer"],
        postprocessing or dict,
        _first_key(preprocessing, "image"),
        _first_key(postprocessing, "pred"),
    )


def evaluate_definition(definition: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's definition in plain values, its references and arithmetic evaluated.

    A definition with anything else comes back unchanged, as does any without MONAI: the caller refuses it.
    """
    arguments = {key: value for key, value in definition.items() if key != "_target_"}
    others = monai_rules.collect_references(arguments, settings)
    if monai_rules.is_too_large({"": arguments, **others}) or not monai_rules.is_arithmetic(
        [arguments, *others.values()]
    ):
        return dict(definition)
    try:
        from monai.bundle import ConfigParser

        with suppress_warnings(), limit_memory(_MOST_BYTES):
            values = ConfigParser({"arguments": arguments, **others}).get_parsed_content("arguments")
    except Exception:  # a reference to nothing, or a mistake in the arithmetic
        return dict(definition)
    return {"_target_": definition.get("_target_"), **values}


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress warnings: MONAI warns of its own future at every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_key(transform: Any, otherwise: str) -> str:
    """Return the key of the first transform, ``otherwise`` where it has none."""
    keys = getattr(next(iter(getattr(transform, "transforms", ())), None), "keys", None)
    return str(keys[0]) if isinstance(keys, tuple) and keys else otherwise


def _explain(error: Exception) -> str:
    reason = innermost_reason(error)
    return f"its values take more than {_MOST_BYTES >> 20} MiB" if reason.startswith("MemoryError") else reason


def innermost_reason(error: Exception) -> str:
    """Return the innermost cause of an error, which MONAI wraps."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
