"""Part 10 files of this machine, received by the way that C-STORE and STOW-RS take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from db.studies import Sender
from dicomnode.config.spool import SpoolConfig
from dicomnode.datasets import headers
from dicomnode.datasets.encoding import OpenFile, read_file_meta
from dicomnode.errors import RefusedObject
from dicomnode.ingest.group_commit import Ledger
from dicomnode.ingest.ingest import InstanceSink, StoreAnnouncement
from dicomnode.storage import spool

__all__ = ["receive_files"]

_PIECE = 1 << 20


def receive_files(ledger: Ledger, limits: SpoolConfig, paths: Iterable[Path], sender: Sender) -> set[str]:
    """Receive the files of a series, all or none where the disk is full; return the UIDs of their studies.

    Raises OutOfSpace, and RefusedObject for the first that is refused.
    """
    files = list(paths)
    spool.check_space(ledger.root, limits, coming_bytes=sum(path.stat().st_size for path in files))
    return {_receive(ledger, limits, path, sender) for path in files}


def _receive(ledger: Ledger, limits: SpoolConfig, path: Path, sender: Sender) -> str:
    facts = headers.read(path)
    announced = StoreAnnouncement(facts.sop_class_uid, facts.sop_instance_uid, facts.transfer_syntax_uid)
    sink = InstanceSink(ledger, limits, announced, sender)
    try:
        with path.open("rb") as file:
            _, start = read_file_meta(OpenFile(file.fileno()), path.stat().st_size)
            file.seek(start)
            while piece := file.read(_PIECE):
                sink.write(piece)
        status, comment = sink.finish()
    finally:
        sink.discard()
    if status:
        raise RefusedObject(f"{comment} (status {status:04X})")
    return facts.study_uid
