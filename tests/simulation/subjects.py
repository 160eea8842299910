"""What the senders send and what the pipeline makes: tiny MR instances, and a copy of one real result for each job."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from dicomnode import results, uids
from dicomnode.config.results import ResultsConfig
from dicomnode.execution.processing import Task, TaskResult
from pipelines.contract import Grid, Image, Volume
from tests.simulation.machine import EPOCH, machine

__all__ = ["Subject", "cut_file_meta", "make_subjects", "run_task"]

_STUDIES, _SERIES, _INSTANCES, _CONTENTS = 2, 2, 3, 2


@dataclass(frozen=True)
class Subject:
    """Encoded data set of one instance."""

    name: str
    study_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    data_set: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data_set).hexdigest()


@cache
def make_subjects() -> dict[tuple[int, int, int, int], Subject]:
    """Return every instance that a plan may name: study, series, number and content."""
    return {
        (study, series, number, content): _make_subject(study, series, number, content)
        for study in range(_STUDIES)
        for series in range(_SERIES)
        for number in range(_INSTANCES)
        for content in range(_CONTENTS)
    }


def _make_subject(study: int, series: int, number: int, content: int) -> Subject:
    ds = _make_instance(study, series, number)
    ds.ImageComments = f"content {content}"
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    name = f"{study}.{series}.{number}" + (" changed" if content else "")
    uid, kind, syntax = str(ds.SOPInstanceUID), str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)
    return Subject(name, ds.StudyInstanceUID, uid, kind, syntax, cut_file_meta(file.getvalue()))


def cut_file_meta(content: bytes) -> bytes:
    """Return the bytes behind the file meta information of a Part 10 file (PS3.10 7.1)."""
    group_length = int.from_bytes(content[140:144], "little")
    return content[144 + group_length :]


def _make_instance(study: int, series: int, number: int) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, _derive(study, series, number)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _derive(study), _derive(study, series)
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "080000", "1", ""
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Test^Phantom", f"P{study}", "", "O"
    ds.ReferringPhysicianName, ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "", "MR", series + 1, number + 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", 4, 4
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = np.arange(16, dtype="<u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _derive(*parts: int) -> UID:
    return uids.derive("simulation", *map(str, parts))


@cache
def _result() -> Dataset:
    volume = Volume(np.zeros((1, 4, 4), np.float32), Grid((1, 4, 4), np.eye(4)))
    provenance = results.Provenance(
        model_name="simulated",
        model_version="1",
        model_digest="0" * 64,
        pipeline="simulated",
        parameters={},
        seed=1,
        device="cpu",
        node_version="0",
        trained_on="nothing",
        job_key="simulated",
    )
    image = Image("image", volume, "image", slice_thickness_mm=1.0)
    settings = ResultsConfig(labelled=False, report=False)
    (ds,) = results.write([image], [_make_instance(0, 0, 0)], provenance, settings, EPOCH)
    return ds


def run_task(task: Task, config: Any, *, progress: Callable[[float, str], None], **more: Any) -> TaskResult:
    """Stand in for ``processing.run_task``: read the inputs, take time, and return a result of this job."""
    del config
    this, worker = machine(), more.pop("worker", "")
    contents = [path.read_bytes() for paths in task.inputs.values() for path in paths]
    run = (task.key, worker or this.name_worker())
    this.outside.runs.append(("begin", *run))
    try:
        for step in range(4):
            this.cross("run")
            this.scheduler.sleep(this.job_s / 4)
            progress(step / 4, "working")
    finally:
        this.outside.runs.append(("end", *run))
    made = copy.deepcopy(_result())
    made.StudyInstanceUID = uids.derive("simulated result", "study", task.key)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uids.derive("simulated result", task.key)
    made.SeriesInstanceUID = uids.derive("simulated result", "series", task.key)
    made.ImageComments = f"{made.ImageComments} {hashlib.sha256(b''.join(sorted(contents))).hexdigest()[:16]}"
    return TaskResult([made], {"verdict": "accept", "reasons": []})
