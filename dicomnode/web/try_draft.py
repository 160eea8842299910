"""The draft of a route, as the form of the page /try holds it: text fields that become a [[routes]] block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dicomnode.config import Route, route_blocks
from dicomnode.config.conditions import Condition
from dicomnode.config.route_blocks import RouteBlock
from dicomnode.errors import ConfigError

__all__ = ["Draft"]

_OPTION, _DESTINATION = "option.", "to."
_OWN_FIELDS = ("name", "pipeline", "match", "destinations", "options")
_SCALARS = frozenset(Route.model_fields) - {*_OWN_FIELDS, "with_", "prior"}
_FROM_SERIES = ("Modality", "ImageType", "MRAcquisitionType", "SeriesDescription")


@dataclass(frozen=True)
class Draft:
    """The fields as a person wrote them.

    ``match``: conditions, one in a line; ``more``: further keys of the route, as ``with.t1w = { ... }``; ``options``:
    texts by name of the option, without empty ones.
    """

    name: str = ""
    pipeline: str = ""
    match: str = ""
    more: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    destinations: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Draft:
        """Read the draft from an address or a form."""
        texts = {
            name: fields.get(name, "").replace("\r\n", "\n").strip() for name in ("name", "pipeline", "match", "more")
        }
        options = {key.removeprefix(_OPTION): text.strip() for key, text in fields.items() if key.startswith(_OPTION)}
        chosen = tuple(key.removeprefix(_DESTINATION) for key in fields if key.startswith(_DESTINATION))
        return cls(**texts, options={key: text for key, text in options.items() if text}, destinations=chosen)

    @classmethod
    def from_route(cls, route: Route, name: str) -> Draft:
        """Return a draft with everything of a route but its name."""
        more = {f"with.{key}": _to_raw(match) for key, match in route.with_.items()}
        more |= {f"prior.{key}": _to_raw(match) for key, match in route.prior.items()}
        more |= route.model_dump(mode="json", exclude_defaults=True, include=set(_SCALARS))
        options = {key: _format_option(value) for key, value in route.options.items()}
        return cls(name, route.pipeline, _to_lines(_to_raw(route.match)), _to_lines(more), options, route.destinations)

    @classmethod
    def from_series(cls, attributes: Mapping[str, Any], name: str) -> Draft:
        """Return a draft that takes series with the main attributes of this one."""
        values = {keyword: attributes.get(keyword) for keyword in _FROM_SERIES}
        first = {key: value[0] if isinstance(value, list) and value else value for key, value in values.items()}
        return cls(name, match=_to_lines({key: _to_text(value) for key, value in first.items() if value}))

    def to_fields(self) -> dict[str, str]:
        """Return the fields of the form that hold this draft."""
        fields = {"name": self.name, "pipeline": self.pipeline, "match": self.match, "more": self.more}
        fields |= {f"{_OPTION}{key}": text for key, text in self.options.items()}
        return fields | {f"{_DESTINATION}{name}": "1" for name in self.destinations}

    def make_block(self) -> RouteBlock:
        """Return the block of the route. Raises ConfigError that names what is wrong."""
        if not self.name or not self.pipeline:
            raise ConfigError(f"choose {'a name' if not self.name else 'a pipeline'} for the route")
        match = route_blocks.parse_table(self.match, "conditions")
        more = route_blocks.parse_table(self.more, "further keys")
        if doubled := [key for key in more if key in _OWN_FIELDS]:
            raise ConfigError(f"further keys: {doubled[0]!r} has a field of its own")
        options = {key: route_blocks.parse_value(text) for key, text in self.options.items()}
        own = {"name": self.name, "pipeline": self.pipeline, "match": match}
        return route_blocks.make_block(own | more | {"destinations": list(self.destinations), "options": options})


def _to_raw(match: Mapping[str, Condition]) -> dict[str, Any]:
    return {keyword: condition.raw for keyword, condition in match.items()}


def _to_lines(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {route_blocks.format_value(value)}" for key, value in values.items())


def _to_text(value: Any) -> Any:
    """Return a value of an attribute as a condition; text that would read as a condition becomes a list of it."""
    special = isinstance(value, str) and (value[:1] in "~<>" or value in ("exists", "absent"))
    return [value] if special else value


def _format_option(value: Any) -> str:
    """Return the text that the form's field reads back as this value: words as they are, other text quoted."""
    is_plain = isinstance(value, str) and route_blocks.parse_value(value) == value
    return (
        value if is_plain and value.isprintable() and value == value.strip() != "" else route_blocks.format_value(value)
    )
