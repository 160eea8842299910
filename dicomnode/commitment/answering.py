"""Storage Commitment Push Model as SCP (PS3.4 J): requests on an association, and the report while it is open.

A request is a row before it is answered. Its report goes over the same association; where that ends without an answer,
``reporting`` sends it over a new one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from sqlalchemy.orm import Session, sessionmaker

from db import commitments, jobs
from db.commitments import ClaimedReport, DuplicateTransaction
from db.studies import Sender
from dicomnode.commitment import information, judging, requesting
from dicomnode.config import Config
from dicomnode.dimse.pynetdicom_adapter import accepted_context, wrap_request_service
from dicomnode.errors import CannotUnderstand

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

    from dicomnode.commitment.information import Call

__all__ = ["CommitmentExchange", "CommitmentService", "install", "supported_contexts"]

_log = logging.getLogger(__name__)

_SUCCESS, _PROCESSING_FAILURE, _NO_SUCH_INSTANCE = 0x0000, 0x0110, 0x0112  # PS3.7 C
_INVALID_ARGUMENT, _NO_SUCH_ACTION, _NOT_AUTHORIZED = 0x0115, 0x0123, 0x0124
_DUPLICATE_TRANSACTION = 0x0131  # PS3.3 C.14.1.1
_LONGEST_COMMENT = 64
_LEASE_MARGIN_S = 10.0


@dataclass(frozen=True)
class CommitmentService:
    """Configuration, database sessions and clock that answer requests for storage commitment."""

    config: Config
    sessions: sessionmaker[Session]
    now: Callable[[], datetime]


class _Refused(Exception):
    """The request is answered with a status and a comment."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status


def supported_contexts() -> list[PresentationContext]:
    """Return the context of the push model; the requester may take either role (PS3.7 D.3.3.4)."""
    context = build_context(StorageCommitmentPushModel, information.SYNTAXES)
    context.scu_role = context.scp_role = True
    return [context]


def install(
    assoc: Association, service: CommitmentService, identify_sender: Callable[[Association], Sender]
) -> CommitmentExchange:
    """Serve the requests for storage commitment of an association that has not started yet."""
    exchange = CommitmentExchange(assoc, service, identify_sender)
    wrap_request_service(assoc, exchange.serve)
    return exchange


