"""Values of the XML header that are not of their type in the ISMRMRD schema: the parser keeps them as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args, get_type_hints

import ismrmrd

from pipelines.contract import Refused

__all__ = ["check_types"]

_READ = ("encoding", "sequenceParameters", "acquisitionSystemInformation")
_NOT_READ = frozenset(
    {"trajectoryDescription", "echoTrainLength", "echo_spacing", "diffusion", "coilLabel", "interleavingDimension"}
)
"""Elements that change nothing here (docs/reading.md), whatever they hold."""


def check_types(header: ismrmrd.xsd.ismrmrdHeader) -> None:
    """Raise Refused where an element that is read holds text in place of a number or of a name of the schema."""
    for part in [getattr(header, name) for name in _READ] + [header.measurementInformation]:
        names = ("relativeTablePosition",) if part is header.measurementInformation else None
        if element := next(_find_text(part, names), ""):
            raise Refused(f"k-space: {element} in the XML header holds no value that the ISMRMRD schema allows")


def _find_text(part: Any, names: tuple[str, ...] | None = None) -> Iterator[str]:
    """Yield the names of the elements below a part that hold text where their type is another."""
    if isinstance(part, list):
        for each in part:
            yield from _find_text(each)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for name, takes_text in _elements(type(part)).items():
            if name in _NOT_READ or (names and name not in names):
                continue
            value = getattr(part, name)
            texts = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
            yield from [name] if texts and not takes_text else _find_text(value)


@cache
def _elements(kind: type) -> dict[str, bool]:
    """Return the elements of a class of the schema, and whether each is text."""
    return {name: str in _flatten(hint) for name, hint in get_type_hints(kind).items()}


def _flatten(hint: Any) -> set[Any]:
    return {hint}.union(*map(_flatten, get_args(hint)))
