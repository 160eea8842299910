"""Studies in every state that the dashboard shows, with real files: head-like images and results of the writers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from db import audit, deliveries, jobs, keywords, studies
from db.jobs import OutputFile
from db.models import Job, Study
from db.states import StudyState
from db.studies import Arrival, Sender
from dicomnode import results, uids
from dicomnode.config.results import ResultsConfig
from dicomnode.datasets import headers, objects
from dicomnode.results.page import Page
from dicomnode.results.planes import find_series_on
from dicomnode.storage import spool
from pipelines.contract import Code, Finding, Grid, Image, Measurement, ParametricMap, Segment, Segmentation, Volume
from tests.findings import NOW, PROVENANCE
from tests.web_node import Web, encode_part10

__all__ = [
    "MARKUP",
    "NAME",
    "PEERS",
    "ROUTES",
    "claim_job",
    "finish_job",
    "make_all_states",
    "make_grid",
    "make_head",
    "make_results",
    "make_series",
    "receive",
    "report_progress",
    "route_study",
    "run_all_states",
    "study_uid",
]

NAME = "Meier^Erika"
MARKUP = "<script>alert(1)</script>"
PEERS = [{"name": "pacs", "ae_title": "ORTHANC", "port": 1}, {"name": "research", "ae_title": "ARCHIVE", "port": 1}]
ROUTES = [
    {
        "name": "flair-to-dir",
        "pipeline": "synthetic_dir",
        "match": {"Modality": "MR", "SeriesDescription": "~(?i)flair"},
        "destinations": ["pacs"],
    }
]
_SHAPE = (9, 96, 96)
_SD = Code("113061", "DCM", "Standard Deviation")


def make_head(seed: int = 1) -> NDArray[np.float32]:
    """Return a head-like volume (slice, row, column): skull, brain, ventricles and a little noise."""
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, count) for count in _SHAPE), indexing="ij")
    around = (j / 0.86) ** 2 + (i / 0.7) ** 2 + (k / 1.5) ** 2
    image = 700.0 * (around < 1) - 620 * ((around < 0.94) & (around > 0.82)) + 120 * (around < 0.5)
    for side in (-1, 1):
        image -= 500 * (((j + 0.05) / 0.28) ** 2 + ((i - 0.14 * side) / 0.08) ** 2 + (k / 0.9) ** 2 < 1)
    noise = np.random.default_rng(seed).normal(0, 14, _SHAPE)
    return np.asarray(np.clip(image + noise, 0, None), np.float32)


def study_uid(study: str) -> str:
    """Return the Study Instance UID of a study of that name."""
    return str(uids.derive("dashboard", study))


def make_grid() -> Grid:
    """Return an axial grid, 2.2 mm in the plane and 12 mm between slices."""
    affine = np.diag([2.2, 2.2, 12.0, 1.0])
    affine[:3, 3] = (-105, -105, -48)
    return Grid(_SHAPE, affine)


def make_series(study: str, *, number: int = 1, description: str = "FLAIR 3D", **values: Any) -> list[Dataset]:
    """Return single-frame MR images of one series."""
    where, found = make_grid(), []
    for at, frame in enumerate(make_head(number)):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID, ds.StudyInstanceUID = MRImageStorage, uids.derive("dashboard", study)
        ds.SOPInstanceUID = uids.derive("dashboard", study, str(number), str(at))
        ds.SeriesInstanceUID = uids.derive("dashboard", study, str(number))
        ds.FrameOfReferenceUID = uids.derive("dashboard frame", study)
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = NAME, f"P-{study}-00471", "19610203", "F"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20261119", "101112", "S1", "815"
        ds.StudyDescription, ds.ReferringPhysicianName = "MR head, follow-up", ""
        ds.Modality, ds.SeriesDescription, ds.SeriesNumber, ds.InstanceNumber = "MR", description, number, at + 1
        ds.BodyPartExamined, ds.ImageType, ds.MRAcquisitionType = "HEAD", ["ORIGINAL", "PRIMARY"], "3D"
        ds.PixelSpacing, ds.SliceThickness = [2.2, 2.2], 12
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-105, -105, float(where.affine_mm[2, 3] + 12 * at)]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = frame.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = frame.astype("<u2").tobytes()
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        found.append(ds)
    return found


def make_results(sources: Sequence[Dataset], page: Page | None = None) -> list[Dataset]:
    """Return a labelled and a clean image, its uncertainty, a mask on the sources, and a report page if given."""
    where, data = make_grid(), make_head(7)
    assert find_series_on(sources, where)
    deviation = (np.abs(np.gradient(data, axis=2)) / 30 + 1).astype(np.float32)
    mask = (data > 790).astype(np.uint8) + (2 * ((data < 300) & (data > 150))).astype(np.uint8)
    found: list[Finding] = [
        Image("image", Volume(data, where), "Synthetic DIR", 12.0),
        ParametricMap("deviation", Volume(deviation, where), _SD, "Standard deviation of DIR", 12.0),
        Segmentation("lesions", mask, where, _SEGMENTS, "Lesions", 12.0),
        Measurement("lesion volume", 3.2, "ml"),
    ]
    config = ResultsConfig(report=False, report_page=("sc", "pdf") if page else ())
    return results.write(found, sources, PROVENANCE, config, NOW, page=page)


_KIND = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_SEGMENTS = (Segment(1, "Lesion", _KIND, _KIND), Segment(2, "Low confidence", _KIND, _KIND))
"""Two segments, so that colours show."""


def receive(web: Web, instances: Sequence[Dataset]) -> int:
    """Register instances as ingest does; return the study's row id."""
    arrivals = []
    for ds in instances:
        stored = spool.write(web.config.spool_dir, encode_part10(ds))
        facts = headers.read(spool.path(web.config.spool_dir, stored))
        arrivals.append(Arrival(facts, stored, Sender("MR1", "127.0.0.1")))
    with web.sessions.begin() as session:
        studies.register_instances(session, arrivals, now=web.now)
        study = studies.find_by_uid(session, instances[0].StudyInstanceUID)
        assert study is not None
        return study.id


