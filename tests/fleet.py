"""A node whose jobs run on other hosts, each with its own data folder; they share one PostgreSQL and one spool."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import audit
from db.models import Delivery, Event, Job, Output
from db.states import DeliveryState, JobState
from dicomnode.config import Peer
from dicomnode.datasets import headers
from dicomnode.dimse import peers
from dicomnode.storage import spool
from tests.peers import Node, make_route, wait_for, write_config
from tests.peers.kspaces import raw_data
from tests.prior_bundle import write_prior_bundle

__all__ = [
    "PER_JOB",
    "Site",
    "check_each_job_ended_once",
    "check_each_result_arrived_once",
    "count_ended_jobs",
    "find_busy_worker",
    "send_studies",
    "wait_until_ended",
    "write_small_studies",
]

PER_JOB = 3
"""Results of a job here: image, parametric map, segmentation."""
_FAST = {"steps": 2, "mean_steps": 2, "samples": 2}
_PLAIN = {"labelled": False, "report": False, "report_page": []}


@dataclass(frozen=True)
class Site:
    """Database, spool and destination that all hosts share, and the folder that holds a folder for each host."""

    root: Path
    database_url: str
    destination: Peer | None = None
    options: dict[str, int] = field(default_factory=dict)

    @property
    def spool_dir(self) -> Path:
        return self.root / "spool"

    def host(self, name: str, *, bundle: str | None = "9.0.0", **worker: Any) -> Path:
        """Write the node.toml of a host, whose data folder holds only the model."""
        peers = [] if self.destination is None else [self.destination]
        path = write_config(
            self.root / name,
            database={"url": self.database_url},
            spool={"dir": str(self.spool_dir)},
            results=_PLAIN,
            worker={"host": name, "lease_s": 10, "attempts": 10} | worker,
            peers=peers,
            routes=[make_route(*(peer.name for peer in peers), **_FAST | self.options)],
        )
        models = path.parent / "data" / "models" / "mri_prior"
        if bundle and not models.exists():
            write_prior_bundle(models / bundle, bundle)
        return path

    def receiver(self) -> Node:
        """Return a node that receives, routes, keeps the leases and delivers, and runs no job."""
        return Node(self.host("receiver"), "serve", "--workers", "0")


def write_small_studies(folder: Path, count: int, now: datetime) -> list[Path]:
    """Write studies of one instance of k-space each, all different."""
    folder.mkdir(parents=True)
    ds = dcmread(raw_data(folder / "first.dcm", now))
    paths = []
    for number in range(count):
        ds.StudyInstanceUID, ds.SeriesInstanceUID, uid = (generate_uid(entropy_srcs=[w, str(number)]) for w in "abc")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
        ds.PatientID = f"P{number}"
        paths.append(folder / f"{number:04}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def send_studies(receiver: Node, paths: Sequence[Path]) -> None:
    """Send the studies over the wire and wait until each is a job."""
    sent = peers.store(receiver.peer, paths, calling_aet="TEST")
    assert {result.status for result in sent} == {0x0000}
    wait_for(lambda: count_rows(receiver, Job) == len(paths), "every study is a job", within_s=60)


def count_ended_jobs(node: Node) -> int:
    """Return the number of jobs in a final state."""
    with node.sessions() as session:
        waiting = (JobState.READY, JobState.RUNNING)
        return session.scalar(select(func.count(Job.id)).where(Job.state.not_in(waiting))) or 0


def count_rows(node: Node, table: type[Job] | type[Output] | type[Delivery]) -> int:
    with node.sessions() as session:
        return session.scalar(select(func.count(table.id))) or 0


def check_each_job_ended_once(session: Session, root: Path, count: int) -> None:
    """Check that one transition finished every job, that each result is one row with its bytes, and the audit chain."""
    jobs = session.scalars(select(Job)).all()
    assert Counter(job.state for job in jobs) == {JobState.DONE: count}
    moves = session.scalars(select(Event).where(Event.subject == "jobs", Event.event == "moved")).all()
    done = Counter(move.subject_id for move in moves if move.detail["to"] == "done")
    assert done == {str(job.id): 1 for job in jobs}
    outputs = session.scalars(select(Output)).all()
    assert Counter(output.job_id for output in outputs) == dict.fromkeys((job.id for job in jobs), PER_JOB)
    assert len({output.sop_instance_uid for output in outputs}) == PER_JOB * count
    for output in outputs:
        content = spool.path(root, output.sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == output.sha256
    assert audit.verify(session) is None


def check_each_result_arrived_once(node: Node, files: Sequence[Path], count: int) -> None:
    """Check that every result was delivered and that the peer holds each once."""
    wait_for(lambda: count_undelivered(node) == 0, "delivery", within_s=120)
    assert count_rows(node, Delivery) == PER_JOB * count
    uids = [headers.read(path).sop_instance_uid for path in files]
    assert len(uids) == len(set(uids)) == PER_JOB * count


def count_undelivered(node: Node) -> int:
    with node.sessions() as session:
        query = select(func.count(Delivery.id)).where(Delivery.state != DeliveryState.DELIVERED)
        return session.scalar(query) or 0


def wait_until_ended(node: Node, count: int) -> None:
    wait_for(lambda: count_ended_jobs(node) >= count, f"{count} studies have ended", within_s=400)


def find_busy_worker(node: Node) -> int:
    """Return the process id of a living worker that runs a job; 0 without one."""
    with node.sessions() as session:
        names = session.scalars(select(Job.worker).where(Job.state == JobState.RUNNING)).all()
    pids = [int(name.rpartition(":")[2]) for name in names]
    return next((pid for pid in pids if Path(f"/proc/{pid}/exe").exists()), 0)