class CommitmentExchange:
    """The requests of one association, and the reports on them that wait for an answer there."""

    def __init__(
        self, assoc: Association, service: CommitmentService, identify_sender: Callable[[Association], Sender]
    ) -> None:
        self._assoc, self._service, self._identify_sender = assoc, service, identify_sender
        self._worker = f"{jobs.worker_name(os.getpid())}:{id(assoc)}"
        self._numbers = count(1)
        self._unanswered: dict[int, int] = {}

    def serve(self, message: Any, context_id: int) -> bool:
        """Serve a message of storage commitment; return False for any other."""
        context = accepted_context(self._assoc, context_id)
        if context is None or context.abstract_syntax != StorageCommitmentPushModel:
            return False
        if isinstance(message, N_ACTION) and message.is_valid_request:
            self._answer(message, context)
        elif isinstance(message, N_EVENT_REPORT) and message.is_valid_request:
            self._take_report(message, context)
        elif isinstance(message, N_EVENT_REPORT) and message.is_valid_response:
            self._record_answer(message)
        else:
            return False
        return True

    def end(self) -> None:
        """Let the reports without an answer be sent over another association."""
        try:
            for request_id in self._unanswered.values():
                self._give_back(request_id, "the association ended without an answer to the report")
        except Exception as exc:  # without the database the lease lapses, and the report is sent then
            _log.error("reports on commitments wait for their lease: %s", type(exc).__name__)

    def _answer(self, request: N_ACTION, context: PresentationContext) -> None:
        """Answer an N-ACTION, and report at once where it is accepted."""
        report, status, comment = None, _SUCCESS, ""
        try:
            report = self._accept(request, UID(context.transfer_syntax[0]))
        except _Refused as exc:
            status, comment = exc.status, str(exc)
        except Exception as exc:  # the requester must get an answer whatever broke, and never a success
            _log.error("a storage commitment could not be recorded: %s", type(exc).__name__)
            status, comment = _PROCESSING_FAILURE, "the node could not record the request"
        if status:
            _log.warning("%s: a storage commitment was refused: %s", self._sender.address, comment)
        self._respond(request, context, status, comment)
        if report is not None and self._assoc.is_established:
            self._send(report, context)

    @property
    def _sender(self) -> Sender:
        return self._identify_sender(self._assoc)

    def _accept(self, request: N_ACTION, syntax: UID) -> ClaimedReport:
        """Record the request and claim its report for this association. Raises _Refused."""
        call, service, sender = self._read(request, syntax), self._service, self._sender
        lease_s = service.config.node.network_timeout_s + _LEASE_MARGIN_S
        uid, root = call.transaction_uid, service.config.spool_dir
        try:
            with service.sessions.begin() as session:
                commitments.check_transaction(session, uid, sender, [each for _, each in call.references])
            verdicts = judging.commit_instances(service.sessions, root, call.references, sender, now=service.now)
            with service.sessions.begin() as session:
                now = service.now()
                row = commitments.record(session, transaction_uid=uid, sender=sender, verdicts=verdicts, now=now)
                report = commitments.claim(session, row, worker=self._worker, lease_s=lease_s, now=now)
        except DuplicateTransaction as exc:
            raise _Refused(_DUPLICATE_TRANSACTION, str(exc)) from None
        committed = sum(each.is_committed for each in verdicts)
        _log.info("commitment request %d of %s: %d of %d instances", row.id, sender.ae_title, committed, len(verdicts))
        return report

    def _read(self, request: N_ACTION, syntax: UID) -> Call:
        if any(peer.deidentify and peer.ae_title == self._sender.ae_title for peer in self._service.config.peers):
            raise _Refused(_NOT_AUTHORIZED, "this peer gets de-identified copies only")
        if not self._service.config.allows(self._sender.ae_title, self._sender.address):
            raise _Refused(_NOT_AUTHORIZED, "not among the senders")
        if request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
            raise _Refused(_NO_SUCH_INSTANCE, "not the well-known instance of the push model")
        if request.ActionTypeID != information.REQUEST_COMMITMENT:
            raise _Refused(_NO_SUCH_ACTION, f"action {request.ActionTypeID} is not 1")
        try:
            return information.decode_call(request.ActionInformation, syntax)
        except CannotUnderstand as exc:
            raise _Refused(_INVALID_ARGUMENT, str(exc)) from None

    def _respond(self, request: N_ACTION, context: PresentationContext, status: int, comment: str) -> None:
        response = N_ACTION()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = StorageCommitmentPushModel
        response.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        response.Status = status
        if comment:
            response.ErrorComment = comment[:_LONGEST_COMMENT]
        self._assoc.dimse.send_msg(response, context.context_id)

    def _send(self, report: ClaimedReport, context: PresentationContext) -> None:
        """Send the N-EVENT-REPORT request; its answer comes as a message of its own."""
        event_type, ds = information.make_report(
            report.transaction_uid, report.verdicts, self._service.config.node.ae_title
        )
        event = N_EVENT_REPORT()
        event.MessageID = next(self._numbers)
        event.AffectedSOPClassUID = StorageCommitmentPushModel
        event.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        event.EventTypeID = event_type
        event.EventInformation = information.encode(ds, UID(context.transfer_syntax[0]))
        self._unanswered[event.MessageID] = report.request_id
        self._assoc.dimse.send_msg(event, context.context_id)

    def _take_report(self, report: N_EVENT_REPORT, context: PresentationContext) -> None:
        """Record and answer the report of a destination that this node requested commitment of."""
        syntax, service = UID(context.transfer_syntax[0]), self._service
        response = N_EVENT_REPORT()
        response.MessageIDBeingRespondedTo = report.MessageID
        response.AffectedSOPClassUID = report.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = report.AffectedSOPInstanceUID
        response.Status = requesting.record_report(service.sessions, report.EventInformation, syntax, now=service.now)
        response.EventTypeID = report.EventTypeID
        self._assoc.dimse.send_msg(response, context.context_id)

    def _record_answer(self, response: N_EVENT_REPORT) -> None:
        request_id = self._unanswered.pop(response.MessageIDBeingRespondedTo, None)
        if request_id is None:
            return
        if response.Status != _SUCCESS:
            self._give_back(request_id, f"the requester answered the report with status 0x{response.Status:04X}")
            return
        with self._service.sessions.begin() as session:
            how = "over the association of the request"
            commitments.mark_sent(session, request_id, worker=self._worker, how=how, now=self._service.now())

    def _give_back(self, request_id: int, reason: str) -> None:
        service = self._service
        with service.sessions.begin() as session:
            commitments.give_back(session, request_id, worker=self._worker, reason=reason, now=service.now())
