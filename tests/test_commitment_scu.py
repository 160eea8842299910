"""Proofs of deliveries: destinations commit what they were sent, or are searched for it; the rest stays unproven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import proofs
from db.models import Delivery, Event, Proof, Study
from db.states import DeliveryState, ProofState, ProofStep
from dicomnode.commitment import proving
from dicomnode.config import Config, Peer
from dicomnode.config.senders import SenderConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.delivery.delivery import deliver_due
from dicomnode.dimse import queries
from dicomnode.errors import PeerRefused
from dicomnode.maintenance.retention import explain_kept
from tests.identifying import write_profile
from tests.peers import Answering, Committing, Orthanc, wait_for
from tests.receivers import Receiver, Start, start
from tests.rows import finish_job
from tests.test_commitment_scp import ask, requester

__all__ = ["start"]


@dataclass
class Site:
    """A node that delivers, with its SCP; its clock is moved by hand."""

    receiver: Receiver
    config: Config
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def sessions(self) -> sessionmaker[Session]:
        return engines.sessions(self.receiver.engine)

    def deliver(self) -> int:
        return deliver_due(self.sessions, self.config, now=lambda: self.now)

    def prove(self, *, after_h: float = 0) -> list[ProofState]:
        """Let time pass, take the steps that are due, and return the states of all proofs."""
        self.now += timedelta(hours=after_h)
        proving.prove_due(self.sessions, self.config, now=lambda: self.now)
        return [row.state for row in self.proofs()]

    def proofs(self) -> list[Proof]:
        with self.sessions() as session:
            return list(session.scalars(select(Proof).order_by(Proof.id)))

    def reasons(self) -> set[str]:
        return {row.reason for row in self.proofs()}

    def delivery_states(self) -> list[DeliveryState]:
        with self.sessions() as session:
            return [row.state for row in session.scalars(select(Delivery).order_by(Delivery.id))]

    def explain_kept(self) -> str:
        config = self.config.model_copy(
            update={"retention": self.config.retention.model_copy(update={"sources_days": 1})}
        )
        with self.sessions() as session:
            return explain_kept(session, session.scalars(select(Study)).one(), config, now=self.now)


def open_site(start: Start, peer: Peer, *, count: int = 2, **changes: object) -> Site:
    """Start a node whose peer is to get the results of a job, and deliver them."""
    peer = peer.model_copy(update=changes)
    receiver = start(peers=(peer,))
    site = Site(receiver, receiver.config)
    finish_job(site.sessions, site.config, [peer.name], site.now, count=count)
    assert site.deliver() == count
    return site


COMMITTED, SENT, UNPROVEN, VERIFIED = ProofState.COMMITTED, ProofState.SENT, ProofState.UNPROVEN, ProofState.VERIFIED


def test_orthanc_commits_over_an_association_of_its_own(start: Start, orthanc: Orthanc) -> None:
    site = open_site(start, orthanc.peer, commitment=True)
    orthanc.register_peer(Peer(name="node", ae_title="DICOMNODE", port=site.receiver.port))
    assert "not proven at orthanc" in site.explain_kept()
    site.prove()
    wait_for(lambda: [row.state for row in site.proofs()] == [COMMITTED] * 2, "Orthanc has reported")
    assert all(row.proven_at for row in site.proofs())
    assert "not proven" not in site.explain_kept()
    with site.sessions() as session:
        events = session.scalars(select(Event.detail).where(Event.subject == "proofs")).all()
    assert {(each["from"], each["to"]) for each in events} == {("sent", "committed")}


def test_a_report_over_the_same_association_is_taken(start: Start) -> None:
    with Committing(same_association=True) as archive:
        site = open_site(start, archive.peer)
        assert site.prove() == [COMMITTED] * 2
    assert len(archive.requests) == 1
    assert {uid for _, uid in archive.requests[0].references} == {row.sop_instance_uid for row in site.proofs()}


def test_a_destination_that_is_no_sender_may_report_and_nothing_else(start: Start) -> None:
    with Committing() as archive:
        receiver = start(peers=(archive.peer,), senders=(SenderConfig(ae_title="MR1"),))
        site = Site(receiver, receiver.config)
        finish_job(site.sessions, site.config, ["archive"], site.now)
        assert site.deliver() == 1
        assert site.prove() == [SENT]
        assert archive.report(receiver.port) == 0x0000
        assert site.prove() == [COMMITTED]
        with requester(receiver, ae_title="ARCHIVE") as assoc:
            assert ask(assoc, [("1.2", "1.2.3")]) == 0x0124
    with pytest.raises(PeerRefused), requester(receiver, ae_title="OTHER"):
        pass


def test_what_is_not_committed_is_sent_again_and_then_unproven(start: Start) -> None:
    lost: list[str] = []
    with Committing(lambda uid: 0x0112 if uid in lost else 0, same_association=True) as archive:
        site = open_site(start, archive.peer)
        lost.append(archive.stored[0])
        for _ in range(2):
            assert site.prove() == [SENT, COMMITTED]
            assert site.delivery_states() == [DeliveryState.WAITING, DeliveryState.DELIVERED]
            assert site.deliver() == 1
        assert site.prove() == [UNPROVEN, COMMITTED]
        assert archive.stored.count(lost[0]) == 3
        assert "archive did not commit it: 0112, no such object instance" in site.reasons()
        assert len(set(archive.transactions)) == 3, "a transaction for each attempt"
        assert "not proven at archive" in site.explain_kept()


def test_a_conflict_of_classes_is_not_mended_by_sending(start: Start) -> None:
    with Committing(lambda uid: 0x0119, same_association=True) as archive:
        site = open_site(start, archive.peer)
        assert site.prove() == [UNPROVEN] * 2
        assert len(archive.stored) == 2


def test_a_refused_request_is_repeated_with_a_new_transaction(start: Start) -> None:
    with Committing(statuses=(0x0110,), same_association=True) as archive:
        site = open_site(start, archive.peer)
        assert site.prove() == [SENT] * 2
        assert site.reasons() == {"archive refused to commit with status 0x0110"}
        assert site.prove(after_h=1) == [COMMITTED] * 2
        assert len(set(archive.transactions)) == 2


def test_a_request_that_is_broken_off_is_repeated_whole(start: Start) -> None:
    """A part of it would not be the same request."""
    with Committing(statuses=(None,), same_association=True) as archive:
        site = open_site(start, archive.peer, count=5)
        assert site.prove() == [SENT] * 5
        assert len({row.not_before for row in site.proofs()}) == 1
        site.now = site.proofs()[0].not_before
        assert site.prove() == [COMMITTED] * 5
    first, second = archive.requests
    assert (first.transaction_uid, set(first.references)) == (second.transaction_uid, set(second.references))


def test_a_report_that_comes_during_the_request_is_not_lost(start: Start) -> None:
    """It has the object sent again, and the new transaction begins before the old request is answered."""
    judged: list[int] = []

    def refuse_once(uid: str) -> int:
        judged.append(0x0110 if not judged else 0)
        return judged[-1]

    with Committing(refuse_once) as archive:
        site = open_site(start, archive.peer, count=1)

        def report_and_deliver() -> None:
            archive.before_answer = lambda: None
            assert archive.report(site.receiver.port) == 0x0000
            site.now += timedelta(minutes=1)
            assert site.deliver() == 1

        archive.before_answer = report_and_deliver
        assert site.prove() == [SENT]
        assert {row.step for row in site.proofs()} == {ProofStep.REQUEST}, "of the object that was sent again"
        site.prove()
        assert archive.report(site.receiver.port) == 0x0000
        assert site.prove() == [COMMITTED]
    assert len(set(archive.transactions)) == 2


def test_a_request_without_an_answer_is_repeated_with_the_same_transaction(start: Start) -> None:
    with Committing(statuses=(0x0000, 0x0131)) as archive:
        site = open_site(start, archive.peer)
        assert site.prove() == [SENT] * 2
        with site.sessions.begin() as session:  # as if the node had stopped before it recorded the answer
            for row in session.scalars(select(Proof)):
                row.step, row.attempts, row.not_before = ProofStep.REQUEST, 1, site.now
        assert site.prove() == [SENT] * 2
        assert {row.step for row in site.proofs()} == {ProofStep.REPORT}
        assert len(archive.requests) == 2
        assert len(set(archive.transactions)) == 1


def test_a_report_that_does_not_come_leaves_the_objects_unproven_until_it_comes(start: Start) -> None:
    with Committing() as archive:
        site = open_site(start, archive.peer)
        assert site.prove() == [SENT] * 2
        assert site.prove(after_h=23) == [SENT] * 2
        assert site.prove(after_h=2) == [UNPROVEN] * 2
        assert "archive has not reported within 24 h" in next(iter(site.reasons()))
        assert archive.report(site.receiver.port) == 0x0000
        assert site.prove() == [COMMITTED] * 2
        assert archive.report(site.receiver.port) == 0x0000, "the same report again"


def test_a_person_may_ask_again(start: Start) -> None:
    with Committing() as archive:
        site = open_site(start, archive.peer)
        site.prove()
        assert site.prove(after_h=25) == [UNPROVEN] * 2
        with site.sessions.begin() as session:
            study = session.scalars(select(Study)).one()
            assert proving.ask_again(session, site.config, study.id, reason="asked again", now=site.now) == 2
        assert site.prove() == [SENT] * 2
        assert len(set(archive.transactions)) == 2


def test_reports_on_other_transactions_are_refused(start: Start) -> None:
    with Committing() as archive:
        site = open_site(start, archive.peer)
        site.prove()
        call = archive.requests[0]
        archive.requests.append(type(call)("1.2.3.4", call.references))
        assert archive.report(site.receiver.port) == 0x0115
        assert site.prove() == [SENT] * 2


@pytest.mark.parametrize(("commitment", "state"), [("auto", SENT), (True, UNPROVEN)])
def test_a_destination_that_does_not_offer_commitment(start: Start, commitment: object, state: ProofState) -> None:
    with Answering(lambda event: 0x0000) as server:
        site = open_site(start, server.peer, commitment=commitment)
        assert site.prove() == [state] * 2
        assert site.reasons() == {"answering does not offer storage commitment"}
        assert ("not proven" in site.explain_kept()) is (state is UNPROVEN)


def test_a_destination_that_accepts_no_context_does_not_offer_commitment(start: Start) -> None:
    with Committing() as archive:
        site = open_site(start, archive.peer)
        archive.offer_nothing()
        assert site.prove() == [SENT] * 2
        assert "accepts none of the SOP classes" in next(iter(site.reasons()))
        assert {row.step for row in site.proofs()} == {ProofStep.NONE}


@pytest.mark.parametrize("statuses", [(0x0110,) * 40, (None,) * 40], ids=["refused", "broken off"])
def test_what_an_archive_refuses_to_commit_never_counts_as_sent(start: Start, statuses: tuple[int | None, ...]) -> None:
    with Committing(statuses=statuses) as archive:
        site = open_site(start, archive.peer, commitment="auto")
        assert site.prove() == [SENT] * 2
        assert site.prove(after_h=25) == [UNPROVEN] * 2
        assert "not proven at archive" in site.explain_kept()


def test_what_an_archive_does_not_keep_is_not_sent_because_it_offers_commitment_no_more(start: Start) -> None:
    with Committing(lambda uid: 0x0110, same_association=True) as archive:
        site = open_site(start, archive.peer, commitment="auto")
        assert site.prove() == [SENT] * 2
        assert site.deliver() == 2
        archive.offer_nothing()
        assert site.prove() == [UNPROVEN] * 2


def test_a_destination_that_does_not_answer_is_asked_once_a_sweep_and_the_others_too(start: Start) -> None:
    """Each attempt may take as long as the network's time limit."""
    with Committing() as dead, Committing(same_association=True) as archive:
        peers = (dead.peer.model_copy(update={"name": "dead"}), archive.peer)
        receiver = start(peers=peers)
        site = Site(receiver, receiver.config)
        finish_job(site.sessions, site.config, ["dead", "archive"], site.now, count=3)
        assert site.deliver() == 6
        with site.sessions.begin() as session:  # as of three requests that were not answered
            for row in session.scalars(select(Proof).where(Proof.destination == "dead")):
                row.transaction_uid = f"1.2.3.{row.id}"
        dead.abort_next(40)
        site.prove()
        assert len(dead.requests) == 1
        of_dead = [row for row in site.proofs() if row.destination == "dead"]
        assert {(row.attempts, row.reason) for row in of_dead} == {
            (1, "peer dead did not answer the request for storage commitment")
        }
        assert [row.state for row in site.proofs() if row.destination == "archive"] == [COMMITTED] * 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("The association with a peer SCP must be established"), "ended the association"),
        (ValueError("of a name in an answer"), "searched could not be asked: ValueError"),
    ],
)
def test_a_search_that_breaks_off_ends_for_that_destination_only(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def break_off(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(queries, "find", break_off)
    with Committing() as first, Committing(same_association=True) as archive:
        searched = first.peer.model_copy(update={"name": "searched", "commitment": False, "verify": "c-find"})
        receiver = start(peers=(searched, archive.peer))
        site = Site(receiver, receiver.config)
        finish_job(site.sessions, site.config, ["searched", "archive"], site.now)
        assert site.deliver() == 2
        assert sorted(site.prove()) == [COMMITTED, SENT]
        assert any(reason in each for each in site.reasons())


def test_an_error_of_the_node_at_one_destination_stops_no_other(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    list_due = proofs.list_due

    def fail_for_first(session: Session, destination: str, **options: Any) -> Sequence[Proof]:
        if destination == "first":
            raise KeyError("of a row")
        return list_due(session, destination, **options)

    monkeypatch.setattr(proofs, "list_due", fail_for_first)
    with Committing(same_association=True) as archive:
        receiver = start(peers=(archive.peer.model_copy(update={"name": "first"}), archive.peer))
        site = Site(receiver, receiver.config)
        finish_job(site.sessions, site.config, ["archive"], site.now)
        assert site.deliver() == 1
        with pytest.raises(KeyError):  # so that the sweep counts as failed
            site.prove()
        assert [row.state for row in site.proofs()] == [COMMITTED]
    assert "proofs at first: KeyError" in caplog.text


def test_reports_are_taken_while_the_disk_is_full(start: Start) -> None:
    """They let retention delete, and need no space."""
    with Committing() as archive:
        receiver = start(peers=(archive.peer,), spool=SpoolConfig(min_free_gb=1e6))
        site = Site(receiver, receiver.config)
        finish_job(site.sessions, site.config, ["archive"], site.now)
        assert site.deliver() == 1
        assert site.prove() == [SENT]
        assert archive.report(receiver.port) == 0x0000
        assert site.prove() == [COMMITTED]
    with pytest.raises(PeerRefused, match="congestion"), requester(receiver, ae_title="SENDER"):
        pass


def test_without_commitment_nothing_is_asked(start: Start) -> None:
    with Committing() as archive:
        site = open_site(start, archive.peer, commitment=False)
        assert site.prove() == []
        assert archive.requests == []


def test_orthanc_is_searched_for_what_was_sent(start: Start, orthanc: Orthanc) -> None:
    site = open_site(start, orthanc.peer, commitment=False, verify="c-find")
    assert site.prove() == [VERIFIED] * 2


def test_orthanc_is_searched_where_it_does_not_take_the_request(start: Start, orthanc: Orthanc) -> None:
    """Orthanc ends the association with a modality that it does not know."""
    site = open_site(start, orthanc.peer, verify="c-find")
    assert site.prove() == [SENT] * 2
    assert site.reasons() == {"peer orthanc did not answer the request for storage commitment"}
    assert site.prove(after_h=25) == [SENT] * 2
    assert site.prove() == [VERIFIED] * 2


def test_what_a_search_does_not_find_is_unproven_with_the_count(start: Start, orthanc: Orthanc) -> None:
    site = open_site(start, orthanc.peer, commitment=False, verify="c-find")
    orthanc.ask("DELETE", f"/instances/{orthanc.instances()[0]}")
    assert sorted(site.prove()) == [SENT, VERIFIED]
    assert sorted(site.prove(after_h=25)) == [UNPROVEN, VERIFIED]
    (reason,) = site.reasons() - {""}
    assert reason.startswith("C-FIND at orthanc: 0 of 1 instances")


def test_a_destination_of_de_identified_copies_commits_what_it_was_sent(start: Start, tmp_path: Path) -> None:
    with Committing(same_association=True) as archive:
        peer = archive.peer.model_copy(update={"deidentify": "research"})
        receiver = start(peers=(peer,), deidentify=(write_profile(tmp_path),))
        site = Site(receiver, receiver.config.with_absolute_paths(tmp_path))
        uids = finish_job(site.sessions, site.config, ["archive"], site.now)
        assert site.deliver() == 1
        assert site.prove() == [COMMITTED]
        assert [uid for _, uid in archive.requests[0].references] == archive.stored
        assert not set(archive.stored) & set(uids)
