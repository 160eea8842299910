"""One job: files of the spool, arrays, a pipeline's findings, result objects.

What happens here is decided by the inputs, the model and the options alone: the seed comes from the job's key and the
objects' time from the job's creation, so another attempt makes the same objects. torch is imported on use.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydicom import Dataset, dcmread

from dicomnode import mrd
from dicomnode.config import Config
from dicomnode.config.quality import QualityConfig
from dicomnode.config.results import ResultsConfig
from dicomnode.deidentify import faces
from dicomnode.deployment import models, site
from dicomnode.deployment.models import find_bundle, load_without_helpers
from dicomnode.deployment.pipeline_names import resolve_pipeline
from dicomnode.errors import ConfigError, InputRefused
from dicomnode.installation import read_version
from dicomnode.reading import covariates, frames, unreadable, volumes
from dicomnode.results.inherited import inherit
from dicomnode.results.provenance import Provenance
from dicomnode.routing.routing import MAIN_INPUT
from model_zoo.heap import keep_freed_memory
from pipelines import quality
from pipelines.contract import (
    Case,
    Covariates,
    Finding,
    Image,
    KSpace,
    Measurement,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Segmentation,
    Volume,
)

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model

__all__ = [
    "Produced",
    "Task",
    "key_note",
    "loaded",
    "options_of",
    "process",
    "refusal_note",
    "seed_from",
]


_OF_THE_NODE = ("low_confidence", "clinical_numbers")
"""Options that come from [quality] unless the route has its own."""


@dataclass(frozen=True)
class Task:
    """All that decides a result: a job's, or a folder's from the command line."""

    key: str
    pipeline: str
    model: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Sequence[Path]]
    seed: int
    created_at: datetime
    model_digest: str = ""
    helper_models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Produced:
    """The result objects, ready to save, and what is worth telling about the run; ``forms``: as others want them."""

    objects: list[Dataset]
    report: dict[str, Any]
    held_because: str = ""
    forms: Mapping[ResultsConfig, list[Dataset]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Loaded:
    """The case of the pipeline and the headers, without their bulk, for the writer; ``priors``: of earlier studies."""

    case: Case
    sources: list[Dataset]
    priors: list[Dataset]


@keep_freed_memory()
def process(
    task: Task,
    config: Config,
    *,
    progress: Progress,
    forms: Collection[ResultsConfig] = (),
    load_model: Callable[..., Model] | None = None,
) -> Produced:
    """Run the task's pipeline and write its results, as the node keeps them and in further ``forms``.

    ``load_model``: what loads a model, for a worker that keeps them (``deployment.warm``).
    Raises Refused or a NodeError when another attempt is useless.
    """
    started = time.monotonic()
    pipeline = resolve_pipeline(task.pipeline, config, task.model)
    options = options_of(pipeline, task.options, config.quality)
    progress(0.0, "reading")
    loaded = _load(pipeline, task.inputs)
    notes = inherit(loaded.sources, loaded.priors).notes
    name = task.model or pipeline.bundle
    model = models.load(
        name, pipeline.helpers, config, digest=task.model_digest, pinned=task.helper_models, load_one=load_model
    )
    doubts = quality.check_input(loaded.case, model.metadata, pipeline.inputs[0].name, options)
    findings = pipeline.run(loaded.case, model, options, task.seed, _between(progress, 0.02, 0.95))
    site.check_findings(pipeline, findings)
    findings = [*findings, *(Note("header of the input", note) for note in notes)]
    verdict = _judged(findings, model, doubts, config.quality)
    progress(0.95, "writing")
    parameters = options.model_dump(mode="json") | _helpers(model) | dict(loaded.case.facts.get("covariates", {}))
    parameters |= site.describe_origin(task.pipeline, config)
    made_by = replace(
        _made_by(task, model, parameters, _device_name(model)), facts=_plain(loaded.case.facts), title=pipeline.title
    )
    wanted = dict.fromkeys([config.results, *forms])
    written = _write(
        findings, loaded, made_by, list(wanted), config.node.to_local_time(task.created_at), verdict, doubts, config
    )
    report = _report(task, model, options, findings, loaded.case.facts)
    report |= {"verdict": str(verdict.outcome), "reasons": list(verdict.reasons)}
    report["seconds"] = round(time.monotonic() - started, 3)
    return Produced(written.pop(config.results), report, verdict.reason, written)


def refusal_note(task: Task, reason: str, config: Config) -> Dataset:
    """The report that says why nothing was made: by the headers of the inputs, without loading a model."""
    from dicomnode import results
    from dicomnode.results import marking

    pipeline = resolve_pipeline(task.pipeline, config, task.model)
    facts = find_bundle(task.model or pipeline.bundle, config)
    made_by = _made_by(task, facts, task.options, "none: nothing was computed")
    sources, priors = _headers(pipeline, task.inputs)
    ds = results.write_refusal(
        reason, sources, made_by, config.results, config.node.to_local_time(task.created_at), priors
    )
    marking.check_marks(ds)
    return ds


def key_note(task: Task, reason: str, config: Config) -> Dataset:
    """The Key Object note that says so, by the same headers."""
    from dicomnode import results
    from dicomnode.results import marking

    pipeline = resolve_pipeline(task.pipeline, config, task.model)
    made_by = _made_by(
        task, find_bundle(task.model or pipeline.bundle, config), task.options, "none: nothing was computed"
    )
    now = config.node.to_local_time(task.created_at)
    ds = results.write_key_note(reason, _headers(pipeline, task.inputs)[0], made_by, config.results, now)
    marking.check_marks(ds)
    return ds


def _headers(pipeline: Pipeline, inputs: Mapping[str, Sequence[Path]]) -> tuple[list[Dataset], list[Dataset]]:
    """Those of the study's images and those of earlier ones."""
    found: tuple[list[Dataset], list[Dataset]] = [], []
    for number, wanted in enumerate(pipeline.inputs):
        if wanted.kind is not Covariates:
            paths = inputs.get(MAIN_INPUT if number == 0 else wanted.name, ())
            found[wanted.is_prior].extend(frames.read_header(path) for path in paths)
    return found


