"""The network outside the node: senders that repeat until they get a success, and peers that take results.

Associations are not pynetdicom's: a sender hands the pieces of a data set to the node's sink, as the P-DATA reader
does, and the node's own associations end in a ``_Association`` with the answers of a peer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom.presentation import PresentationContext, build_context

from db.studies import Sender
from dicomnode.config import Config, Peer
from dicomnode.errors import PeerUnreachable
from dicomnode.ingest.group_commit import Ledger
from dicomnode.ingest.ingest import InstanceSink, StoreAnnouncement
from tests.simulation.machine import HeldObject, machine
from tests.simulation.plan import Dispatch
from tests.simulation.subjects import Subject, cut_file_meta

__all__ = ["association", "send_all"]

_SUCCESS, _OUT_OF_RESOURCES, _CONFLICT = 0x0000, 0xA700, 0xC111
_RETRY_S = 20.0
_LONGEST_RETRY_S = 1280.0


def send_all(ledger: Ledger, config: Config, number: int, dispatch: Dispatch, subjects: dict[Any, Subject]) -> None:
    """Send what the sender has left, again and again, until each instance is answered with success or as a conflict."""
    outside, scheduler = machine().outside, machine().scheduler
    if (wait_s := dispatch.start_s - scheduler.passed_s) > 0:
        scheduler.sleep(wait_s)
    sender = Sender(dispatch.sender, "127.0.0.1")
    pause_s = _RETRY_S
    while left := outside.open_dispatches[number]:
        for place in list(left):
            status = _send(ledger, config, sender, subjects[dispatch.instances[place]])
            if status is None:  # the association is lost
                break
            if status in (_SUCCESS, _CONFLICT):
                left.remove(place)
        if left:
            scheduler.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)


def _send(ledger: Ledger, config: Config, sender: Sender, subject: Subject) -> int | None:
    """Send one instance; return the status of the answer, None where there is none."""
    announcement = StoreAnnouncement(subject.sop_class_uid, subject.sop_instance_uid, subject.transfer_syntax_uid)
    sink = InstanceSink(ledger, config.spool, announcement, sender)
    middle = len(subject.data_set) // 2
    for piece in (subject.data_set[:middle], subject.data_set[middle:]):
        if machine().cross("receive") == "drop":
            sink.discard()
            return None
        sink.write(piece)
    status, _ = sink.finish()
    if machine().cross("answer") == "drop":
        return None
    outside = machine().outside
    machine().note(f"{sender.ae_title} gets {status:04X} for {subject.name}")
    if status == _SUCCESS:
        known = outside.acknowledged.setdefault(subject.sop_instance_uid, subject.sha256)
        if known != subject.sha256:
            outside.surprises.append(f"{subject.name}: two contents were acknowledged")
    elif status == _CONFLICT:
        outside.conflicts.add(subject.sop_instance_uid)
    return status


class _Association:
    """What the node sees of an association with a peer."""

    def __init__(self, peer: Peer, contexts: Sequence[PresentationContext]) -> None:
        self._peer, self.is_established = peer, True
        self.accepted_contexts = [
            build_context(each.abstract_syntax, syntax) for each in contexts for syntax in each.transfer_syntax
        ]

    def send_c_store(self, content: Path, msg_id: int) -> Dataset:
        """Store a file, or not, and answer, or not."""
        del msg_id
        act = machine().cross("store") if self.is_established else "lose"
        if act == "lose":
            self.is_established = False
            raise RuntimeError("the association is lost")
        uid, sent = _read_object(Path(content))
        outside, answer = machine().outside, Dataset()
        if act == "refuse":
            answer.Status = _OUT_OF_RESOURCES
            return answer
        if act == "keep nothing" and self._peer.verify:
            outside.denied.add((self._peer.name, uid))
        else:
            _keep(self._peer.name, uid, sent)
        if machine().cross("stored") == "lose":
            self.is_established = False
            return answer
        outside.accepted.append((self._peer.name, uid, sent.sha256))
        machine().note(f"{self._peer.name} accepts {uid[-6:]}")
        answer.Status = _SUCCESS
        return answer

    def send_c_find(self, identifier: Dataset, model: object) -> Iterator[tuple[Dataset, Dataset | None]]:
        """Yield the objects of the series that the peer holds."""
        del model
        if machine().cross("find") == "lose":
            yield Dataset(), None
            return
        outside = machine().outside
        series = (identifier.StudyInstanceUID, identifier.SeriesInstanceUID)
        for uid, (_, *of_object) in sorted(outside.held.get(self._peer.name, {}).items()):
            if tuple(of_object) != series:
                continue
            outside.proven.add((self._peer.name, uid))
            pending, match = Dataset(), Dataset()
            pending.Status, match.SOPInstanceUID = 0xFF00, uid
            yield pending, match
        success = Dataset()
        success.Status = _SUCCESS
        yield success, None

    def abort(self) -> None:
        """End the association."""
        self.is_established = False


@contextmanager
def association(peer: Peer, contexts: Sequence[PresentationContext], **settings: Any) -> Iterator[_Association]:
    """Stand in for ``dicomnode.dimse.associations.association``."""
    del settings
    if machine().cross("associate") == "refuse":
        raise PeerUnreachable(f"peer {peer.name} cannot be reached")
    yield _Association(peer, contexts)


def _keep(name: str, uid: str, sent: HeldObject) -> None:
    held = machine().outside.held.setdefault(name, {})
    if held.setdefault(uid, sent) != sent:
        machine().outside.surprises.append(f"{name} got two objects with the UID {uid}")


def _read_object(path: Path) -> tuple[str, HeldObject]:
    """Return the UID of the object in a file, and the object as a peer holds it."""
    digest = hashlib.sha256(cut_file_meta(path.read_bytes())).hexdigest()
    ds = dcmread(path, stop_before_pixels=True)
    return str(ds.SOPInstanceUID), HeldObject(digest, str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID))
