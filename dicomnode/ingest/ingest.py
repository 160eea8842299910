"""From received bytes to an acknowledged instance: checked, in the spool, in the rows, and only then a success."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, studies
from db.models import Instance, Output, Quarantine
from db.states import QuarantineState
from db.studies import Arrival, InstanceFacts, Registration, Sender, StoredFile
from dicomnode.datasets import headers, sameness
from dicomnode.datasets.encoded import file_meta
from dicomnode.errors import CannotUnderstand, DuplicateConflict, MismatchedClass, NodeError
from dicomnode.monitoring.meters import Meters
from dicomnode.storage import spool
from dicomnode.storage.high_water import HighWater

if TYPE_CHECKING:
    from dicomnode.config.spool import SpoolConfig

__all__ = ["Announced", "Ledger", "Reception", "receive_instance"]

SUCCESS = 0x0000

_log = logging.getLogger(__name__)
_LARGE = 8 << 20
_MOST_NAMED = 10


@dataclass(frozen=True)
class Announced:
    """What the C-STORE request said about the data set that follows."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_uid: str = ""
    """The study that alone it may belong to, where the request names one (STOW-RS)."""


class _Entry:
    """One instance on its way into the rows, and what its thread and the one that writes the rows tell each other."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.durable, self.woken = threading.Event(), threading.Event()
        self.leads = False
        self.answer: Registration | None = None
        self.error: Exception | None = None

    def make_durable(self, writer: spool.Writer) -> None:
        """Commit the file; a failure is for the thread that waits for it."""
        try:
            writer.commit()
        except (OSError, NodeError) as exc:
            self.error = exc
        self.durable.set()


class Ledger:
    """Rows for received instances.

    Those that wait while a transaction commits share the next one. The rows are written while the disk writes the
    files, and committed when every file of theirs is durable.
    """

    def __init__(
        self, root: Path, sessions: sessionmaker[Session], now: Callable[[], datetime], meters: Meters | None = None
    ) -> None:
        self.root, self.sessions, self.now = root, sessions, now
        self.meters = meters or Meters()
        self._high_water = HighWater(root)
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._busy = False

    def register(self, arrival: Arrival, writer: spool.Writer) -> Registration:
        """Returns when the file is durable and the commit that holds its row and its event is done."""
        entry = _Entry(arrival)
        if writer.size_bytes > _LARGE:  # nobody else's rows wait for this one
            entry.make_durable(writer)
        with self._lock:
            self._waiting.append(entry)
            entry.leads = not self._busy
            self._busy = True
        if not entry.leads:
            if not entry.durable.is_set():
                entry.make_durable(writer)
            entry.woken.wait()
        if entry.leads:
            self._commit_waiting(entry, writer)
        if entry.error is not None:
            raise entry.error
        assert entry.answer is not None
        return entry.answer

    def _commit_waiting(self, leader: _Entry, writer: spool.Writer) -> None:
        """One transaction for all that wait; then the next of those that came meanwhile takes the lead."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            self._commit(batch, leader, writer)
        finally:
            with self._lock:
                self._busy = bool(self._waiting)
                if self._busy:
                    self._waiting[0].leads = True
                    self._waiting[0].woken.set()
            for entry in batch:
                entry.woken.set()

    def _commit(self, batch: list[_Entry], leader: _Entry, writer: spool.Writer) -> None:
        try:
            with self.sessions.begin() as session:
                arrivals = [entry.arrival for entry in batch]
                answers = studies.register_instances(session, arrivals, now=self.now())
                if not leader.durable.is_set():
                    leader.make_durable(writer)
                for entry in batch:
                    entry.durable.wait()
                    if entry.error is not None:
                        raise entry.error
        except Exception as exc:
            if len(batch) == 1:
                batch[0].error = batch[0].error or exc
                return
            for entry in batch:  # what fails one instance must not cost the others their rows
                if entry.error is None:
                    self._commit([entry], leader, writer)
        else:
            if (head := audit.newest_written(session)) is not None:
                self._high_water.raise_to(*head)
            for entry, answer in zip(batch, answers, strict=True):
                entry.answer = answer


