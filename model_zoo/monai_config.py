"""A bundle's own way from an image to a result, by MONAI's ConfigParser. MONAI is imported on use.

What is parsed has passed ``monai_rules``, at installation and again here, unless the site trusts this configuration.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from model_zoo import monai_rules
from model_zoo.bundle import BundleError, Model
from model_zoo.offline import offline

__all__ = ["Steps", "built", "evaluated", "innermost", "quiet", "steps"]

WITHOUT_MONAI = "needs MONAI, which is not installed here: pip install 'dicomnode[monai]'"


@dataclass(frozen=True)
class Steps:
    """``preprocessing`` and ``postprocessing`` take and give a dict of tensors by name, ``inferer`` (batch, network).

    ``image``: the name under which preprocessing wants the image, ``pred``: postprocessing the answer.
    """

    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[..., Any]
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    image: str
    pred: str


def steps(model: Model) -> Steps:
    """The steps of a loaded model. Raises BundleError where they are not known, do not fit, or MONAI is not here."""
    called = f"{model.name}@{model.version}"
    return built(called, model.settings, model.device, trusted=model.trusted_code)


def built(called: str, settings: Mapping[str, Any], device: str, *, trusted: bool) -> Steps:
    """The steps of the configuration ``settings``, on ``device`` whatever the bundle says."""
    if "inferer" not in settings:
        raise BundleError(f"{called}: {monai_rules.INFERENCE} has no inferer: it does not say how to come to a result")
    if not trusted and (wrong := monai_rules.first_wrong(settings)):
        raise BundleError(f"{called}: {monai_rules.INFERENCE}: {wrong}")
    try:
        from monai.bundle import ConfigParser
    except ModuleNotFoundError:
        raise BundleError(f"{called} {WITHOUT_MONAI}") from None
    content = monai_rules.prepared(settings, trusted=trusted) | {"device": f"$torch.device('{device}')"}
    try:
        with offline(called), quiet():
            parser = ConfigParser(content)
            found = {root: parser.get_parsed_content(root) for root in monai_rules.ROOTS if root in content}
    except BundleError:
        raise
    except Exception as error:  # whatever MONAI's classes make of arguments that they do not take
        raise BundleError(f"{called}: {monai_rules.INFERENCE} cannot be used ({innermost(error)})") from None
    before, after = found.get("preprocessing"), found.get("postprocessing")
    return Steps(
        before or dict, found["inferer"], after or dict, _first_key(before, "image"), _first_key(after, "pred")
    )


def evaluated(definition: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A network's definition in plain values, where references and arithmetic are all that it holds beside them.

    Else, or where MONAI is not here, it comes back as it is: whoever wants plain values refuses it.
    """
    arguments = {key: value for key, value in definition.items() if key != "_target_"}
    others = monai_rules.behind(arguments, settings)
    if monai_rules.swells({"": arguments, **others}) or not monai_rules.is_arithmetic([arguments, *others.values()]):
        return dict(definition)
    try:
        from monai.bundle import ConfigParser

        with quiet():
            found = ConfigParser({"arguments": arguments, **others}).get_parsed_content("arguments")
    except Exception:  # a reference to nothing, or a mistake in the arithmetic
        return dict(definition)
    return {"_target_": definition.get("_target_"), **found}


@contextmanager
def quiet() -> Iterator[None]:
    """MONAI warns of its own future at every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_key(transform: Any, otherwise: str) -> str:
    """The name that the first transform works on."""
    keys = getattr(next(iter(getattr(transform, "transforms", ())), None), "keys", None)
    return str(keys[0]) if isinstance(keys, tuple) and keys else otherwise


def innermost(error: Exception) -> str:
    """The innermost reason: MONAI wraps it."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
