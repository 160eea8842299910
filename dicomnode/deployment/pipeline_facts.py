"""Descriptions of pipelines for people: inputs, options, outputs, and the contract of the model in force."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

import pipelines
from db import deployments
from db.states import DeploymentMode
from dicomnode.config import Config
from dicomnode.deployment import models, pipeline_names
from dicomnode.errors import ConfigError
from model_zoo.bundle import BundleError
from pipelines import quality
from pipelines.contract import Covariates, Input, KSpace, Labels, Pipeline, Projections, Volume

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from model_zoo.bundle import BundleFacts

__all__ = ["describe_contract", "describe_pipeline", "find_model_in_force", "list_facts"]

_KINDS = {
    Volume: "image", KSpace: "k-space", Projections: "projections", Labels: "segmentation",
    Covariates: "facts on the patient",
}  # fmt: skip
_CONTRACT = "input_contract"
_CLASS = re.compile(r":class:`([^`]+)`")
_BOUNDS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))


def list_facts(config: Config, session: Session | None = None) -> list[dict[str, Any]]:
    """List every pipeline of the node with its title, its inputs and its model in force.

    ``session``: of the node's database, where deployments are; None: a node without one.
    """
    return [_summarize(name, config, session) for name in pipeline_names.list_pipelines(config)]


def describe_pipeline(name: str, config: Config, session: Session | None = None) -> dict[str, Any]:
    """Describe one pipeline: question and output in words, inputs, options, and the contract of its model in force.

    Raises ConfigError for an unknown name, BundleError for a model that is not installed.
    """
    pipeline = pipeline_names.resolve_pipeline(name, config)
    facts = find_model_in_force(pipeline.name, pipeline.bundle, config, session)
    return {
        "name": name,
        "title": pipeline.title,
        "model": f"{facts.name}@{facts.version}",
        "digest": facts.digest,
        "trained_on": str(facts.metadata.get("trained_on", "")),
        "helpers": list(pipeline.helpers),
        "about": _read_docstring(pipeline),
        "inputs": [_describe_input(each, at) for at, each in enumerate(pipeline.inputs)],
        "options": [_describe_option(key, field) for key, field in pipeline.options_type.model_fields.items()],
        "contract": describe_contract(facts.metadata),
        "limits": _describe_limits(facts),
    }


def find_model_in_force(name: str, bundle: str, config: Config, session: Session | None = None) -> BundleFacts:
    """Return the bundle that is deployed as current for a pipeline, else ``bundle``, its own."""
    rows = deployments.find_in_force(session, name) if session else {}
    current = rows.get(DeploymentMode.CURRENT)
    return models.find_bundle(deployments.format_model(current) if current else bundle, config)


def _summarize(name: str, config: Config, session: Session | None) -> dict[str, Any]:
    try:
        title, inputs, bundle = _summarize_contract(name, config)
    except ConfigError as error:  # a site's, which 'show' explains
        return {"name": name, "title": f"cannot be loaded: {error}", "inputs": "", "model": ""}
    try:
        facts = find_model_in_force(name, bundle, config, session)
        model = f"{facts.name}@{facts.version}"
    except BundleError:
        model = f"{bundle}: not installed"
    return {"name": name, "title": title, "inputs": inputs, "model": model}


def _summarize_contract(name: str, config: Config) -> tuple[str, str, str]:
    """Return title, inputs and bundle. The node's own pipelines are not imported, which would import torch."""
    if name in pipelines.MODULES and name not in config.pipelines.site:
        return pipelines.TITLES[name], pipelines.INPUTS[name], pipelines.BUNDLES[name]
    pipeline = pipeline_names.resolve_pipeline(name, config)
    return pipeline.title, pipelines.format_inputs(pipeline), pipeline.bundle


def _read_docstring(pipeline: Pipeline) -> str:
    """Return the docstring of the pipeline's module, which states question, input and output, without its markup."""
    text = inspect.cleandoc(sys.modules[pipeline.run.__module__].__doc__ or "")
    plain = _CLASS.sub(lambda found: found[1].rpartition(".")[2], text).replace("``", "")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in plain.split("\n\n"))


def _describe_input(each: Input, at: int) -> dict[str, Any]:
    source = "the series that the route matches" if at == 0 else "a further series of the study"
    if each.kind is Covariates:
        source = "reports of the study, or a file"
    elif each.is_prior:
        source = "an earlier study of the patient"
    return {"name": each.name, "kind": _KINDS[each.kind], "required": each.required, "source": source}


def _describe_option(name: str, field: FieldInfo) -> dict[str, Any]:
    default = field.get_default(call_default_factory=True, validated_data={})
    return {"name": name, "default": default, "values": _describe_values(field), "meaning": field.description or ""}


def _describe_values(field: FieldInfo) -> str:
    """Return the allowed values in words: the choices, or the type with its bounds."""
    if get_origin(field.annotation) in (Literal, Union, UnionType):
        return " | ".join(map(_name_of, get_args(field.annotation)))
    bounds = {
        sign: f"{getattr(each, attribute):g}"
        for kind, attribute, sign in _BOUNDS
        for each in field.metadata
        if isinstance(each, kind)
    }
    words = [" ".join(pair) for pair in bounds.items()]
    if bounds.keys() == {">=", "<="}:
        words = [f"{bounds['>=']} to {bounds['<=']}"]
    return ", ".join([_name_of(field.annotation), *words])


def _name_of(value: Any) -> str:
    if get_origin(value) is Annotated:
        return _name_of(get_args(value)[0])
    if get_origin(value) in (tuple, list):
        inner = [each for each in get_args(value) if each is not Ellipsis]
        return f"list of {_name_of(inner[0])}" if len(inner) == 1 else f"{len(inner)} x {_name_of(inner[0])}"
    if get_origin(value) is dict:
        return "table"
    words = {type(None): "none", str: "text", int: "integer", float: "number", bool: "true | false", "": '""'}
    return words.get(value, str(value))


def describe_contract(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each rule of the bundle's input contract in words, and of those for fewer inputs (``..._without_t1w``)."""
    rows = []
    for key, content in metadata.items():
        if key == _CONTRACT or key.startswith(f"{_CONTRACT}_"):
            case = key.removeprefix(_CONTRACT).replace("_", " ")
            rules = content if isinstance(content, dict) else {"": content}
            contract = quality.read_input_rules({**metadata, _CONTRACT: rules})
            rows += [_describe_rule(f"{name}{case}".strip(), rule) for name, each in contract.items() for rule in each]
    return rows


def _describe_rule(name: str, rule: quality.InputRule) -> dict[str, Any]:
    meaning, where, unit = quality.FACTS[rule.fact]
    return {
        "input": name,
        "fact": rule.fact,
        "meaning": meaning,
        "where": where,
        "accepted": f"{rule.allowed} {unit}".rstrip(),
        "needed": rule.needed,
        "otherwise": rule.otherwise,
    }


def _describe_limits(facts: BundleFacts) -> list[dict[str, Any]]:
    """Return the limits of measurements beyond which a result is held or refused."""
    limits = quality.read_output_limits(facts.metadata).model_dump()
    return [
        {"measurement": name, "verdict": key.partition("_")[0], "when": f"{key.partition('_')[2]} {value:g}"}
        for key, values in limits.items()
        for name, value in values.items()
    ]
