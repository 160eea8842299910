"""Query/Retrieve as SCP, patient and study root (PS3.4 C.4, C.6), for every application entity that may associate.

pynetdicom's own service encodes every data set anew and looks for a C-CANCEL in a thread that is absent here, so the
requests are served here: ``install`` puts this service before pynetdicom's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import build_context
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from sqlalchemy.orm import Session, sessionmaker

from db import catalogue
from db.catalogue import BadValue, Level, Query, StoredObject
from dicomnode.config import Config, Peer
from dicomnode.dimse.associations import association
from dicomnode.dimse.pynetdicom_adapter import accepted_context, hold_reactor, wrap_request_service
from dicomnode.errors import CannotUnderstand, IdentifierRefused, NodeError, NotAllowed, PeerError
from dicomnode.query import identifiers, retrieving
from dicomnode.query.identifiers import PATIENT_ROOT, STUDY_ROOT, Identifier
from dicomnode.query.retrieving import Tally

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

__all__ = ["QueryService", "install", "negotiate_extended", "supported_contexts"]

_log = logging.getLogger(__name__)

_SUCCESS, _CANCELLED, _PENDING, _PENDING_IN_PART = 0x0000, 0xFE00, 0xFF00, 0xFF01  # PS3.4 C.4.1.1.4
_UNABLE = 0xC000
_TOO_MANY, _UNKNOWN_DESTINATION = 0xA701, 0xA801  # PS3.4 C.4.2.1.5
_MOST_SUBOPERATIONS = 65535  # the largest count of VR US
_LONGEST_COMMENT = 64
_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
_MODELS: dict[type[Any], dict[UID, tuple[Level, ...]]] = {
    C_FIND: {
        StudyRootQueryRetrieveInformationModelFind: STUDY_ROOT,
        PatientRootQueryRetrieveInformationModelFind: PATIENT_ROOT,
    },
    C_GET: {
        StudyRootQueryRetrieveInformationModelGet: STUDY_ROOT,
        PatientRootQueryRetrieveInformationModelGet: PATIENT_ROOT,
    },
    C_MOVE: {
        StudyRootQueryRetrieveInformationModelMove: STUDY_ROOT,
        PatientRootQueryRetrieveInformationModelMove: PATIENT_ROOT,
    },
}
"""Information models with their levels, by the type of the message."""
# PS3.4 C.5.1.1.1: relational queries, combined date and time, fuzzy names; then time zones and a second model
_EXTENDED = (1, 1, 1, 0, 0)


class _RequesterLost(Exception):
    """The connection to the requester is lost, so no answer is sent."""


class _Cancelled(Exception):
    """A C-CANCEL arrived; ``tally``: state of the sub-operations at that moment."""

    def __init__(self, tally: Tally | None) -> None:
        super().__init__()
        self.tally = tally


@dataclass(frozen=True)
class QueryService:
    """Configuration and read-only database sessions that answer queries and retrievals."""

    config: Config
    readers: sessionmaker[Session]

    @property
    def root(self) -> Path:
        """Root folder of the spool."""
        return self.config.spool_dir

    @property
    def ae_title(self) -> str:
        """AE title from which matches can be retrieved."""
        return self.config.node.ae_title


def supported_contexts() -> list[PresentationContext]:
    """Return the query and retrieval contexts, accepted from every application entity that may associate."""
    return [build_context(model, _SYNTAXES) for models in _MODELS.values() for model in models]


def negotiate_extended(proposed: dict[UID, bytes]) -> dict[UID, bytes]:
    """Return the answer to SOP Class Extended Negotiation: the proposed options that the node supports."""
    answers = {
        model: bytes(a & b for a, b in zip(proposed.get(model, b""), _EXTENDED, strict=False))
        for model in _MODELS[C_FIND]
    }
    return {model: flags for model, flags in answers.items() if flags}


def install(assoc: Association, service: QueryService) -> None:
    """Serve the queries and retrievals of an association that has not started yet."""

    def serve(message: Any, context_id: int) -> bool:
        context = accepted_context(assoc, context_id)
        models = _MODELS.get(type(message), {})
        if context is None or context.abstract_syntax not in models or not message.is_valid_request:
            return False
        assoc.dimse.cancel_req = {}
        with hold_reactor(assoc):  # for the C-STOREs of a C-GET
            _Exchange(service, assoc, message, context).serve()
        assoc.dimse.cancel_req = {}
        return True

    wrap_request_service(assoc, serve)


class _Exchange:
    """One query or retrieval request and its responses."""

    def __init__(self, service: QueryService, assoc: Association, request: Any, context: PresentationContext) -> None:
        self.service, self.assoc, self.request, self.context = service, assoc, request, context
        self.syntax: UID = context.transfer_syntax[0]
        self.model = UID(context.abstract_syntax or "")

    def serve(self) -> None:
        """Serve the request; answer every failure unless the connection is lost."""
        serve: Callable[[], None] = {C_FIND: self.find, C_GET: self.get, C_MOVE: self.move}[type(self.request)]
        try:
            self.check_requester()
            serve()
        except _RequesterLost:
            return
        except _Cancelled as exc:
            self.respond(_CANCELLED, exc.tally, remaining=True)
        except NodeError as exc:
            _log.info("a query or retrieval was refused: %s", exc)
            self.respond(exc.dicom_status, comment=str(exc))
        except Exception as exc:  # its message may name a patient
            _log.error("a query or retrieval broke off with %s", type(exc).__name__)
            self.respond(_UNABLE, comment="the node could not answer")

    def check_requester(self) -> None:
        """Raise NotAllowed for a peer that gets de-identified copies only: a query would disclose patients."""
        title = self.assoc.requestor.primitive.calling_ae_title.strip()
        if any(peer.deidentify and peer.ae_title == title for peer in self.service.config.peers):
            raise NotAllowed("this peer gets de-identified copies only, and may not ask for what they were made of")

    def find(self) -> None:
        """Answer a C-FIND with one pending response for each match."""
        identifier = self.read_identifier()
        negotiated = negotiate_extended(self.assoc.requestor.sop_class_extended)
        query = _make_query(identifier, negotiated.get(self.model, b""))
        status = _PENDING_IN_PART if identifier.has_unknown_keys else _PENDING
        with self.service.readers() as session:
            for match in _find_matches(session, query):
                self.receive_pending()
                answer = identifiers.make_answer(identifier, match.attributes, self.service.ae_title)
                self.respond(status, identifier=identifiers.encode(answer, self.syntax))
        self.respond(_SUCCESS)

    def read_identifier(self) -> Identifier:
        """Return the identifier of the request. Raises IdentifierRefused or CannotUnderstand."""
        return identifiers.decode(self.request.Identifier, self.syntax, _MODELS[type(self.request)][self.model])

    def get(self) -> None:
        """Answer a C-GET: send the instances over the requester's association."""
        if (objects := self.find_objects()) is not None:
            tally = Tally(len(objects))
            self.transfer(tally, objects, self.assoc, None)
            self.respond(tally.status, tally)

    def move(self) -> None:
        """Answer a C-MOVE: send the instances to a configured peer, over associations of the node."""
        title = str(self.request.MoveDestination).strip()
        peer = next((peer for peer in self.service.config.peers if peer.ae_title == title), None)
        if peer is None:
            self.respond(_UNKNOWN_DESTINATION, comment="the move destination is not among our peers")
            return
        if peer.deidentify:
            self.respond(_UNKNOWN_DESTINATION, comment="the move destination gets de-identified copies only")
            return
        if (objects := self.find_objects()) is not None:
            tally = Tally(len(objects))
            for batch in retrieving.make_batches(objects):
                self.move_batch(tally, batch, peer)
            self.respond(tally.status, tally)

    def find_objects(self) -> list[StoredObject] | None:
        """Return the instances of the identifier, or None after answering that they are too many.

        Raises IdentifierRefused or CannotUnderstand.
        """
        identifier = self.read_identifier()
        with self.service.readers() as session:
            try:
                objects = _find_objects(session, identifier)
            except BadValue as exc:
                raise CannotUnderstand(str(exc)) from exc
        if len(objects) > _MOST_SUBOPERATIONS:
            self.respond(_TOO_MANY, comment="more instances than one retrieval can count")
            return None
        return objects

    def move_batch(self, tally: Tally, batch: Sequence[StoredObject], peer: Peer) -> None:
        """Send a batch over one association; where it fails or breaks, the rest of the batch counts as failed."""
        config, remaining_after = self.service.config, tally.remaining - len(batch)
        originator = self.assoc.requestor.primitive.calling_ae_title.strip(), self.request.MessageID
        try:
            with association(
                peer,
                retrieving.make_contexts(batch),
                calling_aet=config.node.ae_title,
                timeout_s=config.node.network_timeout_s,
                tls=config.node.tls,
            ) as assoc:
                self.transfer(tally, batch, assoc, originator)
        except PeerError as exc:
            _log.warning("C-MOVE to %s: %s", peer.name, exc)
        for stored in batch[len(batch) - (tally.remaining - remaining_after) :]:
            tally.add(stored, None)

    def transfer(
        self, tally: Tally, objects: Sequence[StoredObject], to: Association, originator: tuple[str, int] | None
    ) -> None:
        """Send the objects, with a pending response after each, until all are sent or the association ends."""
        for stored in objects:
            self.receive_pending(tally)
            if not to.is_established:
                return
            number = tally.completed + tally.warned + tally.failed
            status = retrieving.send(to, self.service.root, stored, number=number, move_originator=originator)
            tally.add(stored, status)
            if tally.remaining:
                self.respond(_PENDING, tally, remaining=True)

    def receive_pending(self, tally: Tally | None = None) -> None:
        """Receive messages that the requester has sent meanwhile. Raises _Cancelled or _RequesterLost."""
        if not self.assoc.dimse.receive_pending():
            raise _RequesterLost
        if self.assoc.dimse.cancel_req.pop(self.request.MessageID, None) is not None:
            raise _Cancelled(tally)

    def respond(
        self,
        status: int,
        tally: Tally | None = None,
        *,
        identifier: Any = None,
        remaining: bool = False,
        comment: str = "",
    ) -> None:
        """Send a response, with an Error Comment where ``comment`` is given."""
        response = type(self.request)()
        response.MessageIDBeingRespondedTo = self.request.MessageID
        response.AffectedSOPClassUID = self.request.AffectedSOPClassUID
        response.Status = status
        response.Identifier = identifier
        if comment:
            response.ErrorComment = comment[:_LONGEST_COMMENT]
        if tally is not None:
            _set_counts(response, tally, remaining)
            if status != _PENDING and tally.failures is not None:
                response.Identifier = identifiers.encode(tally.failures, self.syntax)
        self.assoc.dimse.send_msg(response, self.context.context_id)


