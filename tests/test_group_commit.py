"""Instances that share a transaction: what fails of one reaches its own sender and stops no other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db.models import Instance
from db.studies import StoredFile
from dicomnode.ingest.group_commit import Ledger
from dicomnode.storage import spool
from tests.peers import wait_for
from tests.rows import make_arrival

pytestmark = pytest.mark.fast


class HeldWriter(spool.Writer):
    """A writer that waits before its file becomes durable."""

    def hold(self, until: threading.Event) -> None:
        self.until, self.began = until, threading.Event()

    def commit(self) -> StoredFile:
        self.began.set()
        self.until.wait()
        return super().commit()


class OddWriter(spool.Writer):
    """A writer that fails in a way that nobody foresaw."""

    failed = False

    def commit(self) -> StoredFile:
        self.failed = True
        raise ValueError("odd")


def test_an_unforeseen_failure_of_one_file_holds_up_no_other_instance(
    tmp_path: Path, sessions: sessionmaker[Session], now: datetime
) -> None:
    spool.prepare(tmp_path)
    ledger, go = Ledger(tmp_path, sessions, lambda: now), threading.Event()
    first, odd, last = HeldWriter(tmp_path), OddWriter(tmp_path), spool.Writer(tmp_path)
    first.hold(go)
    for writer in (first, odd, last):
        writer.write(b"content")
    with ThreadPoolExecutor(3) as threads:
        leading = threads.submit(ledger.register, make_arrival(number=1), first)
        assert first.began.wait(10)
        failing = threads.submit(ledger.register, make_arrival(number=2), odd)
        wait_for(lambda: odd.failed, "the second file fails")
        go.set()
        assert leading.result(10).kind == "new"
        with pytest.raises(ValueError, match="odd"):
            failing.result(10)
        assert threads.submit(ledger.register, make_arrival(number=3), last).result(10).kind == "new"
    with sessions() as session:
        uids = list(session.scalars(select(Instance.sop_instance_uid).order_by(Instance.id)))
    assert uids == ["1.2.1.1.1", "1.2.1.1.3"]
