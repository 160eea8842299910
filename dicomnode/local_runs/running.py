"""One run on files: NIfTI and MRD become DICOM, then the pipeline runs as in a job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from dicomnode import mrd
from dicomnode.config import Config
from dicomnode.errors import InputRefused
from dicomnode.execution import processing
from dicomnode.execution.processing import TaskResult
from dicomnode.local_runs.candidates import MRD_SUFFIXES, Candidate
from dicomnode.local_runs.choosing import Choice
from dicomnode.nifti import facts, images, series
from dicomnode.nifti.images import NiftiImage
from dicomnode.reading.frames import read_header
from dicomnode.routing.routing import MAIN_INPUT
from pipelines.contract import Labels, Note, Pipeline, Progress, Refused

__all__ = ["LocalRun", "prepare"]


@dataclass(frozen=True)
class LocalRun:
    """The inputs of one run as files that the node reads.

    ``inputs``: DICOM files by input name; ``like``: images of NIfTI inputs; ``converted``: folders of the series made
    of them, by input name; ``unknown``: facts that nothing states, by input name.
    """

    choice: Choice
    inputs: Mapping[str, Sequence[Path]]
    like: Sequence[NiftiImage] = ()
    converted: Mapping[str, Path] = field(default_factory=dict)
    unknown: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """Names of the files that the run takes."""
        return [f"{name}: {each.name}" for name, each in self.choice.inputs.items()]

    def run(
        self,
        pipeline: str,
        model: str,
        helpers: Mapping[str, str],
        options: Mapping[str, Any],
        seed: int | None,
        config: Config,
        progress: Progress,
    ) -> TaskResult:
        """Run the pipeline by the code of a job; ``helpers``: NAME@VERSION by helper model.

        Raises Refused or a NodeError.
        """
        content = [(name, *sorted(map(_digest, paths))) for name, paths in sorted(self.inputs.items())]
        parts = [content, pipeline, model, sorted(options.items()), *([sorted(helpers.items())] if helpers else [])]
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        task = processing.Task(
            key=key,
            pipeline=pipeline,
            model=model,
            helper_models=helpers,
            options=options,
            inputs=self.inputs,
            seed=processing.derive_seed(key) if seed is None else seed,
            created_at=datetime.now(UTC),
            notes=tuple(self._notes()),
        )
        try:
            return processing.run_task(task, config, progress=progress)
        except (Refused, InputRefused) as error:
            raise type(error)(self._name_options(str(error))) from error

    def _name_options(self, reason: str) -> str:
        """Return a reason with the options that state the facts of NIfTI files, which have no attributes."""
        files = {name: each.kind == "nifti" for name, each in self.choice.inputs.items()}
        return facts.name_options(reason, files, main=next(iter(files)))

    def _notes(self) -> list[Note]:
        names = {name: each.name for name, each in self.choice.inputs.items() if each.kind == "nifti"}
        return [
            Note(
                "input without a header", f"{name} is the NIfTI file {file}, which names no patient{self._lacks(name)}"
            )
            for name, file in names.items()
        ]

    def _lacks(self, name: str) -> str:
        unknown = ", ".join(self.unknown.get(name, ()))
        return f"; nobody stated: {unknown}, so that no rule of the model was checked on them." if unknown else "."


def prepare(choice: Choice, pipeline: Pipeline, reports: Mapping[str, Sequence[Path]], folder: Path) -> LocalRun:
    """Make the inputs of a run; what is converted goes into ``folder``. Raises InputRefused.

    ``reports``: files of covariates, by input name. A NIfTI file takes the study and patient of the DICOM series that
    it is used with, else of the first file.
    """
    main = pipeline.inputs[0].name
    priors = {each.name for each in pipeline.inputs if each.is_prior}
    kinds = {each.name: each.kind for each in pipeline.inputs}
    studies = {True: _find_header(choice, priors, of_priors=True), False: _find_header(choice, priors, of_priors=False)}
    inputs: dict[str, Sequence[Path]] = {}
    like, converted, unknown = [], {}, {}
    for name in sorted(choice.inputs, key=lambda each: each != main):
        candidate, key = choice.inputs[name], MAIN_INPUT if name == main else name
        if candidate.kind != "nifti":
            inputs[key] = _take_files(candidate, folder / name)
            continue
        if kinds[name] is Labels:
            raise InputRefused(f"the input {name!r} is a DICOM Segmentation, not a NIfTI file: {candidate.name}")
        is_prior = name in priors
        image = images.read(candidate.paths[0])
        inputs[key] = series.write_series(
            image, candidate.attributes, folder / name, name=candidate.name,
            study=_study_of(studies, is_prior), has_frame=name == main,
        )  # fmt: skip
        studies[is_prior] = studies[is_prior] or read_header(inputs[key][0])
        like.append(image)
        converted[name], unknown[name] = folder / name, facts.list_unknown(candidate.attributes)
    return LocalRun(choice, inputs | dict(reports), like, converted, unknown)


def _find_header(choice: Choice, priors: set[str], *, of_priors: bool) -> Dataset | None:
    """Return a header of the DICOM series among the inputs, of prior ones or of the others."""
    for name, each in choice.inputs.items():
        if each.kind == "series" and (name in priors) is of_priors:
            return read_header(each.paths[0])
    return None


def _study_of(studies: Mapping[bool, Dataset | None], is_prior: bool) -> Dataset | None:
    """Return the header whose study a NIfTI file takes; a prior one without a study takes the patient only."""
    own = studies[False]
    if studies[is_prior] is not None or not is_prior or own is None:
        return studies[is_prior]
    patient = Dataset()
    for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"):
        if keyword in own:
            patient[keyword] = own[keyword]
    return patient


def _take_files(candidate: Candidate, folder: Path) -> list[Path]:
    path = candidate.paths[0]
    if path.suffix not in MRD_SUFFIXES:
        return list(candidate.paths)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.stem}.dcm"
    if target.exists():
        raise InputRefused(f"{path.name} stands for two inputs")
    with path.open("rb") as file:
        mrd.wrap(file, now=datetime.now(UTC)).save_as(target, enforce_file_format=True)
    return [target]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