def _set_counts(response: Any, tally: Tally, remaining: bool) -> None:
    """Set the counts of sub-operations: Remaining only while some remain, or after a cancel (PS3.4 C.4.2.1.6)."""
    if remaining:
        response.NumberOfRemainingSuboperations = tally.remaining
    response.NumberOfCompletedSuboperations = tally.completed
    response.NumberOfFailedSuboperations = tally.failed
    response.NumberOfWarningSuboperations = tally.warned


def _make_query(identifier: Identifier, negotiated: bytes) -> Query:
    """Return the catalogue's query for an identifier.

    Raises IdentifierRefused where, without relational queries, the unique key of a higher level is missing
    (PS3.4 C.4.1.2.2.1).
    """
    flags = [bool(flag) for flag in negotiated]
    relational, combined, fuzzy = (flags + [False] * 3)[:3]
    if not relational and identifier.levels is PATIENT_ROOT and identifier.level != "PATIENT":
        identifiers.require_patient(identifier)
    if not relational and identifier.level in ("SERIES", "IMAGE"):
        identifiers.require_uids(identifier, "STUDY")
    if not relational and identifier.level == "IMAGE":
        identifiers.require_uids(identifier, "SERIES")
    return Query(identifier.level, identifier.keys, frozenset(identifier.keys), combined=combined, fuzzy=fuzzy)


