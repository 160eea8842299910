"""Storage commitment as SCP: only what is kept is committed, and no report is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RQ
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from sqlalchemy import event, update
from sqlalchemy.orm import Session, sessionmaker

from db import commitments
from db import engine as engines
from db.models import CommitmentRequest, Event, Instance, Study
from db.states import ReportState
from db.studies import Sender
from dicomnode.commitment import information, judging, reporting
from dicomnode.config import Config, Peer
from dicomnode.config.retention import RetentionConfig
from dicomnode.config.senders import SenderConfig
from dicomnode.dimse.associations import association
from dicomnode.errors import NotAllowed, PeerRefused
from dicomnode.ingest import quarantined
from dicomnode.storage import spool
from tests.peers import Orthanc, wait_for, write_instance
from tests.raw_associations import RawAssociation
from tests.receivers import Receiver, Start, make_instances, receiver, start
from tests.sending import Encoded, read_encoded, store_all

__all__ = ["receiver", "start"]

MODEL, INSTANCE = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
TRANSACTION = "1.2.826.0.1.3680043.8.498.4711"


class Reports:
    """Reports that a requester received, and its answers to them; ``arrived``: one was answered."""

    def __init__(self, answers: Sequence[int] = ()) -> None:
        self.received: list[tuple[int, Dataset]] = []
        self._answers = iter(answers)
        self.arrived = threading.Event()

    def handle(self, event: evt.Event) -> tuple[int, None]:
        self.received.append((event.event_type, event.event_information))
        return next(self._answers, 0x0000), None

    def note_answer(self, event: evt.Event) -> None:
        """Note that an answer is on its way: pynetdicom cannot send one while it releases the association."""
        if self.received and isinstance(event.pdu, P_DATA_TF):
            self.arrived.set()

    @property
    def last(self) -> Dataset:
        return self.received[-1][1]

    @property
    def committed(self) -> set[str]:
        return {item.ReferencedSOPInstanceUID for item in self.last.get("ReferencedSOPSequence", [])}

    @property
    def failed(self) -> dict[str, int]:
        items = self.last.get("FailedSOPSequence", [])
        return {item.ReferencedSOPInstanceUID: item.FailureReason for item in items}


@contextmanager
def requester(receiver: Receiver, reports: Reports | None = None, *, ae_title: str = "SENDER") -> Iterator[Association]:
    peer = Peer(name="node", ae_title="DICOMNODE", port=receiver.port)
    handlers: list[Any] = []
    if reports is not None:
        handlers = [(evt.EVT_N_EVENT_REPORT, reports.handle), (evt.EVT_PDU_SENT, reports.note_answer)]
    contexts = [build_context(MODEL)]
    with association(peer, contexts, calling_aet=ae_title, timeout_s=30, handlers=handlers) as assoc:
        yield assoc


def ask(assoc: Association, references: Sequence[tuple[str, str]], transaction: str = TRANSACTION) -> int:
    """Request commitment; return the status of the answer."""
    ds = information.make_call(information.Call(transaction, tuple(references)))
    answer, _ = assoc.send_n_action(ds, 1, MODEL, INSTANCE)
    return int(answer.Status)


def ask_and_hang_up(receiver: Receiver, objects: Sequence[Encoded]) -> None:
    """Request commitment, and close the connection without an answer to the report."""
    request = N_ACTION()
    request.MessageID, request.ActionTypeID = 1, information.REQUEST_COMMITMENT
    request.RequestedSOPClassUID, request.RequestedSOPInstanceUID = MODEL, INSTANCE
    call = information.Call(TRANSACTION, tuple(refer(each) for each in objects))
    request.ActionInformation = information.encode(information.make_call(call), ImplicitVRLittleEndian)
    message = N_ACTION_RQ()
    message.primitive_to_message(request)
    with RawAssociation.open(receiver.port, Encoded(MODEL, "", ImplicitVRLittleEndian, b"")) as assoc:
        for values in message.encode_msg(assoc.context_id, 16384):
            assoc.send(P_DATA_TF(values).encode())
        assert assoc.read_response().Status == 0x0000
        assoc.socket.close()
    assert "ended without an answer" in wait_until(receiver, ReportState.WAITING).reason


def refer(each: Encoded) -> tuple[str, str]:
    return each.sop_class_uid, each.sop_instance_uid


def request_row(receiver: Receiver) -> CommitmentRequest:
    (row,) = receiver.rows(CommitmentRequest)
    assert isinstance(row, CommitmentRequest)
    return row


def wait_until(receiver: Receiver, state: ReportState) -> CommitmentRequest:
    def find_row() -> CommitmentRequest | None:
        return next((row for row in receiver.rows(CommitmentRequest) if row.state is state), None)

    row = wait_for(find_row, f"a report is {state}")
    assert row is not None
    return row


def sessions_of(receiver: Receiver) -> sessionmaker[Session]:
    return engines.sessions(receiver.engine)


@contextmanager
def listening(reports: Reports, *, ae_title: str = "SCANNER", accept_role: bool = True) -> Iterator[Peer]:
    """Run a requester that takes reports over associations that the node opens."""
    ae = AE(ae_title)
    ae.add_supported_context(MODEL, scu_role=accept_role, scp_role=accept_role)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.handle)])
    yield Peer(name="scanner", ae_title=ae_title, port=server.socket.getsockname()[1])
    server.shutdown()


def report_due(receiver: Receiver, *peers: Peer, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> int:
    config: Config = receiver.config.model_copy(update={"peers": peers})
    return reporting.report_due(sessions_of(receiver), config, now=now)


@pytest.fixture
def two(receiver: Receiver, tmp_path: Path) -> list[Encoded]:
    """Send two MR images to the receiver."""
    objects = make_instances(tmp_path / "in", 2)
    assert [answer.Status for answer in store_all(receiver.port, objects, tmp_path / "sent")] == [0, 0]
    return objects


def test_stored_instances_are_committed_over_the_same_association(receiver: Receiver, two: list[Encoded]) -> None:
    reports = Reports()
    with requester(receiver, reports) as assoc:
        assert ask(assoc, [refer(each) for each in two]) == 0x0000
        assert reports.arrived.wait(30)
        row = wait_until(receiver, ReportState.SENT)
    assert reports.received[0][0] == information.ALL_COMMITTED
    assert reports.last.TransactionUID == TRANSACTION
    assert reports.last.RetrieveAETitle == "DICOMNODE"
    assert reports.committed == {each.sop_instance_uid for each in two}
    assert (row.ae_title, row.address, reports.failed) == ("SENDER", "127.0.0.1", {})
    events = [each.event for each in receiver.rows(Event) if each.subject == "commitment_requests"]
    assert events == ["requested", "moved", "moved"]


def test_each_instance_that_is_not_kept_has_its_reason(receiver: Receiver, two: list[Encoded]) -> None:
    kept, damaged = two
    rows = {row.sop_instance_uid: row for row in receiver.rows()}
    (receiver.config.spool_dir / rows[damaged.sop_instance_uid].relative_path).write_bytes(b"cut short")
    reports = Reports()
    with requester(receiver, reports) as assoc:
        references = [refer(kept), refer(damaged), (MR, "1.2.3.4")]
        assert ask(assoc, references) == 0x0000
        assert reports.arrived.wait(30)
    assert reports.received[0][0] == information.SOME_FAILED
    assert reports.committed == {kept.sop_instance_uid}
    assert reports.failed == {damaged.sop_instance_uid: 0x0110, "1.2.3.4": 0x0112}


def test_another_sop_class_is_a_conflict(receiver: Receiver, two: list[Encoded]) -> None:
    reports = Reports()
    with requester(receiver, reports) as assoc:
        assert ask(assoc, [(CT, two[0].sop_instance_uid)]) == 0x0000
        assert reports.arrived.wait(30)
    assert reports.failed == {two[0].sop_instance_uid: 0x0119}


def test_an_instance_whose_other_content_is_in_quarantine_is_not_committed(
    receiver: Receiver, two: list[Encoded], tmp_path: Path
) -> None:
    write_instance(tmp_path / "other.dcm", SOPInstanceUID=two[0].sop_instance_uid, SeriesDescription="other")
    other = read_encoded(tmp_path / "other.dcm").with_changes(sop_instance_uid=two[0].sop_instance_uid)
    (answer,) = store_all(receiver.port, [other], tmp_path / "again", ae_title="OTHER")
    assert answer.Status == 0xC111
    reports = Reports()
    with requester(receiver, reports, ae_title="OTHER") as assoc:
        assert ask(assoc, [refer(each) for each in two]) == 0x0000
        assert reports.arrived.wait(30)
    assert reports.failed == {two[0].sop_instance_uid: 0x0110}


@pytest.mark.parametrize(("ae_title", "address"), [("OTHER", "10.0.0.9"), ("ASKS_BY_IT", "127.0.0.1")])
def test_discarded_content_is_not_committed_to_its_sender_under_whatever_title(
    receiver: Receiver, two: list[Encoded], tmp_path: Path, ae_title: str, address: str
) -> None:
    write_instance(tmp_path / "other.dcm", SOPInstanceUID=two[0].sop_instance_uid, SeriesDescription="other")
    other = read_encoded(tmp_path / "other.dcm").with_changes(sop_instance_uid=two[0].sop_instance_uid)
    store_all(receiver.port, [other], tmp_path / "again", ae_title="OTHER")
    with sessions_of(receiver).begin() as session:
        quarantined.discard(session, receiver.config, 1, reason="the old one is right", now=datetime.now(UTC))
    uid = two[0].sop_instance_uid
    with sessions_of(receiver)() as session:
        assert commitments.find_quarantined(session, [uid], Sender(ae_title, address)) == {uid}
        assert commitments.find_quarantined(session, [uid], Sender("SENDER", "10.0.0.1")) == set()


@pytest.mark.parametrize(
    ("sender", "address", "is_blocked"),
    [("OTHER", "127.0.0.1", False), ("THIRD", "127.0.0.1", True), ("OTHER", "10.0.0.7", True)],
)
def test_discarded_content_blocks_no_commitment_of_what_its_sender_sent_after_it(
    receiver: Receiver, tmp_path: Path, sender: str, address: str, is_blocked: bool
) -> None:
    """A scanner corrects an object, and a person takes the correction in place of the old content."""
    uid = "1.2.3.4"
    for name, ae_title in (("old", "OTHER"), ("new", sender)):
        write_instance(tmp_path / f"{name}.dcm", SOPInstanceUID=uid, SeriesDescription=name)
        store_all(receiver.port, [read_encoded(tmp_path / f"{name}.dcm")], tmp_path / name, ae_title=ae_title)
    config, now = receiver.config, datetime.now(UTC)
    with sessions_of(receiver).begin() as session:
        quarantined.release(session, config, 1, reason="it is right", now=now)
        session.execute(update(Instance).values(sender_address=address))
    asking = Sender("OTHER", "10.0.0.9")
    with sessions_of(receiver)() as session:
        assert commitments.find_quarantined(session, [uid], asking) == {uid}, "the old content is undecided"
    with sessions_of(receiver).begin() as session:
        quarantined.discard(session, config, 2, reason="it was wrong", now=now)
    with sessions_of(receiver)() as session:
        assert commitments.find_quarantined(session, [uid], asking) == ({uid} if is_blocked else set())


def test_a_large_request_is_committed_in_parts_and_no_file_is_looked_at_in_a_transaction(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = make_instances(tmp_path / "in", 5)
    store_all(receiver.port, objects, tmp_path / "sent")
    sessions, sender = sessions_of(receiver), Sender("SENDER", "127.0.0.1")
    find, seen = spool.path, list[str]()

    def look(root: Path, sha256: str) -> Path:
        with sessions.begin() as session:  # on SQLite this waits for ever while another one writes
            seen.append(sha256)
            session.execute(update(Study).values(last_received_at=datetime.now(UTC)))
        return find(root, sha256)

    monkeypatch.setattr(spool, "path", look)
    references = [*map(refer, objects), (MR, "1.2.3.4")]
    verdicts = judging.commit_instances(
        sessions, receiver.config.spool_dir, references, sender, now=lambda: datetime.now(UTC), at_once=2
    )
    assert [each.failure_reason for each in verdicts] == [0, 0, 0, 0, 0, 0x0112]
    assert len(seen) == 5
    assert all(row.committed_at for row in receiver.rows())


def test_what_expires_between_the_look_at_its_file_and_the_mark_is_not_committed(
    receiver: Receiver, two: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, find = sessions_of(receiver), spool.path

    def expire(root: Path, sha256: str) -> Path:
        with sessions.begin() as session:
            expired = update(Instance).where(Instance.sop_instance_uid == two[0].sop_instance_uid)
            session.execute(expired.values(expired_at=datetime.now(UTC)))
        return find(root, sha256)

    monkeypatch.setattr(spool, "path", expire)
    reports = Reports()
    with requester(receiver, reports) as assoc:
        assert ask(assoc, [refer(each) for each in two]) == 0x0000
        assert reports.arrived.wait(30)
    assert reports.failed == {two[0].sop_instance_uid: 0x0112}


def test_studies_are_locked_in_one_order_whatever_the_order_of_the_request(receiver: Receiver, tmp_path: Path) -> None:
    """Two requests that lock the same studies in different orders end each other on PostgreSQL."""
    uids = list[str]()
    for number in (3, 1, 2):  # the numbers of the studies run against the order of the UIDs
        write_instance(tmp_path / f"{number}.dcm", study_uid=f"1.2.{number}", SOPInstanceUID=f"1.2.{number}.9")
        each = read_encoded(tmp_path / f"{number}.dcm")
        store_all(receiver.port, [each], tmp_path / f"sent{number}")
        uids.append(each.sop_instance_uid)
    locked = list[int]()

    def note(_conn: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "ORDER BY studies.id" in statement:
            locked.extend(parameters.values() if isinstance(parameters, dict) else parameters)

    event.listen(receiver.engine, "before_cursor_execute", note)
    with sessions_of(receiver).begin() as session:
        commitments.lock_studies(session, uids, at_once=1)
    assert locked == sorted(row.id for row in receiver.rows(Study))


def test_committed_content_that_another_file_replaced_is_not_discarded(
    receiver: Receiver, two: list[Encoded], tmp_path: Path
) -> None:
    """The scanner has deleted it: only the quarantine still has it."""
    reports = Reports()
    with requester(receiver, reports) as assoc:
        assert ask(assoc, [refer(each) for each in two]) == 0x0000
        assert reports.arrived.wait(30)
    wait_until(receiver, ReportState.SENT)
    write_instance(tmp_path / "other.dcm", SOPInstanceUID=two[0].sop_instance_uid, SeriesDescription="other")
    other = read_encoded(tmp_path / "other.dcm").with_changes(sop_instance_uid=two[0].sop_instance_uid)
    (answer,) = store_all(receiver.port, [other], tmp_path / "again", ae_title="OTHER")
    assert answer.Status == 0xC111
    config, now = receiver.config, datetime.now(UTC)
    with sessions_of(receiver).begin() as session:
        quarantined.release(session, config, 1, reason="it is right", now=now)
    with sessions_of(receiver).begin() as session, pytest.raises(NotAllowed, match="was committed to its sender"):
        quarantined.discard(session, config, 2, reason="the old one", now=now)
    allowed = config.model_copy(update={"retention": RetentionConfig(delete_committed=True)})
    with sessions_of(receiver).begin() as session:
        quarantined.discard(session, allowed, 2, reason="the archive has it", now=now)


def test_a_requester_that_has_gone_gets_its_report_over_a_new_association(
    receiver: Receiver, two: list[Encoded]
) -> None:
    ask_and_hang_up(receiver, two)
    reports = Reports()
    with listening(reports) as peer:
        assert report_due(receiver, peer) == 1
    assert reports.committed == {each.sop_instance_uid for each in two}
    assert request_row(receiver).state is ReportState.SENT
    assert report_due(receiver, peer) == 0


def test_a_report_waits_for_its_requester_and_is_tried_again(receiver: Receiver, two: list[Encoded]) -> None:
    ask_and_hang_up(receiver, two)
    now = datetime.now(UTC)
    reports = Reports(answers=[0x0110])
    with listening(reports) as peer:
        assert report_due(receiver, peer, now=lambda: now) == 0
        assert "status 0x0110" in request_row(receiver).reason
        assert report_due(receiver, peer, now=lambda: now) == 0, "not before the back-off has passed"
        assert report_due(receiver, peer, now=lambda: now + timedelta(hours=1)) == 1
    assert len(reports.received) == 2


def test_a_report_is_given_up_at_the_configured_age(receiver: Receiver, two: list[Encoded]) -> None:
    ask_and_hang_up(receiver, two)
    with listening(Reports()) as peer:
        assert report_due(receiver, peer, now=lambda: datetime.now(UTC) + timedelta(hours=73)) == 0
    assert request_row(receiver).state is ReportState.GIVEN_UP


def test_a_report_without_an_address_is_given_up_at_once_until_the_requester_asks_again(
    receiver: Receiver, two: list[Encoded], caplog: pytest.LogCaptureFixture
) -> None:
    ask_and_hang_up(receiver, two)
    assert report_due(receiver) == 0
    row = request_row(receiver)
    assert row.state is ReportState.GIVEN_UP
    assert row.reason.startswith(f"given up: no peer has the AE title {row.ae_title}")
    assert any("given up: no peer has the AE title" in line for line in caplog.messages)
    reports = Reports()
    with requester(receiver, reports, ae_title=row.ae_title) as assoc:
        assert ask(assoc, [refer(each) for each in two]) == 0x0000
        assert reports.arrived.wait(30)
        wait_until(receiver, ReportState.SENT)


def test_a_report_that_is_refused_does_not_stop_those_after_it(receiver: Receiver, two: list[Encoded]) -> None:
    with requester(receiver, Reports(answers=[0x0110] * 3)) as assoc:
        for number in range(3):
            assert ask(assoc, [refer(two[0])], f"{TRANSACTION}.{number}") == 0x0000
        wait_for(lambda: [row.attempts for row in receiver.rows(CommitmentRequest)] == [1] * 3, "three reports")
        wait_for(
            lambda: {row.state for row in receiver.rows(CommitmentRequest)} == {ReportState.WAITING}, "three answers"
        )
    reports = Reports(answers=[0x0110])
    with listening(reports, ae_title="SENDER") as peer:
        assert report_due(receiver, peer) == 2
    assert len(reports.received) == 3
    states = [row.state for row in receiver.rows(CommitmentRequest)]
    assert states == [ReportState.WAITING, ReportState.SENT, ReportState.SENT]


def test_the_same_request_again_is_one_row_and_reported_again(receiver: Receiver, two: list[Encoded]) -> None:
    for _ in range(2):
        reports = Reports()
        with requester(receiver, reports) as assoc:
            assert ask(assoc, [refer(each) for each in two]) == 0x0000
            assert reports.arrived.wait(30)
            wait_until(receiver, ReportState.SENT)
    assert request_row(receiver).attempts == 2


def test_a_transaction_uid_of_another_request_is_refused(receiver: Receiver, two: list[Encoded]) -> None:
    with requester(receiver, Reports()) as assoc:
        assert ask(assoc, [refer(two[0])]) == 0x0000
        wait_until(receiver, ReportState.SENT)
        assert ask(assoc, [refer(two[1])]) == 0x0131
    committed = {row.sop_instance_uid for row in receiver.rows() if row.committed_at}
    assert committed == {two[0].sop_instance_uid}, "nothing is kept for ever by a refused request"
    with requester(receiver, Reports(), ae_title="OTHER") as assoc:
        assert ask(assoc, [refer(two[0])]) == 0x0131


def test_requests_that_are_none_are_refused_by_status(receiver: Receiver) -> None:
    call = information.make_call(information.Call(TRANSACTION, ((MR, "1.2.3"),)))
    without_uid = Dataset()
    without_uid.ReferencedSOPSequence = call.ReferencedSOPSequence
    without_items = Dataset()
    without_items.TransactionUID = TRANSACTION
    with requester(receiver) as assoc:
        for ds, action, instance, status in [
            (call, 2, INSTANCE, 0x0123),
            (call, 1, "1.2.840.10008.1.20.1.2", 0x0112),
            (without_uid, 1, INSTANCE, 0x0115),
            (without_items, 1, INSTANCE, 0x0115),
            (None, 1, INSTANCE, 0x0115),
        ]:
            answer, _ = assoc.send_n_action(ds, action, MODEL, instance)
            assert answer.Status == status
    assert receiver.rows(CommitmentRequest) == []


def test_a_peer_of_de_identified_copies_learns_nothing(start: Start) -> None:
    receiver = start(peers=(Peer(name="research", ae_title="SENDER", port=104, deidentify="research"),))
    with requester(receiver) as assoc:
        assert ask(assoc, [(MR, "1.2.3")]) == 0x0124


def test_only_senders_may_request(start: Start) -> None:
    receiver = start(senders=(SenderConfig(ae_title="MR1"),))
    with pytest.raises(PeerRefused), requester(receiver):
        pass
    with requester(receiver, Reports(), ae_title="MR1") as assoc:
        assert ask(assoc, [(MR, "1.2.3")]) == 0x0000
        wait_until(receiver, ReportState.SENT)


def test_orthanc_gets_its_commitment(receiver: Receiver, orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.register_peer(Peer(name="node", ae_title="DICOMNODE", port=receiver.port))
    write_instance(tmp_path / "a.dcm")
    identifier = orthanc.upload(tmp_path / "a.dcm")
    orthanc.ask("POST", "/modalities/node/store", {"Resources": [identifier], "Synchronous": True})
    held = refer(read_encoded(tmp_path / "a.dcm"))
    body = {"DicomInstances": [list(held), [MR, "1.2.3.4"]], "Timeout": 10}
    transaction = orthanc.ask("POST", "/modalities/node/storage-commitment", body)["ID"]

    def find_report() -> Any:
        report_due(receiver, orthanc.peer)
        found = orthanc.ask("GET", f"/storage-commitment/{transaction}")
        return found if found["Status"] != "Pending" else None

    report = wait_for(find_report, "Orthanc has the report")
    assert report["Status"] == "Failure"
    assert [each["SOPInstanceUID"] for each in report["Success"]] == [held[1]]
    assert [each["SOPInstanceUID"] for each in report["Failures"]] == ["1.2.3.4"]
    assert "was not available" in report["Failures"][0]["Description"]
