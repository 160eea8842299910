"""Reception of an instance: its bytes are checked, spooled and entered in the rows, and only then acknowledged."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from db import quarantine, studies
from db.models import Instance, Output, Quarantine
from db.states import QuarantineState
from db.studies import Arrival, InstanceFacts, Registration, Sender, StoredFile
from dicomnode.datasets import headers, sameness
from dicomnode.datasets.encoding import encode_file_meta
from dicomnode.errors import CannotUnderstand, DuplicateConflict, MismatchedClass, NodeError
from dicomnode.ingest.group_commit import Ledger
from dicomnode.storage import spool

if TYPE_CHECKING:
    from dicomnode.config.spool import SpoolConfig

__all__ = ["InstanceSink", "StoreAnnouncement", "receive_instance"]

SUCCESS = 0x0000

_log = logging.getLogger(__name__)
_MOST_LISTED_TAGS = 10


@dataclass(frozen=True)
class StoreAnnouncement:
    """Identity of the data set that follows, as the C-STORE or STOW-RS request announces it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_uid: str = ""
    """The only study that the data set may belong to, where the request names one (STOW-RS)."""


_SENT_AGAIN = (
    "an instance was sent that is here already, which starts no work; 'dicomnode studies route' offers a study to the "
    "routes again"
)


class _ContentsInProgress:
    """Digests of the contents that are on their way into the rows at this moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def register(self, sha256: str) -> Iterator[None]:
        """Keep other threads from removing the file of that content while the context is open."""
        with self._lock:
            self._counts[sha256] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts -= Counter((sha256,))

    @contextmanager
    def exclude(self, sha256: str) -> Iterator[bool]:
        """Yield whether no thread is receiving that content; none begins to while the context is open."""
        with self._lock:
            yield not self._counts[sha256]


_contents_in_progress = _ContentsInProgress()


def receive_instance(
    ledger: Ledger, writer: spool.Writer, data_set_at: int, announcement: StoreAnnouncement, sender: Sender
) -> Registration:
    """Receive the Part 10 file that ``writer`` holds; on return, its bytes and its row are durable.

    ``data_set_at``: offset of the data set behind the file meta information, in bytes.

    Raises CannotUnderstand or MismatchedClass, and NodeBusy where the instance cannot be compared with the stored one:
    nothing of the instance is then kept. Raises DuplicateConflict after the instance was put in quarantine.
    """
    facts = headers.read_between(writer, data_set_at, writer.size_bytes, announcement.transfer_syntax_uid)
    _check_announcement(facts, announcement)
    arrival = Arrival(facts, writer.finish(), sender)
    is_conflict = False
    try:
        with _contents_in_progress.register(arrival.file.sha256):
            registration = ledger.register(arrival, writer)
            is_conflict = registration.kind == "conflict"
            if is_conflict:
                registration = _resolve_conflict(ledger, arrival, registration)
    finally:
        if is_conflict:
            _remove_unreferenced_file(ledger, arrival.file)
    _warn_of_unindexed_attributes(facts, registration)
    return registration


def _warn_of_unindexed_attributes(facts: InstanceFacts, registration: Registration) -> None:
    """Log the attributes that are in the file only, so that searches and routes do not see them."""
    if registration.kind == "new" and (tags := headers.list_unindexed(facts)):
        more = f" and {len(tags) - _MOST_LISTED_TAGS} more" if len(tags) > _MOST_LISTED_TAGS else ""
        listed = ", ".join(tags[:_MOST_LISTED_TAGS]) + more
        _log.warning("instance %d is stored; not indexed for their values: %s", registration.instance_id, listed)


class InstanceSink:
    """Sink that receives the data set of one C-STORE; after a failure, the rest of the data is read and dropped."""

    def __init__(self, ledger: Ledger, limits: SpoolConfig, announcement: StoreAnnouncement, sender: Sender) -> None:
        self._ledger, self._announcement, self._sender = ledger, announcement, sender
        self._writer: spool.Writer | None = None
        self._failure: NodeError | OSError | None = None
        meta = _file_meta(announcement, sender)
        self._data_set_at = len(meta)
        try:
            spool.check_space(ledger.root, limits)
            self._writer = spool.open_writer(ledger.root)
        except (NodeError, OSError) as exc:
            self._fail(exc)
        self.write(meta)

    def write(self, piece: bytes | memoryview) -> None:
        """Write the next piece of the encoded data set."""
        if self._writer is not None:
            try:
                self._writer.write(piece)
            except (NodeError, OSError) as exc:
                self._fail(exc)

    def finish(self) -> tuple[int, str]:
        """Store the instance; return the DIMSE status and, for a failure, an error comment."""
        try:
            if self._failure is not None:
                raise self._failure
            assert self._writer is not None
            size_bytes = self._writer.size_bytes
            result = receive_instance(self._ledger, self._writer, self._data_set_at, self._announcement, self._sender)
            self._ledger.meters.count_received("new" if result.kind == "new" else "duplicate", size_bytes)
            if result.kind == "duplicate":
                self._ledger.repeat_log.write(self._sender.address, _SENT_AGAIN, logging.INFO)
        except NodeError as exc:
            self._ledger.meters.count_refused(exc)
            _log.warning("an instance from %s was refused: %s", _describe_sender(self._sender), exc)
            return exc.dicom_status, str(exc)
        except Exception as exc:  # the sender must get an answer whatever broke, and never a success
            self._ledger.meters.count_refused(exc)
            _log.error("an instance from %s could not be kept: %s", _describe_sender(self._sender), type(exc).__name__)
            return NodeError.dicom_status, "the node could not keep the instance; send it again"
        finally:
            self.discard()
        return SUCCESS, ""

    def discard(self) -> None:
        """Remove the file unless it was committed."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _fail(self, exc: NodeError | OSError) -> None:
        self._failure = exc
        self.discard()


