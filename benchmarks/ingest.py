"""Durable ingest: instances per second and memory of this node and of Orthanc, taken in turns in one run.

    python -m benchmarks.ingest [--instances 500] [--repeats 3] [--large-mb 500] [--json FILE]

DCMTK's storescu sends (TCP_NODELAY=1 on both sides; 512x512x16 bit, new UIDs in every run, the files to send written
back to disk before) over 1 and over 4 associations at once. The clock runs from the start of the senders to the end of
the last one. Both receivers synchronise every file to disk before they answer; every status is checked, and afterwards
the number of instances that each holds. The peak of resident memory is the kernel's own (VmHWM), after one large
multi-frame object. Other work on the machine costs the receiver more that waits more often: measure on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

STORESCU = "/usr/bin/storescu"
ORTHANC = "/usr/sbin/Orthanc"
ASSOCIATIONS = (1, 4)
_UID_LENGTH = 44
_STUDY, _SERIES, _INSTANCE = (f"1.2.826.0.1.3680043.8.498.{number}".ljust(_UID_LENGTH, "7") for number in (1, 2, 3))


@dataclass(frozen=True)
class Receiver:
    """A running storage SCP."""

    name: str
    ae_title: str
    port: int
    pid: int
    held: Callable[[], int]


@dataclass(frozen=True)
class Run:
    """One measurement."""

    receiver: str
    associations: int
    instances: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.instances / self.seconds


def main() -> None:
    """Measure and print the tables of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large-mb", type=int, default=500)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        root = Path(folder)
        runs = measure_speed(root, args.instances, args.repeats)
        peaks = measure_memory(root, args.large_mb) if args.large_mb else {}
    print(table(runs))
    for name, peak_mb in peaks.items():
        print(f"\nPeak resident memory of {name} with a {args.large_mb} MB multi-frame object: {peak_mb:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps({"runs": [asdict(run) for run in runs], "peak_mb": peaks}, indent=1))


def measure_speed(root: Path, instances: int, repeats: int) -> list[Run]:
    """Measure the receivers in turns, so that any other load of the machine meets both."""
    template = _image(512, 512)
    runs = []
    with node(root / "node") as ours, orthanc(root / "orthanc") as theirs:
        for repeat in range(repeats + 1):
            for associations in ASSOCIATIONS:
                for receiver in (ours, theirs):
                    folders = _write_fresh(root / "send", template, instances, associations)
                    before = receiver.held()
                    run = Run(receiver.name, associations, instances, _send(receiver, folders))
                    if receiver.held() - before != instances:
                        sys.exit(f"{receiver.name} acknowledged {instances} and holds {receiver.held() - before}")
                    if repeat:  # the first round warms up
                        runs.append(run)
                        print(f"{run.receiver:8} {associations} {run.per_second:6.0f}/s", file=sys.stderr, flush=True)
    return runs


def measure_memory(root: Path, megabytes: int) -> dict[str, float]:
    """Return the peak resident memory of fresh receivers, in MB, after one object of that size."""
    frames = max(1, megabytes * 1_000_000 // (512 * 512 * 2))
    large = _image(512, 512, frames=frames)
    peaks = {}
    for number, start in enumerate((node, orthanc)):
        with start(root / f"large{number}") as receiver:
            folders = _write_fresh(root / "send", large, 1, 1)
            _send(receiver, folders)
            status = Path(f"/proc/{receiver.pid}/status").read_text()
            peaks[receiver.name] = int(status.split("VmHWM:")[1].split()[0]) / 1000
    return peaks


def table(runs: list[Run]) -> str:
    """Return medians with their ranges, and the ratio, in Markdown."""
    lines = ["| associations | node, instances/s | Orthanc, instances/s | node / Orthanc |"]
    lines.append("| --- | --- | --- | --- |")
    for associations in ASSOCIATIONS:
        cells, medians = [], []
        for name in ("node", "Orthanc"):
            rates = sorted(r.per_second for r in runs if r.receiver == name and r.associations == associations)
            medians.append(statistics.median(rates))
            cells.append(f"{medians[-1]:.0f} ({rates[0]:.0f} to {rates[-1]:.0f})")
        lines.append(f"| {associations} | {cells[0]} | {cells[1]} | {medians[0] / medians[1]:.2f} |")
    return "\n".join(lines)


@contextmanager
def node(root: Path) -> Iterator[Receiver]:
    """Run this node's receiver in a process of its own."""
    root.mkdir(parents=True)
    ready, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(root, theirs))
    process.start()
    theirs.close()
    try:
        port = ready.recv()
        assert process.pid is not None
        yield Receiver("node", "DICOMNODE", port, process.pid, lambda: _rows(root))
    finally:
        process.terminate()
        process.join()


@contextmanager
def orthanc(root: Path) -> Iterator[Receiver]:
    """Run Debian's Orthanc, which synchronises its files before it answers."""
    storage = root / "storage"
    storage.mkdir(parents=True)
    port = _free_port()
    settings = {
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "SyncStorageArea": True,
        "DicomPort": port,
        "DicomAet": "ORTHANC",
        "HttpServerEnabled": False,
        "UnknownSopClassAccepted": True,
        "OverwriteInstances": False,
        "Plugins": [],
    }
    (root / "orthanc.json").write_text(json.dumps(settings))
    command = [ORTHANC, str(root / "orthanc.json")]
    environment = os.environ | {"TCP_NODELAY": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_port(port, process)
        yield Receiver("Orthanc", "ORTHANC", port, process.pid, lambda: _stored_files(storage))
    finally:
        process.terminate()
        process.wait()


def _serve(root: Path, ready: Connection) -> None:
    from db import engine, migrations
    from dicomnode.config import Config
    from dicomnode.config.node import NodeConfig
    from dicomnode.ingest import scp

    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    config = Config(node=NodeConfig(host="127.0.0.1", port=0, data_dir=root), path=root / "node.toml")
    database = engine.connect(config.database_url)
    migrations.upgrade(database)
    database.dispose()
    server = scp.start(config)
    ready.send(server.port)
    done.wait()
    server.stop()


def _rows(root: Path) -> int:
    from sqlalchemy import func, select

    from db import engine
    from db.models import Instance

    database = engine.connect(f"sqlite:///{root / 'node.sqlite'}")
    with engine.readers(database)() as session:
        count = session.scalar(select(func.count(Instance.id)))
    database.dispose()
    return count or 0


def _stored_files(storage: Path) -> int:
    """Return the number of stored files; Orthanc may keep the JSON of an instance's tags beside it."""
    return sum(1 for path in storage.glob("*/*/*") if _is_part10(path))


def _is_part10(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _send(receiver: Receiver, folders: list[Path]) -> float:
    """Return the seconds until every association has sent its folder; end the program on any status but success."""
    options = ["-aet", "BENCH", "-aec", receiver.ae_title, "-R", "+sd", "+r", "127.0.0.1", str(receiver.port)]
    environment = os.environ | {"TCP_NODELAY": "1"}
    begin = time.perf_counter()
    senders = [
        subprocess.Popen([STORESCU, *options, str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for folder in folders
    ]
    messages = [sender.communicate()[1] for sender in senders]
    seconds = time.perf_counter() - begin
    if any(sender.returncode for sender in senders) or any(message.strip() for message in messages):
        sys.exit(f"storescu to {receiver.name} failed: {messages}")
    return seconds


def _image(rows: int, columns: int, frames: int = 0) -> bytes:
    """Return a Part 10 file of a bright disc in noise, 12 bits in 16, with UIDs that ``_write_fresh`` replaces."""
    ds = Dataset()
    ds.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage if frames else MRImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = _INSTANCE, _STUDY, _SERIES
    ds.PatientName, ds.PatientID, ds.StudyID, ds.StudyDate = "BENCH^SYNTHETIC", "BENCH", "1", "20260101"
    ds.StudyTime, ds.AccessionNumber, ds.Modality, ds.StudyDescription = "120000", "BENCH", "MR", "C-STORE benchmark"
    ds.SeriesNumber, ds.InstanceNumber, ds.ImageType = 1, 1, ["ORIGINAL", "PRIMARY", "M", "SE"]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.RepetitionTime, ds.EchoTime = [0.5, 0.5], 1, 500, 10
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    y, x = np.mgrid[:rows, :columns]
    disc = np.where((x - columns / 2) ** 2 + (y - rows / 2) ** 2 < (0.4 * rows) ** 2, 600, 30)
    frame = (disc + np.random.default_rng(0).integers(0, 32, disc.shape)).astype("<u2").tobytes()
    if frames:
        ds.NumberOfFrames = frames
    ds.PixelData = frame * max(1, frames)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    encoded = BytesIO()
    ds.save_as(encoded, enforce_file_format=True)
    return encoded.getvalue()


def _write_fresh(root: Path, template: bytes, count: int, parts: int) -> list[Path]:
    """Return ``count`` files with new UIDs, one study, one folder and series per association.

    They are overwritten from run to run and not deleted, because a file system may take its time over new files when
    many were just deleted.
    """
    stamp = time.time_ns()
    head, tail = template[:4096], template[4096:]
    folders = [root / f"{count} in {parts}" / f"part{part}" for part in range(parts)]
    for part, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(part, count, parts):
            fresh = head.replace(_STUDY.encode(), _uid(1, stamp, 0)).replace(_SERIES.encode(), _uid(2, stamp, part))
            with (folder / f"{number:06}.dcm").open("wb") as file:
                file.write(fresh.replace(_INSTANCE.encode(), _uid(3, stamp, number)))
                file.write(tail)
    os.sync()  # or the disk would still be writing these while it is asked to make the received ones durable
    return folders


def _uid(kind: int, stamp: int, number: int) -> bytes:
    text = f"1.2.826.0.1.3680043.8.498.{kind}{stamp % 10**11:011}{number:04}"
    return text.ljust(_UID_LENGTH, "1")[:_UID_LENGTH].encode()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit("Orthanc did not start")


if __name__ == "__main__":
    main()
