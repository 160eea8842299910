"""Database rows for tests, made by the functions that the node uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from db import jobs, studies
from db.jobs import OutputFile
from db.models import Job
from db.studies import Arrival, InstanceFacts, Sender, StoredFile
from dicomnode.config import Config
from dicomnode.storage import spool
from tests.peers.files import write_instance, write_result

__all__ = ["RAW_DATA_STORAGE", "add_job", "finish_job", "make_arrival"]

RAW_DATA_STORAGE = "1.2.840.10008.5.1.4.1.1.66"

_ATTRIBUTES: Mapping[str, Any] = {"Modality": "MR", "SeriesDescription": "AX FLAIR", "SliceThickness": 3.0}


def make_arrival(
    study: str = "1.2.1",
    series: str = "1",
    number: int = 1,
    *,
    content: str = "",
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.4",
    attributes: Mapping[str, Any] = _ATTRIBUTES,
) -> Arrival:
    """Return the arrival of one instance of a study; its content follows from its UID unless ``content`` is given."""
    uid = f"{study}.{series}.{number}"
    sha256 = hashlib.sha256((content or uid).encode()).hexdigest()
    modality = str(attributes.get("Modality", ""))
    return Arrival(
        InstanceFacts(study, f"{study}.{series}", uid, sop_class_uid, "1.2.840.10008.1.2.1", modality, attributes),
        StoredFile(sha256, 1000, f"{sha256[:2]}/{sha256[2:4]}/{sha256}.dcm"),
        Sender("SCANNER", "127.0.0.1"),
    )


def add_job(session: Session, now: datetime, *, study: str = "1.2.1", **changes: Any) -> Job:
    """Add a waiting job on a study of one instance."""
    registration = studies.register_instances(session, [make_arrival(study)], now=now)[0]
    row = studies.find_by_uid(session, study)
    assert row is not None
    assert registration.instance_id is not None
    values: dict[str, Any] = {
        "study_id": row.id,
        "revision": row.revision,
        "route": "flair",
        "pipeline": "nothing",
        "options": {},
        "inputs": {"match": [registration.instance_id]},
        "destinations": ["pacs"],
        "now": now,
    }
    job = jobs.enqueue(session, **(values | changes))
    assert job is not None
    return job


def finish_job(
    sessions: sessionmaker[Session],
    config: Config,
    to: Sequence[str],
    now: datetime,
    *,
    count: int = 1,
    marked: bool = True,
    study: str = "1.2.1",
    report: Mapping[str, Any] | None = None,
    **changes: Any,
) -> list[str]:
    """Finish a job with results for the destinations; return their SOP Instance UIDs."""
    outputs = []
    for number in range(count):
        path = config.data_dir / f"{number}.dcm"
        write = write_result if marked else write_instance
        ds = write(path, study_uid=study, PatientName="Müller^Jürgen")
        file = spool.write(config.spool_dir, path.read_bytes())
        outputs.append(OutputFile(ds.SOPInstanceUID, ds.SOPClassUID, ds.SeriesInstanceUID, "image", file))
    with sessions.begin() as session:
        job = add_job(session, now, study=study, destinations=list(to), **changes)
        jobs.claim(session, worker="w", lease_s=60, now=now)
        jobs.finish(session, job_id=job.id, worker="w", outputs=outputs, report=dict(report or {}), now=now)
    return [output.sop_instance_uid for output in outputs]
