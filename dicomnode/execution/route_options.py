"""The options of a pipeline as a route or a person states them, checked without what a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dicomnode.config.quality import QualityConfig
from dicomnode.errors import ConfigError
from pipelines.contract import Pipeline

__all__ = ["resolve_options"]

_QUALITY_OPTIONS = ("low_confidence", "clinical_numbers")
"""Options that come from [quality] unless the route has its own."""


def resolve_options(pipeline: Pipeline, options: Mapping[str, Any], config: QualityConfig) -> Any:
    """Return the pipeline's validated options; [quality] gives the defaults of some. Raises ConfigError."""
    fields = pipeline.options_type.model_fields
    defaults = {name: getattr(config, name) for name in _QUALITY_OPTIONS if name in fields}
    try:
        return pipeline.options_type(**(defaults | dict(options)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"options of {pipeline.name}: {where}: {first['msg']}") from None
