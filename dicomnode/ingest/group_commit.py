"""Group commit of rows: instances that arrive while one transaction commits share the next one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from db import audit, studies
from db.studies import Arrival, Registration
from dicomnode.ingest.limits import ThrottledLog
from dicomnode.monitoring.meters import Meters
from dicomnode.storage import spool
from dicomnode.storage.high_water import HighWater

__all__ = ["Ledger"]

_log = logging.getLogger("dicomnode.ingest.ingest")

_LARGE_BYTES = 8 << 20


class _Entry:
    """One instance on its way into the rows, shared by its own thread and the thread that writes the rows."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.durable, self.woken = threading.Event(), threading.Event()
        self.leads = False
        self.registration: Registration | None = None
        self.error: Exception | None = None

    def make_durable(self, writer: spool.Writer) -> None:
        """Commit the file; keep a failure, whatever it is, for the thread that waits for it."""
        try:
            writer.commit()
        except Exception as exc:
            self.error = exc
        finally:
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
        self.meters, self.repeat_log = meters or Meters(), ThrottledLog(_log)
        self._high_water = HighWater(root)
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._busy = False

    def register(self, arrival: Arrival, writer: spool.Writer) -> Registration:
        """Return when the file is durable and the commit that holds its row and its event is done."""
        entry = _Entry(arrival)
        if writer.size_bytes > _LARGE_BYTES:  # the rows of other instances do not wait for this one
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
        assert entry.registration is not None
        return entry.registration

    def _commit_waiting(self, leader: _Entry, writer: spool.Writer) -> None:
        """Commit all waiting entries in one transaction, then give the lead to the first that arrived meanwhile."""
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
                registrations = studies.register_instances(session, arrivals, now=self.now())
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
            for entry in batch:  # a failure of one instance must not cost the others their rows
                if entry.error is None:
                    self._commit([entry], leader, writer)
        else:
            if (head := audit.newest_written(session)) is not None:
                self._high_water.raise_to(*head)
            for entry, registration in zip(batch, registrations, strict=True):
                entry.registration = registration
                _log_opened_study(registration, entry.arrival)


def _log_opened_study(registration: Registration, arrival: Arrival) -> None:
    if registration.opened_study_id is not None:
        caller = f"{arrival.sender.ae_title} at {arrival.sender.address}"
        _log.info("study %d: receiving from %s", registration.opened_study_id, caller)