def _find_matches(session: Session, query: Query) -> Iterator[catalogue.Match]:
    try:
        yield from catalogue.scan(session, query)
    except BadValue as exc:
        raise CannotUnderstand(str(exc)) from exc


def _find_objects(session: Session, identifier: Identifier) -> list[StoredObject]:
    """Return the instances of one or several entities of the level, below one of each level above (PS3.4 C.4.2.2.1)."""
    patient = identifiers.require_patient(identifier) if identifier.levels is PATIENT_ROOT else {}
    if identifier.level == "PATIENT":
        _check_patient(session, patient)
        return catalogue.find_objects(session, patient=patient)
    studies = identifiers.require_uids(identifier, "STUDY", several=identifier.level == "STUDY")
    series: tuple[str, ...] = ()
    if identifier.level != "STUDY":
        series = identifiers.require_uids(identifier, "SERIES", several=identifier.level == "SERIES")
    images = identifiers.require_uids(identifier, "IMAGE", several=True) if identifier.level == "IMAGE" else ()
    study_uid = "\\".join(studies)  # a list of UIDs is matched as one value
    return catalogue.find_objects(
        session, study_uid=study_uid, series_uids=series, sop_instance_uids=images, patient=patient
    )


def _check_patient(session: Session, patient: dict[str, str]) -> None:
    """Raise IdentifierRefused where the keys match several patients: their images must not be mixed."""
    if catalogue.count(session, Query("PATIENT", patient)) > 1:
        raise IdentifierRefused("PatientID is of several issuers: name one in IssuerOfPatientID, or studies")
