"""Pipelines that a site adds: entry points of the group ``dicomnode.pipelines`` that node.toml enables.

They are listed from the metadata of the installed packages, without importing them. Only the process that runs a job,
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

__all__ = ["GROUP", "check_findings", "describe_origin", "find_entry_point", "load_pipeline"]

GROUP = "dicomnode.pipelines"


def find_entry_point(name: str, config: Config) -> EntryPoint:
    """Return the entry point of that name without importing it.

    Raises ConfigError where node.toml does not name it, no package has it, or several packages do.
    """
    if name not in config.pipelines.site:
        raise ConfigError(f"{config.path}: [pipelines] site does not name {name!r}")
    if name in pipelines.MODULES or name.startswith((pipelines.BUNDLE_PREFIX, pipelines.TRANSLATE_PREFIX)):
        raise ConfigError(f"the site pipeline {name!r} has the name of one of the node's own: give it another")
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        others = ", ".join(sorted({each.name for each in entry_points(group=GROUP)})) or "none"
        raise ConfigError(
            f"[pipelines] site names {name!r}, and no installed package has it as an entry point of the group {GROUP} "
            f"(there: {others}); 'pip install' its package where the workers run"
        )
    if len({each.value for each in found}) > 1 or len({_package_of(each) for each in found}) > 1:
        claims = "; ".join(sorted(f"{_package_of(each)} ({each.value})" for each in found))
        raise ConfigError(f"several packages claim the site pipeline {name!r}: {claims}. Uninstall all but one")
    return found[0]


def load_pipeline(name: str, config: Config) -> Pipeline:
    """Import a site's pipeline and check its contract. Raises ConfigError."""
    entry_point = find_entry_point(name, config)
    try:
        pipeline = entry_point.load()
    except Exception as error:  # a foreign module may raise anything
        raise ConfigError(
            f"the site pipeline {name!r} ({entry_point.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if violation := _find_violation(name, pipeline):
        raise ConfigError(f"the site pipeline {name!r} ({entry_point.value}) {violation}")
    assert isinstance(pipeline, Pipeline)
    return pipeline


def describe_origin(name: str, config: Config) -> dict[str, str]:
    """Return package, version and SHA-256 of a site pipeline's file, for each result; {} for the node's own."""
    if name not in config.pipelines.site:
        return {}
    entry_point = find_entry_point(name, config)
    file = Path(str(import_module(entry_point.module).__file__))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"site pipeline": f"{_package_of(entry_point)}, {file.name} SHA-256 {digest}"}


def check_findings(pipeline: Pipeline, findings: Any) -> None:
    """Raise ConfigError unless a pipeline returned a list of findings, which alone become marked result objects."""
    if not isinstance(findings, list | tuple):
        raise ConfigError(f"pipeline {pipeline.name} gave {type(findings).__name__} instead of a list of findings")
    for each in findings:
        if not isinstance(each, get_args(Finding)):
            raise ConfigError(f"pipeline {pipeline.name} gave {type(each).__name__}, which is no finding")


def _package_of(entry_point: EntryPoint) -> str:
    dist = entry_point.dist
    return f"{dist.name} {dist.version}" if dist else "a package without a name"


def _find_violation(name: str, pipeline: Any) -> str:
    """Return the first violation of the contract of pipelines, or "" without one."""
    if not isinstance(pipeline, Pipeline):
        return f"is {type(pipeline).__name__}, not a pipelines.contract.Pipeline: name the value, as in module:PIPELINE"
    if pipeline.name != name:
        return f"calls itself {pipeline.name!r}: entry point and Pipeline(name=...) have the same name"
    if not pipeline.bundle:
        return "names no bundle: every result has to name the model that made it"
    if violation := _find_violation_of_inputs(pipeline.inputs):
        return violation
    if not hasattr(pipeline.options_type, "model_fields"):
        return "has an options_type that is not a pydantic model"
    if pipeline.options_type.model_config.get("extra") != "forbid":
        return "has an options_type that takes unknown keys: model_config = ConfigDict(frozen=True, extra='forbid')"
    return _find_violation_of_run(pipeline.run)


def _find_violation_of_inputs(inputs: Iterable[Any]) -> str:
    inputs = tuple(inputs)
    if not inputs or not all(isinstance(each, Input) for each in inputs):
        return "has no inputs: inputs=(Input('image', Volume),)"
    if inputs[0].kind is Covariates:
        return f"has covariates as its first input {inputs[0].name!r}: the first is what the route matches"
    names = [each.name for each in inputs]
    return f"has two inputs named {names[0]!r}" if len(set(names)) < len(names) else ""


def _find_violation_of_run(run: Any) -> str:
    try:
        inspect.signature(run).bind("case", "model", "options", 0, print)
    except (TypeError, ValueError):
        return "has a run that does not take (case, model, options, seed, progress)"
    return ""
