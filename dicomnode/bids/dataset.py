"""A BIDS dataset on disk: descriptions, names of files, sidecar files. https://bids-specification.readthedocs.io"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomnode.errors import NotAllowed
from dicomnode.installation import read_version
from dicomnode.results.provenance import Provenance

__all__ = [
    "SUFFIXES",
    "Labels",
    "add_participant",
    "find_suffix",
    "open_derivative",
    "open_raw",
    "write_json",
    "write_lookup",
]

BIDS_VERSION = "1.10.0"
SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw")
"""Suffixes of anatomical MR that a series may get."""
_IGNORED = "*_synthetic.nii.gz\n*_synthetic.json\n"
_README = """Research use only. Written by dicomnode {version}.

The images are those of the DICOM series, with the facts that their headers state. Faces are not removed.
Results are in derivatives/, one dataset for each pipeline and model version. They are computed, not measured.
"""
_DERIVATIVE_README = """SYNTHETIC - RESEARCH USE ONLY. Computed by dicomnode, not measured by a scanner.

Segmentations are *_dseg.nii.gz. BIDS has no suffix for images and maps that a model made: they are *_synthetic.nii.gz,
which .bidsignore lists.
"""
_WORDS = (
    ("FLAIR", re.compile(r"(?i)flair")), ("T1w", re.compile(r"(?i)mprage|mp2rage|bravo|spgr|tfe|t1")),
    ("T2starw", re.compile(r"(?i)t2\*|t2star|gre_t2")), ("T2w", re.compile(r"(?i)t2")),
    ("PDw", re.compile(r"(?i)\bpd")),
)  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """Subject and session: letters and digits. Raises NotAllowed for others."""

    subject: str
    session: str = ""

    def __post_init__(self) -> None:
        for text in (self.subject, self.session or "x"):
            if not re.fullmatch(r"[A-Za-z0-9]+", text):
                raise NotAllowed(f"{text!r} is no BIDS label: letters and digits only")

    @property
    def prefix(self) -> str:
        """Begin of the names of files."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    def folder(self, root: Path) -> Path:
        """Return the folder of anatomical images, made where it is missing."""
        parts = [f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else []), "anat"]
        path = root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path


def find_suffix(attributes: Mapping[str, Any]) -> str:
    """Return the suffix that the description of an MR series names, or ""."""
    text = " ".join(str(attributes.get(keyword) or "") for keyword in ("SeriesDescription", "ProtocolName"))
    return next((suffix for suffix, words in _WORDS if words.search(text)), "")


def open_raw(root: Path, labels: Labels) -> None:
    """Write the description of the raw dataset where it is missing, and refuse a subject that is there."""
    own = f"sub-{labels.subject}/{f'ses-{labels.session}' if labels.session else 'anat'}"
    if any(root.glob(own)) or any(root.glob(f"derivatives/*/{own}")):
        raise NotAllowed(f"{root} has {labels.prefix} already: choose another --subject or --session")
    description = {"Name": root.resolve().name, "BIDSVersion": BIDS_VERSION, "DatasetType": "raw",
                   "GeneratedBy": [{"Name": "dicomnode", "Version": read_version()}]}  # fmt: skip
    _write_once(root / "dataset_description.json", json.dumps(description, indent=2) + "\n")
    _write_once(root / "README", _README.format(version=read_version()))


def open_derivative(root: Path, made_by: Provenance) -> Path:
    """Return the dataset of a pipeline's results by one model, with its description. Raises NotAllowed for another."""
    folder = root / "derivatives" / f"dicomnode-{made_by.pipeline.replace(':', '-')}-{made_by.model_version}"
    description: dict[str, Any] = {
        "Name": f"{made_by.pipeline} by {made_by.model_name} {made_by.model_version}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "dicomnode", "Version": made_by.node_version, "Description": f"pipeline {made_by.pipeline}"},
            {
                "Name": made_by.model_name,
                "Version": made_by.model_version,
                "Description": f"weights SHA-256 {made_by.model_digest}; trained on {made_by.trained_on}",
            },
        ],
        "SourceDatasets": [{"URL": "../.."}],
        "DatasetLinks": {"raw": "../.."},
    }
    path = folder / "dataset_description.json"
    if path.exists() and json.loads(path.read_text())["GeneratedBy"][1] != description["GeneratedBy"][1]:
        raise NotAllowed(f"{folder} has results of other weights of {made_by.model_name} {made_by.model_version}")
    _write_once(path, json.dumps(description, indent=2) + "\n")
    _write_once(folder / "README", _DERIVATIVE_README)
    _write_once(folder / ".bidsignore", _IGNORED)
    return folder


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a sidecar file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_lookup(path: Path, segments: Sequence[tuple[int, str]]) -> None:
    """Write the table of the labels of a segmentation."""
    path.write_text("\n".join(["index\tname", *(f"{number}\t{name}" for number, name in segments)]) + "\n")


def _write_once(path: Path, content: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def add_participant(root: Path, labels: Labels) -> None:
    """List the subject, which must have a raw image: a table without the folders of its subjects is not valid."""
    path = root / "participants.tsv"
    lines = path.read_text().splitlines() if path.exists() else ["participant_id"]
    if f"sub-{labels.subject}" not in lines:
        path.write_text("\n".join([*lines, f"sub-{labels.subject}"]) + "\n")
