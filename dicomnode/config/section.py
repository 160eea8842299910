"""The base of every table of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, field_validator

from dicomnode.config.value_types import check_written_out

__all__ = ["Section"]


class Section(BaseModel):
    """A table of node.toml: frozen, without unknown keys, infinities or paths that begin with '~'."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, populate_by_name=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _paths_are_written_out(cls, value: Any) -> Any:
        return check_written_out(value)

    def with_absolute_paths(self, folder: Path) -> Self:
        """Return this table and those inside it with every path absolute; relative ones lie below ``folder``."""
        changed = {name: _make_absolute(value, folder) for name, value in self}
        return self.model_copy(update={name: value for name, value in changed.items() if value != getattr(self, name)})

    @classmethod
    def list_keys(cls) -> dict[str, type[Section] | None]:
        """Return the keys as node.toml spells them, each with the kind of table below it, or None for a value."""
        fields = {field.alias or name: field for name, field in cls.model_fields.items() if not field.exclude}
        return {key: _table_kind(field.annotation) for key, field in fields.items()}


def _make_absolute(value: Any, folder: Path) -> Any:
    match value:
        case Section():
            return value.with_absolute_paths(folder)
        case Path():
            return folder / value
        case tuple():
            return tuple(_make_absolute(each, folder) for each in value)
        case _:
            return value


def _table_kind(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((kind for inner in get_args(annotation) if (kind := _table_kind(inner)) is not None), None)
