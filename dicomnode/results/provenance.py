"""Provenance of a result in its header: for a person in Image Comments, for a program in a private block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from pydicom.dataset import Dataset

from pipelines.contract import Measurement

__all__ = [
    "PRIVATE_CREATOR",
    "Provenance",
    "describe_vendor_reconstruction",
    "read_provenance",
    "read_record",
    "record",
    "sentences",
]

PRIVATE_CREATOR = "DICOMNODE PROVENANCE 1"
_GROUP = 0x0099
_JSON = 0x01
LONGEST_COMMENT = 10240  # PS3.5 6.2, LT


@dataclass(frozen=True)
class Provenance:
    """The model, pipeline and job that made a result. ``parameters``: options and algorithm (sampler, steps).

    ``model_digest``: SHA-256 of the weights. ``trained_on``: the model card's sentence on its training data.
    ``title``: of the pipeline, for the page; empty: its name.
    ``job_key``: names the job within this node; not part of the UIDs, so that a repetition makes the same objects.
    ``workitem_uid``: of the Unified Procedure Step by which the work was ordered, or "".
    """

    model_name: str
    model_version: str
    model_digest: str
    pipeline: str
    parameters: Mapping[str, Any]
    seed: int
    device: str
    node_version: str
    trained_on: str
    job_key: str
    node_serial: str = "1"
    title: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    workitem_uid: str = ""

    def canonical(self) -> str:
        """Return the parameters in one spelling, for deriving UIDs."""
        return json.dumps(dict(self.parameters), sort_keys=True, default=str)

    @property
    def run_id(self) -> str:
        """SHA-256 that names the run: the job, which stands for inputs and options, with model, parameters and seed."""
        parts = [self.job_key, self.pipeline, self.model_name, self.model_version, self.model_digest, self.canonical(),
                 self.seed, self.node_version]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def record(ds: Dataset, provenance: Provenance, measurements: Sequence[Measurement], *, comments: bool = True) -> None:
    """Write the private block (0099,xx01) UT, JSON, and with ``comments`` Image Comments."""
    if comments:
        facts = (provenance.facts, *(each for each in provenance.facts.values() if isinstance(each, Mapping)))
        inputs = dict.fromkeys(map(describe_vendor_reconstruction, facts))
        lines = [*sentences(provenance), *filter(None, inputs), *map(_measured, measurements)]
        ds.ImageComments = "\r\n".join(lines)[:LONGEST_COMMENT]
    block = ds.private_block(_GROUP, PRIVATE_CREATOR, create=True)
    content = {
        "model": {
            "name": provenance.model_name,
            "version": provenance.model_version,
            "sha256": provenance.model_digest,
            "trained_on": provenance.trained_on,
        },
        "pipeline": provenance.pipeline,
        "parameters": dict(provenance.parameters),
        "seed": provenance.seed,
        "device": provenance.device,
        "node": {"version": provenance.node_version, "job": provenance.job_key},
        "acquisition": dict(provenance.facts),
        "measurements": [_plain(m) for m in measurements],
    }
    block.add_new(_JSON, "UT", json.dumps(content, sort_keys=True, default=str))


def read_record(ds: Dataset) -> dict[str, Any]:
    """Return the content that ``record`` wrote. Raises ``KeyError`` where the object has none."""
    content = json.loads(ds.private_block(_GROUP, PRIVATE_CREATOR)[_JSON].value)
    if not isinstance(content, dict):
        raise KeyError("the provenance block holds no record")
    return content


def read_provenance(ds: Dataset, job_key: str) -> Provenance:
    """Return the provenance that a result's header records. Raises ``KeyError`` where it has none."""
    content = read_record(ds)
    model, node = content["model"], content["node"]
    return Provenance(
        model_name=model["name"],
        model_version=model["version"],
        model_digest=model["sha256"],
        pipeline=content["pipeline"],
        parameters=content["parameters"],
        seed=content["seed"],
        device=content["device"],
        node_version=node["version"],
        trained_on=model["trained_on"],
        job_key=job_key,
        facts=content.get("acquisition", {}),
    )


def _plain(m: Measurement) -> dict[str, Any]:
    content: dict[str, Any] = {"name": m.name, "value": _finite(m.value), "unit": m.unit, "description": m.description}
    if m.group:
        content["group"] = m.group
    if m.intervals:
        content["intervals"] = [
            {"level": each.level, "low": _finite(each.low), "high": _finite(each.high)} for each in m.intervals
        ]
    return content


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def describe_vendor_reconstruction(facts: Mapping[str, Any]) -> str:
    """Return a sentence where the facts say that the scanner reconstructed the image by deep learning, otherwise ""."""
    if facts.get("deep_learning_reconstruction") != "on":
        return ""
    details = facts.get("deep_learning_details", "method unknown")
    return f"The scanner reconstructed an input by deep learning ({details})."


def sentences(provenance: Provenance) -> list[str]:
    """Return the provenance in sentences, for a person."""
    return [
        "SYNTHETIC - RESEARCH USE ONLY. Computed, not measured by the scanner.",
        f"Pipeline: {provenance.pipeline}; model {provenance.model_name} {provenance.model_version}, weights SHA-256 "
        f"{provenance.model_digest}",
        f"Trained on: {provenance.trained_on}",
        "Parameters: " + "; ".join(f"{name} = {value}" for name, value in sorted(provenance.parameters.items())),
        f"Seed {provenance.seed}; device {provenance.device}; node version {provenance.node_version}",
    ]


def _measured(measurement: Measurement) -> str:
    unit = "" if measurement.unit == "1" else f" {measurement.unit}"
    meaning = f" ({measurement.description})" if measurement.description else ""
    return f"{measurement.name}: {measurement.value:.6g}{unit}{meaning}"
