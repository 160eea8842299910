"""Findings as NIfTI files with a JSON file beside each: the model, its digest, the sources and the mark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicomnode.nifti import images
from dicomnode.nifti.images import MARK, NiftiImage
from dicomnode.results.provenance import Provenance
from pipelines.contract import Finding, Image, ParametricMap, Segmentation
from pipelines.quality import Verdict

__all__ = ["MARK", "describe_provenance", "describe_verdict", "find_other_runs", "slug", "write_findings"]


def write_findings(
    findings: Sequence[Finding],
    folder: Path,
    made_by: Provenance,
    *,
    sources: Sequence[str],
    verdict: Verdict,
    like: Sequence[NiftiImage] = (),
) -> list[tuple[str, Path]]:
    """Write every image, map and segmentation; return kind and path of each.

    ``verdict``: of the output gate, which each JSON file states with its reasons.
    ``sources``: names of the input files. ``like``: images of the input; a result on the grid of one of them gets its
    voxel order and affine.
    """
    written = []
    for each in _select_images(findings):
        path = _name_file(each, folder)
        grid = each.grid if isinstance(each, Segmentation) else each.volume.grid
        values = each.labels if isinstance(each, Segmentation) else each.volume.data.astype(np.float32)
        reference = next((one for one in like if one.grid.matches(grid)), None)
        images.write(path, values, grid, like=reference)
        content = _describe(each) | describe_verdict(verdict) | describe_provenance(made_by, sources)
        _name_sidecar(path).write_text(json.dumps(content | {"Run": made_by.run_id}, indent=2) + "\n")
        written.append((f"{_kind_of(each)} (NIfTI)", path))
    return written


def find_other_runs(findings: Sequence[Finding], folder: Path, made_by: Provenance) -> list[Path]:
    """Return the files that ``write_findings`` would write over, and that are not of the same run."""
    targets = [_name_file(each, folder) for each in _select_images(findings)]
    there = [path for path in targets if path.exists() or _name_sidecar(path).exists()]
    return [path for path in there if _read_run(_name_sidecar(path)) != made_by.run_id]


def describe_provenance(made_by: Provenance, sources: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a JSON file that say who made a result from what, in plain values."""
    return {
        "SyntheticData": True,
        "Mark": f"{MARK}. Computed, not measured by the scanner.",
        "Pipeline": made_by.pipeline,
        "Model": {
            "Name": made_by.model_name,
            "Version": made_by.model_version,
            "WeightsSHA256": made_by.model_digest,
            "TrainedOn": made_by.trained_on,
        },
        "Parameters": json.loads(made_by.canonical()),
        "Seed": made_by.seed,
        "NodeVersion": made_by.node_version,
        "SourceFiles": list(sources),
    }


def describe_verdict(verdict: Verdict) -> dict[str, Any]:
    """Return the output gate's decision in plain values: accept, hold or refuse, and why."""
    return {"Verdict": str(verdict.outcome), "Reasons": list(verdict.reasons)}


def slug(text: str) -> str:
    """Return the text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", text).strip("-._") or "result"


def _select_images(findings: Sequence[Finding]) -> list[Image | ParametricMap | Segmentation]:
    return [each for each in findings if isinstance(each, Image | ParametricMap | Segmentation)]


def _name_file(finding: Image | ParametricMap | Segmentation, folder: Path) -> Path:
    return folder / f"{slug(finding.name)}_synthetic.nii.gz"


def _name_sidecar(path: Path) -> Path:
    return path.with_name(f"{images.strip_suffix(path)}.json")


def _read_run(sidecar: Path) -> str:
    """Return the run that a JSON file states, or ""."""
    try:
        content = json.loads(sidecar.read_text())
    except (OSError, ValueError):
        return ""
    return str(content.get("Run", "")) if isinstance(content, dict) else ""


def _kind_of(finding: Image | ParametricMap | Segmentation) -> str:
    if isinstance(finding, Segmentation):
        return "segmentation"
    return "image" if isinstance(finding, Image) else "parametric map"


def _describe(finding: Image | ParametricMap | Segmentation) -> dict[str, Any]:
    described: dict[str, Any] = {"Description": finding.description}
    if isinstance(finding, Segmentation):
        labels: Mapping[str, str] = {str(segment.number): segment.label for segment in finding.segments}
        return described | {"Labels": labels}
    described |= {"Units": finding.volume.unit}
    return described | ({"Quantity": finding.quantity.meaning} if isinstance(finding, ParametricMap) else {})
