"""The notes on a refused job, written from the headers of its inputs: a report and a Key Object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydicom import Dataset

from dicomnode.config import Config
from dicomnode.deployment.models import find_bundle
from dicomnode.deployment.pipeline_names import resolve_pipeline
from dicomnode.execution.processing import Task, build_provenance
from dicomnode.reading import frames
from dicomnode.routing.routing import MAIN_INPUT
from pipelines.contract import Covariates, Pipeline

__all__ = ["write_key_note", "write_refusal_note"]


def write_refusal_note(task: Task, reason: str, config: Config) -> Dataset:
    """Write the report on a refusal from the headers of the inputs, without loading a model."""
    from dicomnode import results
    from dicomnode.results import marking

    pipeline = resolve_pipeline(task.pipeline, config, task.model)
    facts = find_bundle(task.model or pipeline.bundle, config)
    made_by = build_provenance(task, facts, task.options, "none: nothing was computed")
    sources, priors = _read_headers(pipeline, task.inputs)
    ds = results.write_refusal(
        reason, sources, made_by, config.results, config.node.to_local_time(task.created_at), priors
    )
    marking.check_marks(ds)
    return ds


def write_key_note(task: Task, reason: str, config: Config) -> Dataset:
    """Write the Key Object note on a refusal from the headers of the inputs."""
    from dicomnode import results
    from dicomnode.results import marking

    pipeline = resolve_pipeline(task.pipeline, config, task.model)
    made_by = build_provenance(
        task, find_bundle(task.model or pipeline.bundle, config), task.options, "none: nothing was computed"
    )
    now = config.node.to_local_time(task.created_at)
    ds = results.write_key_note(reason, _read_headers(pipeline, task.inputs)[0], made_by, config.results, now)
    marking.check_marks(ds)
    return ds


def _read_headers(pipeline: Pipeline, inputs: Mapping[str, Sequence[Path]]) -> tuple[list[Dataset], list[Dataset]]:
    """Return the headers of the study's own images, and those of earlier studies."""
    headers: tuple[list[Dataset], list[Dataset]] = [], []
    for number, input in enumerate(pipeline.inputs):
        if input.kind is not Covariates:
            paths = inputs.get(MAIN_INPUT if number == 0 else input.name, ())
            headers[input.is_prior].extend(frames.read_header(path) for path in paths)
    return headers