def options_of(pipeline: Pipeline, given: Mapping[str, Any], config: QualityConfig) -> Any:
    """The pipeline's options, checked; those of the node unless the route has its own. Raises ConfigError."""
    fields = pipeline.options_type.model_fields
    defaults = {name: getattr(config, name) for name in _OF_THE_NODE if name in fields}
    try:
        return pipeline.options_type(**(defaults | dict(given)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"options of {pipeline.name}: {where}: {first['msg']}") from None


def seed_from(key: str) -> int:
    """The seed of all randomness in a job."""
    return int.from_bytes(hashlib.sha256(f"seed {key}".encode()).digest()[:4], "big") >> 1


def loaded(pipeline: Pipeline, inputs: Mapping[str, Sequence[Path]]) -> tuple[Case, list[Dataset]]:
    """The case of these files and the headers of its own study. Raises InputRefused or GeometryError."""
    found = _load(pipeline, inputs)
    return found.case, found.sources


def _load(pipeline: Pipeline, inputs: Mapping[str, Sequence[Path]]) -> _Loaded:
    """The first input's facts stand at the top, those of each further input under its name.

    Further images (contrasts, sets) of one acquisition follow as "kspace 2", "kspace 3".
    """
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    sources: list[Dataset] = []
    priors: list[Dataset] = []
    for number, wanted in enumerate(pipeline.inputs):
        paths = inputs.get(MAIN_INPUT if number == 0 else wanted.name, ())
        if wanted.kind is Covariates:
            arrays[wanted.name], found = _load_covariates(sources, paths)
            facts = found | facts
            continue
        if not paths and wanted.required:
            raise InputRefused(f"{pipeline.name} needs the input {wanted.name!r}; no series of the study matches it")
        if not paths:
            continue
        loaded, headers = _load_kspace(paths) if wanted.kind is KSpace else _load_volume(paths)
        for place, (array, found) in enumerate(loaded):
            name = f"{wanted.name} {place + 1}" if place else wanted.name
            arrays[name] = array
            frame = {"same_frame": _one_frame(headers, sources)} if number and not wanted.is_prior else {}
            facts |= {name: found | frame} if number or place else found
        (priors if wanted.is_prior else sources).extend(headers)
    return _Loaded(Case(arrays, facts), sources, priors)


def _one_frame(headers: Sequence[Dataset], sources: Sequence[Dataset]) -> bool | None:
    """Whether a further input names the frame of reference of those before it; None where one of them names none."""
    frames_named = [{str(ds.get("FrameOfReferenceUID") or "") for ds in each} - {""} for each in (headers, sources[:1])]
    return frames_named[0] == frames_named[1] if all(frames_named) else None


def _load_volume(paths: Sequence[Path]) -> tuple[list[tuple[Volume, dict[str, Any]]], list[Dataset]]:
    series = volumes.read(paths)
    return [(series.volume, series.facts)], series.headers


def _load_covariates(headers: Sequence[Dataset], paths: Sequence[Path]) -> tuple[Covariates, dict[str, Any]]:
    """Of the patient whose images were loaded before. An age that no header states is a fact of the case, too."""
    found = covariates.resolve(headers, paths)
    age = found.age_years.value
    return found, {"covariates": covariates.describe(found)} | ({} if age is None else {"age_years": age})


def _load_kspace(paths: Sequence[Path]) -> tuple[list[tuple[KSpace, dict[str, Any]]], list[Dataset]]:
    if len(paths) != 1:
        raise InputRefused(f"one acquisition is one Raw Data object; {len(paths)} instances were given")
    ds = dcmread(paths[0])
    unreadable.decode(ds)
    if not mrd.is_mrd(ds):
        raise InputRefused("the instance is no ISMRMRD/MRD in Raw Data Storage; 'dicomnode kspace wrap' makes one")
    return mrd.to_images(mrd.read(mrd.unwrap(ds))), [_header(ds)]


def _header(ds: Dataset) -> Dataset:
    """Without private elements: the payload is large, and no result repeats it."""
    ds.remove_private_tags()
    return ds


def _between(progress: Progress, low: float, high: float) -> Progress:
    return lambda fraction, step: progress(low + (high - low) * min(max(fraction, 0.0), 1.0), step)


def _write(
    findings: Sequence[Finding],
    loaded: _Loaded,
    made_by: Provenance,
    forms: Sequence[ResultsConfig],
    now: datetime,
    verdict: quality.Verdict,
    doubts: Sequence[str],
    config: Config,
) -> dict[ResultsConfig, list[Dataset]]:
    """The objects in each form; the page of the report, where any has one, is drawn once."""
    from dicomnode import results
    from dicomnode.deidentify import defacing
    from dicomnode.report import rendering
    from dicomnode.results import marking

    page = None
    if any(form.report_page for form in forms):
        at = inherit(loaded.sources).moment(now)
        page = rendering.render(findings, loaded.case, loaded.sources, made_by, at, verdict, doubts)
    written = {}
    for form in forms:
        shown, by = defacing.remove_faces(
            form, findings, loaded.case, made_by, partial(load_without_helpers, "anatomy", config)
        )
        written[form] = results.write(shown, loaded.sources, by, form, now, verdict, doubts, loaded.priors, page)
        for ds in written[form]:
            if by is not made_by:
                faces.mark_face_removed(ds)
            marking.check_marks(ds)
    return written


def _device_name(model: Model) -> str:
    from model_zoo import precision

    return precision.device_name(model.device)


def _made_by(task: Task, model: Model | BundleFacts, parameters: Mapping[str, Any], device: str) -> Provenance:
    return Provenance(
        model_name=model.name,
        model_version=model.version,
        model_digest=model.digest,
        pipeline=task.pipeline,
        parameters=parameters,
        seed=task.seed,
        device=device,
        node_version=read_version(),
        trained_on=str(model.metadata.get("trained_on", "")),
        job_key=task.key,
    )


def _helpers(model: Model) -> dict[str, str]:
    """What else made the result: as much a part of it as the options."""
    return {f"{each.name} model": f"{each.version}, weights SHA-256 {each.digest}" for each in model.helpers.values()}


def _report(
    task: Task, model: Model, options: Any, findings: Sequence[Finding], facts: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "model": f"{model.name}@{model.version}",
        "digest": model.digest,
        "device": _device_name(model),
        "seed": task.seed,
        "options": options.model_dump(mode="json"),
        "measurements": [_measured(found) for found in findings if isinstance(found, Measurement)],
        "images": [{"name": each.name, "modality": each.modality} for each in findings if isinstance(each, Image)],
        "overlays": [
            {"name": each.name, "of": each.image_name}
            for each in findings
            if isinstance(each, ParametricMap | Segmentation)
        ],
        "notes": [{"name": found.name, "text": found.text} for found in findings if isinstance(found, Note)],
        "acquisition": _plain(facts),
    }


def _measured(m: Measurement) -> dict[str, Any]:
    intervals = [{"level": i.level, "low": _finite(i.low), "high": _finite(i.high)} for i in m.intervals]
    said = {"group": m.group, "name": m.name, "value": _finite(m.value), "unit": m.unit, "description": m.description}
    return said | ({"intervals": intervals} if intervals else {})


def _judged(findings: Sequence[Finding], model: Model, doubts: Sequence[str], config: QualityConfig) -> quality.Verdict:
    """The gate's verdict. Raises Refused where the result may not go out at all."""
    own = quality.OutputLimits(**{name: getattr(config, name) for name in quality.OutputLimits.model_fields})
    limits = quality.read_output_limits(model.metadata).with_overrides(own)
    verdict = quality.judge_result([found for found in findings if isinstance(found, Measurement)], limits, doubts)
    if verdict.outcome is quality.Outcome.REFUSE:
        raise Refused(f"the result is refused: {verdict.reason}")
    return verdict


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN, PostgreSQL refuses it


def _plain(value: Any) -> Any:
    """Numbers, words and lists only, for a JSON column."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return _finite(float(value)) if hasattr(value, "__float__") else str(value)
