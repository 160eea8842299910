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

from pydicom import Dataset

from db.deployments import Version
from dicomnode.config import Config
from dicomnode.config.quality import QualityConfig
from dicomnode.config.results import ResultsConfig
from dicomnode.deidentify import faces
from dicomnode.deployment import models, site
from dicomnode.deployment.models import load_without_helpers
from dicomnode.deployment.pipeline_names import resolve_pipeline
from dicomnode.execution.basis import Basis
from dicomnode.execution.inputs import LoadedInputs, load_inputs
from dicomnode.execution.reference import HOLD_BELOW, compare_findings
from dicomnode.execution.route_options import resolve_options
from dicomnode.installation import read_version
from dicomnode.results.inherited import inherit
from dicomnode.results.provenance import Provenance, describe_vendor_reconstruction
from model_zoo.heap import keep_freed_memory
from pipelines import quality
from pipelines.contract import (
    Alignment,
    Case,
    Finding,
    Image,
    Measurement,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Segmentation,
)

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model

__all__ = [
    "Task",
    "TaskResult",
    "build_provenance",
    "derive_seed",
    "run_task",
]


@dataclass(frozen=True)
class Task:
    """The values that determine a result, of a job or of a folder from the command line.

    ``reference``: the current version, from whose result that of a version on trial may not be far.
    ``notes``: statements about the inputs that the result repeats. ``workitem_uid``: the procedure step whose work this
    is, or "".
    """

    key: str
    pipeline: str
    model: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Sequence[Path]]
    seed: int
    created_at: datetime
    model_digest: str = ""
    helper_models: Mapping[str, str] = field(default_factory=dict)
    reference: Version | None = None
    notes: tuple[Note, ...] = ()
    workitem_uid: str = ""


@dataclass(frozen=True)
class TaskResult:
    """The result objects, ready to save, and the report on the run.

    ``held_because``: why the output gate holds the result, or "". ``renditions``: the objects of further renditions.
    ``basis``: for other forms of the result than DICOM.
    """

    objects: list[Dataset]
    report: dict[str, Any]
    held_because: str = ""
    renditions: Mapping[ResultsConfig, list[Dataset]] = field(default_factory=dict)
    basis: Basis | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Computed:
    """The findings of one version of a pipeline; ``doubts``: why the input contract holds them."""

    pipeline: Pipeline
    model: Model
    options: Any
    doubts: tuple[str, ...]
    findings: list[Finding]


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
    progress(0.0, "reading")
    loaded = load_inputs(resolve_pipeline(task.pipeline, config, task.model), task.inputs)
    notes = inherit(loaded.sources, loaded.priors).notes
    share = 0.5 if task.reference else 1.0
    computed = _compute(task, loaded.case, config, _scale_progress(progress, 0.02, 0.95 * share), load_model)
    pipeline, model, options, doubts = computed.pipeline, computed.model, computed.options, computed.doubts
    findings = [*computed.findings, *(Note("header of the input", note) for note in notes), *task.notes]
    findings += _note_vendor_reconstructions(pipeline, loaded.case.facts)
    findings += _note_known_limits(pipeline, model)
    compared, why_not = _compare_with_reference(
        task, loaded.case, config, computed.findings, _scale_progress(progress, 0.95 * share, 0.95), load_model
    )
    verdict = _judge([*findings, *compared], model, [*doubts, *why_not], config.quality)
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
    anatomy = task.helper_models.get("anatomy", "anatomy")
    at = config.node.to_local_time(task.created_at)
    written = _write(findings, loaded, made_by, all_renditions, at, verdict, doubts, anatomy, config)
    report = _build_report(task, model, options, findings, loaded.case.facts)
    report |= {"verdict": str(verdict.outcome), "reasons": list(verdict.reasons)}
    if task.reference:
        report["reference"] = {each.name: _finite(each.value) for each in compared}
    report["seconds"] = round(time.monotonic() - started, 3)
    basis = Basis(findings, loaded.case, loaded.sources, made_by, verdict, doubts, loaded.priors)
    return TaskResult(written.pop(config.results), report, verdict.reason, written, basis)


def _compute(
    task: Task, case: Case, config: Config, progress: Progress, load_model: Callable[..., Model] | None
) -> _Computed:
    """Run the task's version of the pipeline on the case. Raises Refused for an input that it may not take."""
    pipeline = resolve_pipeline(task.pipeline, config, task.model)
    options = resolve_options(pipeline, task.options, config.quality)
    name, pinned = task.model or pipeline.bundle, task.helper_models
    model = models.load(name, pipeline.helpers, config, digest=task.model_digest, pinned=pinned, load_one=load_model)
    rules = config.quality.input_rules
    doubts = quality.check_input(case, model.metadata, pipeline.inputs[0].name, options, rules)
    findings = pipeline.run(case, model, options, task.seed, progress)
    site.check_findings(pipeline, findings)
    return _Computed(pipeline, model, options, doubts, findings)


def _compare_with_reference(
    task: Task,
    case: Case,
    config: Config,
    findings: Sequence[Finding],
    progress: Progress,
    load_model: Callable[..., Model] | None,
) -> tuple[list[Measurement], list[str]]:
    """Run the current version on the same case; return how far the result is from its result, or why it has none."""
    if task.reference is None:
        return [], []
    current = replace(task, model=task.reference.model, model_digest=task.reference.digest)
    try:
        reference = _compute(current, case, config, progress, load_model)
    except Refused as refusal:
        return [], [f"the current version refuses this input: {refusal}"]
    return compare_findings(reference.findings, findings), []


def derive_seed(key: str) -> int:
    """Return the seed of all randomness in a job."""
    return int.from_bytes(hashlib.sha256(f"seed {key}".encode()).digest()[:4], "big") >> 1


def _scale_progress(progress: Progress, low: float, high: float) -> Progress:
    return lambda fraction, step: progress(low + (high - low) * min(max(fraction, 0.0), 1.0), step)


def _write(
    findings: Sequence[Finding],
    loaded: LoadedInputs,
    made_by: Provenance,
    renditions: Sequence[ResultsConfig],
    now: datetime,
    verdict: quality.Verdict,
    doubts: Sequence[str],
    anatomy: str,
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
        page = rendering.render(
            findings, loaded.case, loaded.sources, made_by, at, verdict, doubts, priors=loaded.priors
        )
    written = {}
    load_anatomy = partial(load_without_helpers, anatomy, config)
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
        workitem_uid=task.workitem_uid,
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
        "alignments": [
            {"input": each.name, "correction_mm": each.correction_mm.tolist()}
            for each in findings
            if isinstance(each, Alignment)
        ],
        "acquisition": _to_json(facts),
    }


def _measurement_to_json(m: Measurement) -> dict[str, Any]:
    intervals = [{"level": i.level, "low": _finite(i.low), "high": _finite(i.high)} for i in m.intervals]
    values = {"group": m.group, "name": m.name, "value": _finite(m.value), "unit": m.unit, "description": m.description}
    return values | ({"intervals": intervals} if intervals else {})


def _judge(findings: Sequence[Finding], model: Model, doubts: Sequence[str], config: QualityConfig) -> quality.Verdict:
    """Return the output gate's verdict. Raises Refused where the result may not be delivered at all."""
    own = quality.OutputLimits(**{name: getattr(config, name) for name in quality.OutputLimits.model_fields})
    limits = quality.OutputLimits(hold_below=dict(HOLD_BELOW))
    limits = limits.with_overrides(quality.read_output_limits(model.metadata)).with_overrides(own)
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
