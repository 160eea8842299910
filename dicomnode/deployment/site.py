"""Pipelines that a site adds: entry points of the group ``dicomnode.pipelines``, of which node.toml names the wanted.

Which there are is read from the installed packages' metadata, without importing them. Only the process that runs a job,
or a command that needs the pipeline itself, imports one; the receiver never does.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, get_args

import pipelines
from dicomnode.config import Config
from dicomnode.errors import ConfigError
from pipelines.contract import Covariates, Finding, Input, Pipeline

__all__ = ["GROUP", "check_findings", "entry_point", "load", "origin"]

GROUP = "dicomnode.pipelines"


def entry_point(name: str, config: Config) -> EntryPoint:
    """The one of that name, not imported. Raises ConfigError where it is not named, not installed or not alone."""
    if name not in config.pipelines.site:
        raise ConfigError(f"{config.path}: [pipelines] site does not name {name!r}")
    if name in pipelines.MODULES or name.startswith(pipelines.BUNDLE_PREFIX):
        raise ConfigError(f"the site pipeline {name!r} has the name of one of the node's own: give it another")
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        others = ", ".join(sorted({each.name for each in entry_points(group=GROUP)})) or "none"
        raise ConfigError(
            f"[pipelines] site names {name!r}, and no installed package has it as an entry point of the group {GROUP} "
            f"(there: {others}); 'pip install' its package where the workers run"
        )
    if len({each.value for each in found}) > 1 or len({_package(each) for each in found}) > 1:
        claims = "; ".join(sorted(f"{_package(each)} ({each.value})" for each in found))
        raise ConfigError(f"several packages claim the site pipeline {name!r}: {claims}. Uninstall all but one")
    return found[0]


def load(name: str, config: Config) -> Pipeline:
    """Import it, and look whether it is what a pipeline has to be. Raises ConfigError."""
    found = entry_point(name, config)
    try:
        pipeline = found.load()
    except Exception as error:  # it is somebody else's program: whatever its import does
        raise ConfigError(
            f"the site pipeline {name!r} ({found.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if wrong := _wrong(name, pipeline):
        raise ConfigError(f"the site pipeline {name!r} ({found.value}) {wrong}")
    assert isinstance(pipeline, Pipeline)
    return pipeline


def origin(name: str, config: Config) -> dict[str, str]:
    """What stands in each result beside the model: package, version and SHA-256 of the file; nothing for our own."""
    if name not in config.pipelines.site:
        return {}
    found = entry_point(name, config)
    file = Path(str(import_module(found.module).__file__))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"site pipeline": f"{_package(found)}, {file.name} SHA-256 {digest}"}


def check_findings(pipeline: Pipeline, found: Any) -> None:
    """Raise ConfigError unless every one is a finding: of these alone the node makes objects, and marks them."""
    if not isinstance(found, list | tuple):
        raise ConfigError(f"pipeline {pipeline.name} gave {type(found).__name__} instead of a list of findings")
    for each in found:
        if not isinstance(each, get_args(Finding)):
            raise ConfigError(f"pipeline {pipeline.name} gave {type(each).__name__}, which is no finding")


def _package(found: EntryPoint) -> str:
    return f"{found.dist.name} {found.dist.version}" if found.dist else "a package without a name"


def _wrong(name: str, pipeline: Any) -> str:
    """The first thing in which it is no pipeline."""
    if not isinstance(pipeline, Pipeline):
        return f"is {type(pipeline).__name__}, not a pipelines.contract.Pipeline: name the value, as in module:PIPELINE"
    if pipeline.name != name:
        return f"calls itself {pipeline.name!r}: entry point and Pipeline(name=...) have the same name"
    if not pipeline.bundle:
        return "names no bundle: every result says which model made it"
    if wrong := _wrong_inputs(pipeline.inputs):
        return wrong
    if not hasattr(pipeline.options_type, "model_fields"):
        return "has options_type, which is no pydantic model"
    if pipeline.options_type.model_config.get("extra") != "forbid":
        return "has options_type that takes unknown keys: model_config = ConfigDict(frozen=True, extra='forbid')"
    return _wrong_run(pipeline.run)


def _wrong_inputs(inputs: Iterable[Any]) -> str:
    inputs = tuple(inputs)
    if not inputs or not all(isinstance(each, Input) for each in inputs):
        return "has no inputs: inputs=(Input('image', Volume),)"
    if inputs[0].kind is Covariates:
        return f"has covariates as its first input {inputs[0].name!r}: the first is what the route matches"
    names = [each.name for each in inputs]
    return f"has two inputs named {names[0]!r}" if len(set(names)) < len(names) else ""


def _wrong_run(run: Any) -> str:
    try:
        inspect.signature(run).bind("case", "model", "options", 0, print)
    except (TypeError, ValueError):
        return "has run that does not take (case, model, options, seed, progress)"
    return ""