def route_study(
    web: Web,
    study_id: int,
    *,
    destinations: Sequence[str] = ("pacs",),
    further: Mapping[str, Sequence[int]] = MappingProxyType({}),
    **changes: Any,
) -> int:
    """Complete a study and give it a job; return the job's number. ``further``: instances of further inputs by name."""
    with web.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        if study.state is StudyState.RECEIVING:
            studies.close(session, study, reason="quiet for 60 s", now=web.now)
            audit.transition(session, study, StudyState.ROUTED, reason="flair-to-dir", now=web.now)
        instances = [row.id for series in study.series for row in series.instances]
        values: dict[str, Any] = {"route": "flair-to-dir", "pipeline": "synthetic_dir", "options": {}} | changes
        job = jobs.enqueue(
            session, study_id=study.id, revision=study.revision, inputs={"match": instances, **further},
            destinations=destinations, now=web.now, **values,
        )  # fmt: skip
        assert job is not None
        return job.id


def claim_job(web: Web) -> int:
    """Let a worker claim the next job."""
    with web.sessions.begin() as session:
        job = jobs.claim(session, worker="w:1", lease_s=3600, now=web.now)
        assert job is not None
        return job.id


def report_progress(web: Web, job_id: int, fraction: float, step: str) -> None:
    """Report the worker's progress on a job."""
    with web.sessions.begin() as session:
        assert jobs.renew(
            session, job_id=job_id, worker="w:1", lease_s=3600, fraction=fraction, step=step, now=web.now
        )  # fmt: skip


