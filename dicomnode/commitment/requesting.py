"""Storage Commitment Push Model as SCU (PS3.4 J): the request to a destination, and the reports that it sends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pydicom.uid import UID
from pynetdicom import build_context, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from db import proofs
from dicomnode.commitment import information
from dicomnode.dimse.associations import association
from dicomnode.errors import CannotUnderstand, NotOffered, PeerRefused, PeerUnreachable

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from dicomnode.commitment.information import Call
    from dicomnode.config import Config, Peer

__all__ = ["record_report", "request_commitment"]

_log = logging.getLogger(__name__)

_REPORT_WAIT_S = 1.0
"""Longest wait for a report over the association of the request; most destinations open one of their own."""
_SUCCESS, _PROCESSING_FAILURE, _INVALID_ARGUMENT = 0x0000, 0x0110, 0x0115  # PS3.7 C
_HAS_THE_REQUEST = (_SUCCESS, 0x0131, 0x0210)  # duplicate transaction, duplicate invocation: of a request sent again

Clock = Callable[[], datetime]


def request_commitment(
    peer: Peer, call: Call, config: Config, sessions: sessionmaker[Session], *, now: Clock, is_retry: bool
) -> None:
    """Request commitment of a destination, and record a report that comes at once; return when it has the request.

    Raises NotOffered, PeerRefused where it does not process the request, PeerUnreachable where it gives no answer.
    """
    reported, answered = threading.Event(), threading.Event()

    def handle(event: evt.Event) -> tuple[int, None]:
        syntax = UID(event.context.transfer_syntax)
        status = record_report(sessions, event.request.EventInformation, syntax, now=now)
        reported.set()
        return status, None

    def note_answer(event: evt.Event) -> None:
        if reported.is_set() and isinstance(event.pdu, P_DATA_TF):
            answered.set()

    contexts = [build_context(Verification), build_context(StorageCommitmentPushModel, information.SYNTAXES)]
    node, handlers = config.node, [(evt.EVT_N_EVENT_REPORT, handle), (evt.EVT_PDU_SENT, note_answer)]
    with association(
        peer, contexts, calling_aet=node.ae_title, timeout_s=node.network_timeout_s, tls=node.tls, handlers=handlers
    ) as assoc:
        if StorageCommitmentPushModel not in {each.abstract_syntax for each in assoc.accepted_contexts}:
            raise NotOffered(f"{peer.name} does not offer storage commitment")
        status = _send_request(peer, assoc, call)
        if status != _SUCCESS and not (is_retry and status in _HAS_THE_REQUEST):
            raise PeerRefused(f"{peer.name} refused to commit with status 0x{status:04X}")
        answered.wait(_REPORT_WAIT_S)


def record_report(sessions: sessionmaker[Session], content: BytesIO | None, syntax: UID, *, now: Clock) -> int:
    """Record the information of an N-EVENT-REPORT; return the status of its answer: success means committed rows."""
    try:
        transaction_uid, verdicts = information.decode_report(content, syntax)
        with sessions.begin() as session:
            if not proofs.is_transaction(session, transaction_uid):
                _log.warning("a report on a commitment that nobody here waits for was refused")
                return _INVALID_ARGUMENT
            proofs.record_verdicts(session, transaction_uid, verdicts, now=now())
    except CannotUnderstand as exc:
        _log.warning("a report on a commitment was refused: %s", exc)
        return _INVALID_ARGUMENT
    except Exception as exc:  # the destination must get an answer whatever broke, and never a success
        _log.error("a report on a commitment could not be recorded: %s", type(exc).__name__)
        return _PROCESSING_FAILURE
    committed = sum(each.is_committed for each in verdicts)
    _log.info("commitment: %d of %d instances are committed", committed, len(verdicts))
    return _SUCCESS


def _send_request(peer: Peer, assoc: Any, call: Call) -> int:
    """Send the N-ACTION; return the status of its answer."""
    action, ds = information.REQUEST_COMMITMENT, information.make_call(call)
    try:
        answer, _ = assoc.send_n_action(ds, action, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    except RuntimeError:  # the association is no longer established
        raise PeerUnreachable(f"peer {peer.name} ended the association before it had the request") from None
    if "Status" not in answer:
        raise PeerUnreachable(f"peer {peer.name} did not answer the request for storage commitment")
    return int(answer.Status)
