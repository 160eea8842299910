"""Query/Retrieve as SCP, patient and study root (PS3.4 C.4, C.6): what the node holds, for who may send to it.

pynetdicom's own service encodes every data set anew and looks for a C-CANCEL in a thread that we do not have, so the
requests are served here: ``take_requests`` puts this before pynetdicom's services.
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
from dicomnode.errors import CannotUnderstand, IdentifierRefused, NodeError, NotAllowed, PeerError
from dicomnode.query import identifiers, retrieving
from dicomnode.query.identifiers import PATIENT_ROOT, STUDY_ROOT, Asked
from dicomnode.query.retrieving import Tally

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

__all__ = ["Service", "extended", "supported_contexts", "take_requests"]

_log = logging.getLogger(__name__)

_SUCCESS, _CANCELLED, _PENDING, _PENDING_IN_PART = 0x0000, 0xFE00, 0xFF00, 0xFF01  # PS3.4 C.4.1.1.4
_UNABLE = 0xC000
_TOO_MANY, _UNKNOWN_DESTINATION = 0xA701, 0xA801  # PS3.4 C.4.2.1.5
_MOST_SUBOPERATIONS = 65535  # what a count of VR US can say
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
"""By message, the information models with their levels."""
# PS3.4 C.5.1.1.1: relational queries, combined date and time, fuzzy names; then time zones and a second model
_EXTENDED = (1, 1, 1, 0, 0)


class _Lost(Exception):
    """The requester is gone: nobody waits for an answer."""


class _Cancelled(Exception):
    """A C-CANCEL came; ``tally``: how far the sub-operations were."""

    def __init__(self, tally: Tally | None) -> None:
        super().__init__()
        self.tally = tally


@dataclass(frozen=True)
class Service:
    """What is needed to answer: the configuration, and sessions that only read."""

    config: Config
    readers: sessionmaker[Session]

    @property
    def root(self) -> Path:
        """Where the files are."""
        return self.config.spool_dir

    @property
    def ae_title(self) -> str:
        """Who has what is found."""
        return self.config.node.ae_title


def supported_contexts() -> list[PresentationContext]:
    """Those that are accepted from everybody who may associate."""
    return [build_context(model, _SYNTAXES) for models in _MODELS.values() for model in models]


def extended(proposed: dict[UID, bytes]) -> dict[UID, bytes]:
    """The answer to SOP Class Extended Negotiation: what was proposed and is done here."""
    answers = {
        model: bytes(a & b for a, b in zip(proposed.get(model, b""), _EXTENDED, strict=False))
        for model in _MODELS[C_FIND]
    }
    return {model: flags for model, flags in answers.items() if flags}


def take_requests(assoc: Association, service: Service) -> None:
    """Serve the queries and retrievals of an association that has not started yet."""
    others = assoc._serve_request

    def serve(message: Any, context_id: int) -> None:
        context = assoc._accepted_cx.get(context_id)
        models = _MODELS.get(type(message), {})
        if context is None or context.abstract_syntax not in models or not message.is_valid_request:
            others(message, context_id)
            return
        assoc.dimse.cancel_req = {}
        assoc._is_paused = True  # pynetdicom's send_c_store waits until its reactor stands still: it does, in here
        _Exchange(service, assoc, message, context).serve()
        assoc._is_paused = False
        assoc.dimse.cancel_req = {}

    assoc._serve_request = serve


class _Exchange:
    """One request and its responses."""

    def __init__(self, service: Service, assoc: Association, request: Any, context: PresentationContext) -> None:
        self.service, self.assoc, self.request, self.context = service, assoc, request, context
        self.syntax: UID = context.transfer_syntax[0]
        self.model = UID(context.abstract_syntax or "")

    def serve(self) -> None:
        """The door: whatever happens, the requester is answered if it is still there."""
        serve: Callable[[], None] = {C_FIND: self.find, C_GET: self.get, C_MOVE: self.move}[type(self.request)]
        try:
            self.check_requester()
            serve()
        except _Lost:
            return
        except _Cancelled as exc:
            self.respond(_CANCELLED, exc.tally, remaining=True)
        except NodeError as exc:
            _log.info("a query or retrieval was refused: %s", exc)
            self.respond(exc.dicom_status, comment=str(exc))
        except Exception as exc:  # its own words may name a patient
            _log.error("a query or retrieval broke off with %s", type(exc).__name__)
            self.respond(_UNABLE, comment="the node could not answer")

    def check_requester(self) -> None:
        """Raises NotAllowed for a peer that gets de-identified copies only: it learns of no patient by asking."""
        title = self.assoc.requestor.primitive.calling_ae_title.strip()
        if any(peer.deidentify and peer.ae_title == title for peer in self.service.config.peers):
            raise NotAllowed("this peer gets de-identified copies only, and may not ask for what they were made of")

    def find(self) -> None:
        """C-FIND: one pending response for each match."""
        asked = self.asked()
        negotiated = extended(self.assoc.requestor.sop_class_extended)
        query = _query(asked, negotiated.get(self.model, b""))
        status = _PENDING_IN_PART if asked.further else _PENDING
        with self.service.readers() as session:
            for match in _matches(session, query):
                self.look()
                told = identifiers.answer(asked, match.attributes, self.service.ae_title)
                self.respond(status, identifier=identifiers.encoded(told, self.syntax))
        self.respond(_SUCCESS)

    def asked(self) -> Asked:
        """The identifier of the request. Raises IdentifierRefused or CannotUnderstand."""
        return identifiers.read(self.request.Identifier, self.syntax, _MODELS[type(self.request)][self.model])

    def get(self) -> None:
        """C-GET: back over the association on which it was asked."""
        if (objects := self.objects()) is not None:
            tally = Tally(len(objects))
            self.transfer(tally, objects, self.assoc, None)
            self.respond(tally.status, tally)

    def move(self) -> None:
        """C-MOVE: to a configured peer, over associations of our own."""
        title = str(self.request.MoveDestination).strip()
        peer = next((peer for peer in self.service.config.peers if peer.ae_title == title), None)
        if peer is None:
            self.respond(_UNKNOWN_DESTINATION, comment="the move destination is not among our peers")
            return
        if peer.deidentify:
            self.respond(_UNKNOWN_DESTINATION, comment="the move destination gets de-identified copies only")
            return
        if (objects := self.objects()) is not None:
            tally = Tally(len(objects))
            for batch in retrieving.batches(objects):
                self.move_batch(tally, batch, peer)
            self.respond(tally.status, tally)

    def objects(self) -> list[StoredObject] | None:
        """What the identifier names; None where it was too much, which is answered. Raises IdentifierRefused."""
        asked = self.asked()
        with self.service.readers() as session:
            try:
                found = _objects(session, asked)
            except BadValue as exc:
                raise CannotUnderstand(str(exc)) from exc
        if len(found) > _MOST_SUBOPERATIONS:
            self.respond(_TOO_MANY, comment="more instances than one retrieval can count")
            return None
        return found

    def move_batch(self, tally: Tally, batch: Sequence[StoredObject], peer: Peer) -> None:
        """A batch over one association; where it breaks or never stood, what is left of the batch has failed."""
        config, left = self.service.config, tally.remaining - len(batch)
        originator = self.assoc.requestor.primitive.calling_ae_title.strip(), self.request.MessageID
        try:
            with association(
                peer,
                retrieving.contexts(batch),
                calling_aet=config.node.ae_title,
                timeout_s=config.node.network_timeout_s,
                tls=config.node.tls,
            ) as assoc:
                self.transfer(tally, batch, assoc, originator)
        except PeerError as exc:
            _log.warning("C-MOVE to %s: %s", peer.name, exc)
        for stored in batch[len(batch) - (tally.remaining - left) :]:
            tally.add(stored, None)

    def transfer(
        self, tally: Tally, objects: Sequence[StoredObject], to: Association, originator: tuple[str, int] | None
    ) -> None:
        """Send one after the other and tell how far it is, until all are sent or the way is lost."""
        for stored in objects:
            self.look(tally)
            if not to.is_established:
                return
            number = tally.completed + tally.warned + tally.failed
            status = retrieving.send(to, self.service.root, stored, number=number, move_originator=originator)
            tally.add(stored, status)
            if tally.remaining:
                self.respond(_PENDING, tally, remaining=True)

    def look(self, tally: Tally | None = None) -> None:
        """See what the requester has sent meanwhile. Raises _Cancelled or _Lost."""
        if not self.assoc.dimse.look():
            raise _Lost
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
        """Send a response, with an Error Comment where something is wrong."""
        response = type(self.request)()
        response.MessageIDBeingRespondedTo = self.request.MessageID
        response.AffectedSOPClassUID = self.request.AffectedSOPClassUID
        response.Status = status
        response.Identifier = identifier
        if comment:
            response.ErrorComment = comment[:_LONGEST_COMMENT]
        if tally is not None:
            _count(response, tally, remaining)
            if status != _PENDING and tally.failures is not None:
                response.Identifier = identifiers.encoded(tally.failures, self.syntax)
        self.assoc.dimse.send_msg(response, self.context.context_id)


def _count(response: Any, tally: Tally, remaining: bool) -> None:
    """Remaining is told while something is left to do, and when it was cancelled (PS3.4 C.4.2.1.6)."""
    if remaining:
        response.NumberOfRemainingSuboperations = tally.remaining
    response.NumberOfCompletedSuboperations = tally.completed
    response.NumberOfFailedSuboperations = tally.failed
    response.NumberOfWarningSuboperations = tally.warned


def _query(asked: Asked, negotiated: bytes) -> Query:
    """Without relational queries the unique keys of the levels above are needed (PS3.4 C.4.1.2.2.1)."""
    flags = [bool(flag) for flag in negotiated]
    relational, combined, fuzzy = (flags + [False] * 3)[:3]
    if not relational and asked.levels is PATIENT_ROOT and asked.level != "PATIENT":
        identifiers.patient(asked)
    if not relational and asked.level in ("SERIES", "IMAGE"):
        identifiers.unique(asked, "STUDY")
    if not relational and asked.level == "IMAGE":
        identifiers.unique(asked, "SERIES")
    return Query(asked.level, asked.keys, frozenset(asked.keys), combined=combined, fuzzy=fuzzy)


def _matches(session: Session, query: Query) -> Iterator[catalogue.Match]:
    try:
        yield from catalogue.scan(session, query)
    except BadValue as exc:
        raise CannotUnderstand(str(exc)) from exc


def _objects(session: Session, asked: Asked) -> list[StoredObject]:
    """One or several of the level, one of each above (PS3.4 C.4.2.2.1)."""
    patient = identifiers.patient(asked) if asked.levels is PATIENT_ROOT else {}
    if asked.level == "PATIENT":
        _check_patient(session, patient)
        return catalogue.find_objects(session, patient=patient)
    studies = identifiers.unique(asked, "STUDY", several=asked.level == "STUDY")
    series = identifiers.unique(asked, "SERIES", several=asked.level == "SERIES") if asked.level != "STUDY" else ()
    images = identifiers.unique(asked, "IMAGE", several=True) if asked.level == "IMAGE" else ()
    together = "\\".join(studies)  # a list of UIDs is matched as one
    return catalogue.find_objects(
        session, study_uid=together, series_uids=series, sop_instance_uids=images, patient=patient
    )


def _check_patient(session: Session, patient: dict[str, str]) -> None:
    """Raises IdentifierRefused where the keys are those of several patients: nobody gets another's images with his."""
    if catalogue.count(session, Query("PATIENT", patient)) > 1:
        raise IdentifierRefused("PatientID is of several issuers: name one in IssuerOfPatientID, or studies")
