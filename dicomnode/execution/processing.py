"""The processing of one task: files of the spool, arrays, a pipeline's findings, result objects.

The inputs, the model and the options alone determine the results: the seed comes from the job's key and the objects'
time from the job's creation, so that another attempt makes the same objects. torch is imported on use.
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
from dicomnode.deployment.models import load_without_helpers
from dicomnode.deployment.pipeline_names import resolve_pipeline
from dicomnode.errors import ConfigError, InputRefused
from dicomnode.installation import read_version
from dicomnode.reading import covariates, unreadable, volumes
from dicomnode.results.inherited import inherit
from dicomnode.results.provenance import Provenance, describe_vendor_reconstruction
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
    "Task",
    "TaskResult",
    "build_provenance",
    "derive_seed",
    "load_case",
    "resolve_options",
    "run_task",
]


_QUALITY_OPTIONS = ("low_confidence", "clinical_numbers")
"""Options that come from [quality] unless the route has its own."""


@dataclass(frozen=True)
class Task:
    """The values that determine a result, of a job or of a folder from the command line."""

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
class TaskResult:
    """The result objects, ready to save, and the report on the run.

    ``held_because``: why the output gate holds the result, or "". ``renditions``: the objects of further renditions.
    """

    objects: list[Dataset]
    report: dict[str, Any]
    held_because: str = ""
    renditions: Mapping[ResultsConfig, list[Dataset]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Loaded:
    """The case for the pipeline, and the headers without bulk data for the writer; ``priors``: of earlier studies."""

    case: Case
    sources: list[Dataset]
    priors: list[Dataset]


@keep_freed_memory()
def run_task(
    task: Task,
    config: Config,
    *,
    progress: Progress,
    renditions: Collection[ResultsConfig] = (),
    load_model: Callable[..., Model] | None = None,
) -> TaskResult:
    """Run the task's pipeline and write its results, in the node's own rendition and in further ``renditions``.

    ``load_model``: loader of one bundle (``model_cache.ModelCache`` in a worker).
    Raises Refused or a NodeError when another attempt is useless.
    """
    started = time.monotonic()
    pipeline = resolve_pipeline(task.pipeline, config, task.model)
    options = resolve_options(pipeline, task.options, config.quality)
    progress(0.0, "reading")
    loaded = _load_inputs(pipeline, task.inputs)
    notes = inherit(loaded.sources, loaded.priors).notes
    name = task.model or pipeline.bundle
    model = models.load(
        name, pipeline.helpers, config, digest=task.model_digest, pinned=task.helper_models, load_one=load_model
    )
    site_rules = config.quality.input_rules
    doubts = quality.check_input(loaded.case, model.metadata, pipeline.inputs[0].name, options, site_rules)
    findings = pipeline.run(loaded.case, model, options, task.seed, _scale_progress(progress, 0.02, 0.95))
    site.check_findings(pipeline, findings)
    findings = [*findings, *(Note("header of the input", note) for note in notes)]
    findings += _note_vendor_reconstructions(pipeline, loaded.case.facts)
    findings += _note_known_limits(pipeline, model)
    verdict = _judge(findings, model, doubts, config.quality)
    progress(0.95, "writing")
    parameters = (
        options.model_dump(mode="json") | _describe_helpers(model) | dict(loaded.case.facts.get("covariates", {}))
    )
    parameters |= site.describe_origin(task.pipeline, config)
    made_by = replace(
        build_provenance(task, model, parameters, _device_name(model)),
        facts=_to_json(loaded.case.facts),
        title=pipeline.title,
    )
    all_renditions = list(dict.fromkeys([config.results, *renditions]))
    written = _write(
        findings, loaded, made_by, all_renditions, config.node.to_local_time(task.created_at), verdict, doubts, config
    )
    report = _build_report(task, model, options, findings, loaded.case.facts)
    report |= {"verdict": str(verdict.outcome), "reasons": list(verdict.reasons)}
    report["seconds"] = round(time.monotonic() - started, 3)
    return TaskResult(written.pop(config.results), report, verdict.reason, written)


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


def derive_seed(key: str) -> int:
    """Return the seed of all randomness in a job."""
    return int.from_bytes(hashlib.sha256(f"seed {key}".encode()).digest()[:4], "big") >> 1


def load_case(pipeline: Pipeline, inputs: Mapping[str, Sequence[Path]]) -> tuple[Case, list[Dataset]]:
    """Load the case of the input files and the headers of its own study. Raises InputRefused or GeometryError."""
    loaded = _load_inputs(pipeline, inputs)
    return loaded.case, loaded.sources


def _load_inputs(pipeline: Pipeline, inputs: Mapping[str, Sequence[Path]]) -> _Loaded:
    """Load all inputs. The first input's facts are at the top level, those of each further input under its name.

    Further images (contrasts, sets) of one acquisition follow as "kspace 2", "kspace 3".
    """
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    sources: list[Dataset] = []
    priors: list[Dataset] = []
    for number, input in enumerate(pipeline.inputs):
        paths = inputs.get(MAIN_INPUT if number == 0 else input.name, ())
        if input.kind is Covariates:
            arrays[input.name], found = _load_covariates(sources, paths)
            facts = found | facts
            continue
        if not paths and input.required:
            raise InputRefused(f"{pipeline.name} needs the input {input.name!r}; no series of the study matches it")
        if not paths:
            continue
        loaded, headers = _load_kspace(paths) if input.kind is KSpace else _load_volume(paths)
        for place, (array, found) in enumerate(loaded):
            name = f"{input.name} {place + 1}" if place else input.name
            arrays[name] = array
            frame = {"same_frame": _shares_frame(headers, sources)} if number and not input.is_prior else {}
            facts |= {name: found | frame} if number or place else found
        (priors if input.is_prior else sources).extend(headers)
    return _Loaded(Case(arrays, facts), sources, priors)


def _shares_frame(headers: Sequence[Dataset], sources: Sequence[Dataset]) -> bool | None:
    """Return whether a further input has the frame of reference of the first; None where one of them states none."""
    frame_uids = [{str(ds.get("FrameOfReferenceUID") or "") for ds in each} - {""} for each in (headers, sources[:1])]
    return frame_uids[0] == frame_uids[1] if all(frame_uids) else None


def _load_volume(paths: Sequence[Path]) -> tuple[list[tuple[Volume, dict[str, Any]]], list[Dataset]]:
    series = volumes.read(paths)
    return [(series.volume, series.facts)], series.headers


def _load_covariates(headers: Sequence[Dataset], paths: Sequence[Path]) -> tuple[Covariates, dict[str, Any]]:
    """Load the covariates of the patient whose images were loaded before; the age is a fact of the case as well."""
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
    return mrd.to_images(mrd.read(mrd.unwrap(ds))), [_remove_payload(ds)]


def _remove_payload(ds: Dataset) -> Dataset:
    """Return the data set without private elements: the payload is large, and no result repeats it."""
    ds.remove_private_tags()
    return ds


def _scale_progress(progress: Progress, low: float, high: float) -> Progress:
    return lambda fraction, step: progress(low + (high - low) * min(max(fraction, 0.0), 1.0), step)


def _write(
    findings: Sequence[Finding],
    loaded: _Loaded,
    made_by: Provenance,
    renditions: Sequence[ResultsConfig],
    now: datetime,
    verdict: quality.Verdict,
    doubts: Sequence[str],
    config: Config,
) -> dict[ResultsConfig, list[Dataset]]:
    """Write the objects of each rendition; the report page, where any has one, is rendered once."""
    from dicomnode import results
    from dicomnode.deidentify import defacing
    from dicomnode.report import rendering
    from dicomnode.results import marking

    page = None
    if any(rendition.report_page for rendition in renditions):
        at = inherit(loaded.sources).moment(now)
        page = rendering.render(findings, loaded.case, loaded.sources, made_by, at, verdict, doubts)
    written = {}
    load_anatomy = partial(load_without_helpers, "anatomy", config)
    for rendition in renditions:
        cleaned, provenance = defacing.remove_faces(rendition, findings, loaded.case, made_by, load_anatomy)
        written[rendition] = results.write(
            cleaned, loaded.sources, provenance, rendition, now, verdict, doubts, loaded.priors, page
        )
        for ds in written[rendition]:
            if provenance is not made_by:
                faces.mark_face_removed(ds)
            marking.check_marks(ds)
    return written


def _device_name(model: Model) -> str:
    from model_zoo import precision

    return precision.device_name(model.device)


def build_provenance(task: Task, model: Model | BundleFacts, parameters: Mapping[str, Any], device: str) -> Provenance:
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


def _note_vendor_reconstructions(pipeline: Pipeline, facts: Mapping[str, Any]) -> list[Note]:
    """Return a note on each input that the scanner reconstructed by deep learning."""
    own = {each.name: facts if number == 0 else facts.get(each.name, {}) for number, each in enumerate(pipeline.inputs)}
    return [
        Note("reconstruction by deep learning", f"{name}: {describe_vendor_reconstruction(each)}")
        for name, each in own.items()
        if describe_vendor_reconstruction(each)
    ]


def _note_known_limits(pipeline: Pipeline, model: Model) -> list[Note]:
    """Return what the bundle's metadata say about the pipeline's results in ``known_limits``, by pipeline."""
    limits = model.metadata.get("known_limits")
    if not isinstance(limits, Mapping) or pipeline.name not in limits:
        return []
    return [Note("known limit of the model", str(limits[pipeline.name]))]


def _describe_helpers(model: Model) -> dict[str, str]:
    """Return name, version and digest of each helper model, which determine the result like the options."""
    return {f"{each.name} model": f"{each.version}, weights SHA-256 {each.digest}" for each in model.helpers.values()}


def _build_report(
    task: Task, model: Model, options: Any, findings: Sequence[Finding], facts: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "model": f"{model.name}@{model.version}",
        "digest": model.digest,
        "device": _device_name(model),
        "seed": task.seed,
        "options": options.model_dump(mode="json"),
        "measurements": [_measurement_to_json(found) for found in findings if isinstance(found, Measurement)],
        "images": [{"name": each.name, "modality": each.modality} for each in findings if isinstance(each, Image)],
        "overlays": [
            {"name": each.name, "of": each.image_name}
            for each in findings
            if isinstance(each, ParametricMap | Segmentation)
        ],
        "notes": [{"name": found.name, "text": found.text} for found in findings if isinstance(found, Note)],
        "acquisition": _to_json(facts),
    }


def _measurement_to_json(m: Measurement) -> dict[str, Any]:
    intervals = [{"level": i.level, "low": _finite(i.low), "high": _finite(i.high)} for i in m.intervals]
    values = {"group": m.group, "name": m.name, "value": _finite(m.value), "unit": m.unit, "description": m.description}
    return values | ({"intervals": intervals} if intervals else {})


def _judge(findings: Sequence[Finding], model: Model, doubts: Sequence[str], config: QualityConfig) -> quality.Verdict:
    """Return the output gate's verdict. Raises Refused where the result may not be delivered at all."""
    own = quality.OutputLimits(**{name: getattr(config, name) for name in quality.OutputLimits.model_fields})
    limits = quality.read_output_limits(model.metadata).with_overrides(own)
    notes = [f"{found.name}: {found.text}" for found in findings if isinstance(found, Note) and found.holds_result]
    measurements = [found for found in findings if isinstance(found, Measurement)]
    verdict = quality.judge_result(measurements, limits, [*doubts, *notes])
    if verdict.outcome is quality.Outcome.REFUSE:
        raise Refused(f"the result is refused: {verdict.reason}")
    return verdict


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN, PostgreSQL refuses it


def _to_json(value: Any) -> Any:
    """Convert a value to numbers, text, lists and mappings, for a JSON column."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(each) for each in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return _finite(float(value)) if hasattr(value, "__float__") else str(value)