def finish_job(
    web: Web,
    job_id: int,
    instances: Sequence[Dataset],
    *,
    held_because: str = "",
    seconds: float = 95,
    found: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Finish a job with results as the worker stores them. ``found``: parts of the report in place of the usual."""
    web.now += timedelta(seconds=seconds)
    outputs = [_make_output(web, ds) for ds in instances]
    report = {
        "model": "synthetic_dir@1.1.0", "device": "cpu", "seed": 7, "verdict": "hold" if held_because else "accept",
        "reasons": held_because.split("; ") if held_because else [],
        "measurements": [
            {"group": "", "name": "low-confidence fraction", "value": 0.184, "unit": "1", "description": ""},
            {"group": "", "name": "lesion volume", "value": 3.21, "unit": "ml", "description": "",
             "intervals": [{"level": 0.95, "low": 2.6, "high": 3.9}]},
            {"group": "periventricular", "name": "lesion volume", "value": 2.05, "unit": "ml", "description": ""},
        ],
        "notes": [{"name": "registration", "text": "T1w moved by 1.2 mm"}],
    } | dict(found)  # fmt: skip
    with web.sessions.begin() as session:
        jobs.finish(
            session, job_id=job_id, worker="w:1", outputs=outputs, report=report, held_because=held_because, now=web.now
        )  # fmt: skip


def make_all_states(web: Web) -> Mapping[str, int]:
    """Make a study in every state; return the numbers of the jobs by outcome."""
    names = ("delivered", "partly", "given up", "held", "dead", "refused", "cancelled")
    made: dict[str, int] = {}
    for at, name in enumerate(names):
        images = make_series(name, description="FLAIR 3D sagittal" if at % 2 else "AX FLAIR")
        to = ["pacs", "research"] if name == "partly" else ["pacs"]
        made[name] = route_study(web, receive(web, images), destinations=to)
        web.now += timedelta(minutes=2)
        _end_job(web, name, made[name], images)
    receive(web, make_series("unrouted", description="localizer"))
    with web.sessions.begin() as session:
        study = studies.find_by_uid(session, study_uid("unrouted"))
        assert study is not None
        studies.close(session, study, reason="quiet for 60 s", now=web.now)
        audit.transition(session, study, StudyState.ROUTED, reason="no route took it", now=web.now)
    made["running"] = route_study(web, receive(web, make_series("running")))
    assert claim_job(web) == made["running"]
    web.now += timedelta(seconds=30)
    report_progress(web, made["running"], 0.42, "sampling 17 of 40")
    made["waiting"] = route_study(
        web, receive(web, make_series("waiting", PatientName=MARKUP, StudyDescription=MARKUP))
    )
    receive(web, make_series("complete"))
    with web.sessions.begin() as session:
        study = studies.find_by_uid(session, study_uid("complete"))
        assert study is not None
        studies.close(session, study, reason="quiet for 60 s", now=web.now)
    receive(web, make_series("receiving")[:5])
    return made


@contextmanager
def run_all_states(folder: Path, **settings: Any) -> Iterator[tuple[Web, Mapping[str, int]]]:
    """Run a node with a study in every state; yield it and its jobs by outcome.

    The studies are made once per process, and copied.
    """
    template, now, made = _all_states()
    shutil.copytree(template / "data", folder / "data")
    with Web(folder, settings, now=now, sections={"routes": ROUTES, "peers": PEERS}) as web:
        yield web, made


@cache
def _all_states() -> tuple[Path, datetime, Mapping[str, int]]:
    folder = Path(tempfile.mkdtemp(prefix="dicomnode-states-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with Web(folder, sections={"routes": ROUTES, "peers": PEERS}) as web:
        made = MappingProxyType(dict(make_all_states(web)))
    return folder, web.now, made


def _end_job(web: Web, name: str, job_id: int, images: Sequence[Dataset]) -> None:
    if name == "cancelled":
        with web.sessions.begin() as session:
            jobs.cancel(session, session.get_one(Job, job_id), reason="cancelled by hand", now=web.now)
        return
    assert claim_job(web) == job_id
    if name == "dead":
        with web.sessions.begin() as session:
            why = "the weights and inference.json do not fit together"
            jobs.fail(session, job_id=job_id, worker="w:1", reason=why, retry=False, attempts=3, now=web.now)
    elif name == "refused":
        why = "slice thickness 12 mm is outside 0.5 to 5 mm (0018,0050)"
        report = {"verdict": "refuse", "reasons": [why]}
        with web.sessions.begin() as session:
            jobs.refuse(session, job_id=job_id, worker="w:1", reason=why, report=report, now=web.now)
    elif name == "held":
        why = "low-confidence fraction 0.184 is above 0.15; age of 14 years is below 16"
        finish_job(web, job_id, make_results(images), held_because=why)
    else:
        finish_job(web, job_id, make_results(images))
        _deliver(web, name)


def _deliver(web: Web, name: str) -> None:
    with web.sessions.begin() as session:
        due = deliveries.claim_due(session, worker="w:1", lease_s=60, limit=100, now=web.now)
        for one in due:
            if name == "delivered" or one.destination == "research":
                deliveries.mark_delivered(session, one.delivery_id, worker="w:1", now=web.now)
            else:
                why, later = "no association: connection refused", web.now + timedelta(minutes=5)
                deliveries.mark_failed(
                    session, one.delivery_id, worker="w:1", reason=why, now=web.now,
                    retry_at=None if name == "given up" else later,
                )  # fmt: skip


def _make_output(web: Web, ds: Dataset) -> OutputFile:
    stored = spool.write(web.config.spool_dir, encode_part10(ds))
    facts = headers.read(spool.path(web.config.spool_dir, stored))
    return OutputFile(
        sop_instance_uid=facts.sop_instance_uid, sop_class_uid=facts.sop_class_uid, series_uid=facts.series_uid,
        kind=objects.kind_of(ds), file=stored, attributes=keywords.pick(facts.attributes, keywords.RESULT_STORED),
    )  # fmt: skip