def _describe_sender(sender: Sender) -> str:
    return f"{sender.address} ({sender.ae_title})" if sender.ae_title else sender.address


def _file_meta(announcement: StoreAnnouncement, sender: Sender) -> bytes:
    return encode_file_meta(
        sop_class_uid=announcement.sop_class_uid,
        sop_instance_uid=announcement.sop_instance_uid,
        transfer_syntax_uid=announcement.transfer_syntax_uid,
        source_ae_title=sender.ae_title,
    )


def _check_announcement(facts: InstanceFacts, announcement: StoreAnnouncement) -> None:
    if facts.sop_class_uid != announcement.sop_class_uid:  # PS3.4 B.2.3: A9xx
        raise MismatchedClass(f"the data set's SOPClassUID is {facts.sop_class_uid}, not the one that was announced")
    if facts.sop_instance_uid != announcement.sop_instance_uid:
        raise CannotUnderstand("the data set's SOPInstanceUID is not the one that was announced")
    if announcement.study_uid not in ("", facts.study_uid):
        raise MismatchedClass("the data set is of another study than the request")


def _resolve_conflict(ledger: Ledger, arrival: Arrival, registration: Registration) -> Registration:
    """Return the registration of a duplicate where the files differ in encoding and file meta information only.

    Raises DuplicateConflict after the instance was put in quarantine, where their contents differ.
    """
    with ledger.sessions() as session:
        stored = session.get_one(Instance, registration.instance_id)
        stored_path, is_held = ledger.root / stored.relative_path, stored.expired_at is None
        reason = quarantine.describe_conflict(session, stored.id)
    if is_held and sameness.is_same(stored_path, spool.path(ledger.root, arrival.file)):
        return Registration("duplicate", registration.instance_id)
    _quarantine(ledger, arrival, reason)
    raise DuplicateConflict(f"{reason}; this one is in quarantine")


def _quarantine(ledger: Ledger, arrival: Arrival, reason: str) -> None:
    in_quarantine = select(Quarantine.id).where(
        Quarantine.sop_instance_uid == arrival.facts.sop_instance_uid,
        Quarantine.sha256 == arrival.file.sha256,
        Quarantine.state == QuarantineState.KEPT,
    )
    with ledger.sessions.begin() as session:
        if session.scalar(in_quarantine) is None:
            studies.quarantine(
                session, file=arrival.file, reason=reason, facts=arrival.facts, sender=arrival.sender, now=ledger.now()
            )


def _remove_unreferenced_file(ledger: Ledger, file: StoredFile) -> None:
    with _contents_in_progress.exclude(file.sha256) as is_free, ledger.sessions.begin() as session:
        references = [
            session.scalar(select(table.id).where(table.sha256 == file.sha256).limit(1))
            for table in (Instance, Output, Quarantine)
        ]
        if is_free and not any(references):
            spool.path(ledger.root, file).unlink(missing_ok=True)