class _UnderWay:
    """The contents that are on their way into the rows at this moment, by their digests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Counter[str] = Counter()

    @contextmanager
    def of(self, sha256: str) -> Iterator[None]:
        """While inside, nobody else removes the file of that content."""
        with self._lock:
            self._found[sha256] += 1
        try:
            yield
        finally:
            with self._lock:
                self._found -= Counter((sha256,))

    @contextmanager
    def nobody_with(self, sha256: str) -> Iterator[bool]:
        """Whether nobody brings that content; while inside, nobody begins to."""
        with self._lock:
            yield not self._found[sha256]


_under_way = _UnderWay()


def receive_instance(
    ledger: Ledger, writer: spool.Writer, data_set_at: int, announced: Announced, sender: Sender
) -> Registration:
    """Take in the Part 10 file that ``writer`` holds; when this returns, its bytes and its row are durable.

    Raises RefusedObject: CannotUnderstand or MismatchedClass, after which nothing of it is kept, or
    DuplicateConflict, after which it is in quarantine; NodeBusy where it cannot be compared with the one that is held,
    after which nothing of it is kept either.
    """
    facts = headers.read_between(writer, data_set_at, writer.size_bytes, announced.transfer_syntax_uid)
    _check_announced(facts, announced)
    arrival = Arrival(facts, writer.finish(), sender)
    is_conflict = False
    try:
        with _under_way.of(arrival.file.sha256):
            registration = ledger.register(arrival, writer)
            is_conflict = registration.kind == "conflict"
            if is_conflict:
                registration = _settle_conflict(ledger, arrival, registration)
    finally:
        if is_conflict:
            _remove_unless_referred_to(ledger, arrival.file)
    _tell_what_is_not_indexed(facts, registration)
    return registration


def _tell_what_is_not_indexed(facts: InstanceFacts, registration: Registration) -> None:
    """Name the attributes that are in the file only, so that searches and routes do not see them."""
    if registration.kind == "new" and (tags := headers.not_indexed(facts)):
        more = f" and {len(tags) - _MOST_NAMED} more" if len(tags) > _MOST_NAMED else ""
        named = ", ".join(tags[:_MOST_NAMED])
        _log.warning("instance %d is stored; not indexed for their values: %s%s", registration.instance_id, named, more)


class Reception:
    """One C-STORE's data set on its way in. A failure is remembered, the rest of the data is let pass."""

    def __init__(self, ledger: Ledger, limits: SpoolConfig, announced: Announced, sender: Sender) -> None:
        self._ledger, self._announced, self._sender = ledger, announced, sender
        self._writer: spool.Writer | None = None
        self._failure: NodeError | OSError | None = None
        meta = _file_meta(announced, sender)
        self._data_set_at = len(meta)
        try:
            spool.check_space(ledger.root, limits)
            self._writer = spool.open_writer(ledger.root)
        except (NodeError, OSError) as exc:
            self._fail(exc)
        self.write(meta)

    def write(self, piece: bytes | memoryview) -> None:
        """A piece of the data set, as it came."""
        if self._writer is not None:
            try:
                self._writer.write(piece)
            except (NodeError, OSError) as exc:
                self._fail(exc)

    def finish(self) -> tuple[int, str]:
        """The status to answer with, and a comment for a status that is no success."""
        try:
            if self._failure is not None:
                raise self._failure
            assert self._writer is not None
            size_bytes = self._writer.size_bytes
            done = receive_instance(self._ledger, self._writer, self._data_set_at, self._announced, self._sender)
            self._ledger.meters.count_received("new" if done.kind == "new" else "duplicate", size_bytes)
        except NodeError as exc:
            self._ledger.meters.count_refused(exc)
            _log.warning("an instance from %s was refused: %s", self._sender.address, exc)
            return exc.dicom_status, str(exc)
        except Exception as exc:  # the wire must be answered whatever broke; never with a success
            self._ledger.meters.count_refused(exc)
            _log.error("an instance from %s could not be kept: %s", self._sender.address, type(exc).__name__)
            return NodeError.dicom_status, "the node could not keep the instance; send it again"
        finally:
            self.discard()
        return SUCCESS, ""

    def discard(self) -> None:
        """Leave nothing behind, unless it was committed."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _fail(self, exc: NodeError | OSError) -> None:
        self._failure = exc
        self.discard()


def _file_meta(announced: Announced, sender: Sender) -> bytes:
    return file_meta(
        sop_class_uid=announced.sop_class_uid,
        sop_instance_uid=announced.sop_instance_uid,
        transfer_syntax_uid=announced.transfer_syntax_uid,
        source_ae_title=sender.ae_title,
    )


def _check_announced(facts: InstanceFacts, announced: Announced) -> None:
    if facts.sop_class_uid != announced.sop_class_uid:  # PS3.4 B.2.3: A9xx
        raise MismatchedClass(f"the data set's SOPClassUID is {facts.sop_class_uid}, not the one that was announced")
    if facts.sop_instance_uid != announced.sop_instance_uid:
        raise CannotUnderstand("the data set's SOPInstanceUID is not the one that was announced")
    if announced.study_uid not in ("", facts.study_uid):
        raise MismatchedClass("the data set is of another study than the request")


def _settle_conflict(ledger: Ledger, arrival: Arrival, registration: Registration) -> Registration:
    """The files differ; it is the same object if they do so in encoding only, and in what we wrote before it."""
    with ledger.sessions() as session:
        known = session.get_one(Instance, registration.instance_id)
        first, is_held = ledger.root / known.relative_path, known.expired_at is None
    if is_held and sameness.is_same(first, spool.path(ledger.root, arrival.file)):
        return Registration("duplicate", registration.instance_id)
    reason = f"instance {registration.instance_id} has the same SOP Instance UID and other content"
    _quarantine(ledger, arrival, reason)
    raise DuplicateConflict(f"{reason}; this one is in quarantine")


def _quarantine(ledger: Ledger, arrival: Arrival, reason: str) -> None:
    kept = select(Quarantine.id).where(
        Quarantine.sop_instance_uid == arrival.facts.sop_instance_uid,
        Quarantine.sha256 == arrival.file.sha256,
        Quarantine.state == QuarantineState.KEPT,
    )
    with ledger.sessions.begin() as session:
        if session.scalar(kept) is None:
            studies.quarantine(
                session, file=arrival.file, reason=reason, facts=arrival.facts, sender=arrival.sender, now=ledger.now()
            )


def _remove_unless_referred_to(ledger: Ledger, file: StoredFile) -> None:
    with _under_way.nobody_with(file.sha256) as is_free, ledger.sessions.begin() as session:
        referring = [
            session.scalar(select(table.id).where(table.sha256 == file.sha256).limit(1))
            for table in (Instance, Output, Quarantine)
        ]
        if is_free and not any(referring):
            spool.path(ledger.root, file).unlink(missing_ok=True)
