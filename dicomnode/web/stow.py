"""STOW-RS (PS3.18 10.5): the parts of a body go piece by piece through the ingest of C-STORE, with its guarantees.

An instance is reported as stored when it is durable. A body that breaks off loses only its last, incomplete instance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from db import catalogue
from db.catalogue import Query, StoredObject
from db.studies import Sender
from dicomnode.config import Config
from dicomnode.config.spool import SpoolConfig
from dicomnode.datasets.encoding import Window, read_file_meta, walk
from dicomnode.errors import CannotUnderstand, OutOfSpace
from dicomnode.ingest import scp
from dicomnode.ingest.group_commit import Ledger
from dicomnode.ingest.ingest import InstanceSink, StoreAnnouncement
from dicomnode.monitoring.meters import Meters
from dicomnode.web import media_types, person
from dicomnode.web.holdings import Holdings
from dicomnode.web.multipart import MultipartReader, parse_boundary

__all__ = ["MOST_PARTS", "SENDER", "add_routes"]

SENDER = "STOW-RS"
"""Sender of instances that were received over the web, in place of an AE title."""

MOST_PARTS = 20_000
"""Greatest number of parts of a body; the instances before a further one are stored."""

_UID = re.compile(r"[0-9.]{1,64}")
_MOST_META_BYTES = 1 << 16
_BATCH_BYTES = 1 << 20
_CLASS, _INSTANCE = 0x00020002, 0x00020003
# PS3.18 table I.2-2 and PS3.7 C: failure reasons
_CANNOT_UNDERSTAND, _SOP_CLASS, _TRANSFER_SYNTAX = 0xC000, 0x0122, 0xC122


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one part; status 0: stored."""

    sop_class_uid: str
    sop_instance_uid: str
    status: int


class _IncomingInstance:
    """Receiver of one part: first its file meta information, then the data set."""

    def __init__(self, store: _StoreRequest, content_type: str) -> None:
        self._store, self._head = store, bytearray()
        self._reception: InstanceSink | None = None
        self._announced = StoreAnnouncement("", "", "")
        kind = content_type.partition(";")[0].strip().lower()
        self._failure = 0 if kind in (media_types.DICOM, "") else _CANNOT_UNDERSTAND

    def write(self, piece: memoryview) -> None:
        if self._reception is not None:
            self._reception.write(piece)
        elif not self._failure:
            self._head += piece
            if len(self._head) >= _MOST_META_BYTES:
                self._begin()

    def finish(self) -> None:
        if self._reception is None and not self._failure:
            self._begin()
        status = self._failure
        if self._reception is not None:
            status, _ = self._reception.finish()
        each = self._announced
        self._store.outcomes.append(_Outcome(each.sop_class_uid, each.sop_instance_uid, status))

    def discard(self) -> None:
        """Discard an incomplete part."""
        if self._reception is not None:
            self._reception.discard()

    def _begin(self) -> None:
        try:
            self._announced, start = _parse_file_meta(bytes(self._head), self._store.study_uid)
        except CannotUnderstand:
            self._failure = _CANNOT_UNDERSTAND
            return
        self._failure = _refusal_reason(self._announced)
        if not self._failure:
            self._reception = InstanceSink(self._store.ledger, self._store.limits, self._announced, self._store.sender)
            self._reception.write(memoryview(self._head)[start:])
        self._head = bytearray()


class _StoreRequest:
    """Receiver of the body of one request."""

    def __init__(self, ledger: Ledger, limits: SpoolConfig, sender: Sender, study_uid: str, boundary: bytes) -> None:
        self.ledger, self.limits, self.sender, self.study_uid = ledger, limits, sender, study_uid
        self.outcomes: list[_Outcome] = []
        self._open: _IncomingInstance | None = None
        self._parts = MultipartReader(boundary, self._next)

    def write(self, piece: bytes) -> None:
        """Read the next piece of the body; returns when the instances that it completes are durable."""
        self._parts.write(piece)

    def close(self) -> None:
        """Check the end of the body. Raises 400 when the message is incomplete or has no instance."""
        self.discard()
        if not self._parts.is_complete:
            stored = sum(not each.status for each in self.outcomes)
            raise HTTPException(
                400, f"the body ends before its last boundary; {stored} whole instances before are stored"
            )
        if not self.outcomes:
            raise HTTPException(400, "the body holds no instance")

    def discard(self) -> None:
        """Discard the incomplete part."""
        if self._open is not None:
            self._open.discard()

    def _next(self, content_type: str) -> _IncomingInstance:
        if len(self.outcomes) >= MOST_PARTS:
            stored = sum(not each.status for each in self.outcomes)
            raise HTTPException(
                413,
                f"a body may have {MOST_PARTS} parts; {stored} whole instances are stored: send the others in another",
            )
        self._open = _IncomingInstance(self, content_type)
        return self._open


def add_routes(
    routes: APIRouter,
    holdings: Holdings,
    config: Config,
    sessions: sessionmaker[Session],
    *,
    now: Callable[[], datetime],
    meters: Meters | None = None,
) -> None:
    """Add POST to /studies and to one study."""
    ledger = Ledger(config.spool_dir, sessions, now, meters)
    longest = int(config.web.max_store_gb * 1e9)

    async def store(request: Request) -> Response:
        media_types.require_json_accepted(request)
        boundary = parse_boundary(request, media_types.DICOM)
        _require_identity_coding(request)
        length = request.headers.get("content-length", "0")
        if len(length) > 18 or not length.isdecimal() or int(length) > longest:
            raise _too_long_error(longest)
        sender = Sender(SENDER, request.client.host if request.client else "", person.find_account())
        incoming = _StoreRequest(ledger, config.spool, sender, request.path_params.get("study", ""), boundary)
        await _read_body(request, incoming, longest)
        return await run_in_threadpool(_store_response, holdings, request, incoming.outcomes)

    for path in ("/studies", "/studies/{study}"):
        routes.post(path)(store)


async def _read_body(request: Request, incoming: _StoreRequest, longest: int) -> None:
    """Read the body in pieces, each large enough for a change of threads."""
    pending, total = bytearray(), 0
    try:
        async for piece in request.stream():
            pending += piece
            total += len(piece)
            if total > longest:
                raise _too_long_error(longest)
            if len(pending) >= _BATCH_BYTES:
                await run_in_threadpool(incoming.write, bytes(pending))
                pending.clear()
        await run_in_threadpool(incoming.write, bytes(pending))
        await run_in_threadpool(incoming.close)
    except ClientDisconnect:
        raise HTTPException(400, "the client closed the connection before the end of the body") from None
    finally:
        await run_in_threadpool(incoming.discard)


def _store_response(holdings: Holdings, request: Request, outcomes: Sequence[_Outcome]) -> Response:
    """Return the Store Instances Response (PS3.18 table 10.5.3-1 and annex I)."""
    stored = [each for each in outcomes if each.status == 0]
    failed = [each for each in outcomes if each.status != 0]
    places = _find_stored(holdings, [each.sop_instance_uid for each in stored])
    studies = sorted({place.study_uid for place in places.values()})
    unidentified = [each for each in failed if not each.sop_instance_uid]
    found: dict[str, Any] = {
        "00081190": _element("UR", holdings.url(request, *studies) if len(studies) == 1 else None),
        "00081198": _sequence(_item(each, "00081197", "US", each.status) for each in failed if each.sop_instance_uid),
        "00081199": _sequence(
            _item(each, "00081190", "UR", holdings.instance_url(request, place) if place else None)
            for each in stored
            for place in [places.get(each.sop_instance_uid)]
        ),
        "0008119A": _sequence({"00081197": _element("US", each.status)} for each in unidentified),
    }
    response = {tag: element for tag, element in found.items() if element["vr"] != "SQ" or "Value" in element}
    return JSONResponse(response, _status(stored, failed), media_type=media_types.DICOM_JSON)


def _status(stored: Sequence[_Outcome], failed: Sequence[_Outcome]) -> int:
    if not failed:
        return 200
    if stored:
        return 202
    return 503 if all(each.status == OutOfSpace.dicom_status for each in failed) else 409


def _item(each: _Outcome, tag: str, vr: str, value: str | int | None) -> dict[str, Any]:
    return {
        "00081150": _element("UI", each.sop_class_uid),
        "00081155": _element("UI", each.sop_instance_uid),
        tag: _element(vr, value),
    }


def _element(vr: str, value: str | int | None) -> dict[str, Any]:
    return {"vr": vr} if value is None else {"vr": vr, "Value": [value]}


def _sequence(items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": found} if (found := list(items)) else {"vr": "SQ"}


def _find_stored(holdings: Holdings, uids: Sequence[str]) -> dict[str, StoredObject]:
    """Find stored instances by their UIDs."""
    found: dict[str, StoredObject] = {}
    with holdings.readers() as session:
        for at in range(0, len(uids), 500):
            query = Query("IMAGE", {"SOPInstanceUID": "\\".join(uids[at : at + 500])})
            for match in catalogue.search(session, query):
                if match.stored is not None:
                    found[match.stored.sop_instance_uid] = match.stored
    return found


def _parse_file_meta(head: bytes, study_uid: str) -> tuple[StoreAnnouncement, int]:
    """Parse a file's meta information. Returns it with the offset of the data set. Raises CannotUnderstand."""
    content = _MemoryFile(head)
    syntax, start = read_file_meta(content, len(head))
    uids = {_CLASS: "", _INSTANCE: ""}
    for element in walk(Window(content, 132, start), ExplicitVRLittleEndian):
        if element.tag in uids:
            value = head[132 + element.at : 132 + element.at + element.length]
            uids[element.tag] = value.decode("ascii", "replace").strip("\0 ")
    if not all(_UID.fullmatch(uid) for uid in uids.values()):
        raise CannotUnderstand("the file meta information names no SOP class or instance")
    return StoreAnnouncement(uids[_CLASS], uids[_INSTANCE], syntax, study_uid), start


def _refusal_reason(announced: StoreAnnouncement) -> int:
    """Return the failure reason of an unsupported transfer syntax or SOP class, else 0."""
    if announced.transfer_syntax_uid not in scp.TRANSFER_SYNTAXES:
        return _TRANSFER_SYNTAX
    return 0 if scp.is_storage(announced.sop_class_uid) else _SOP_CLASS


def _require_identity_coding(request: Request) -> None:
    """Raise 415 for a compressed body (RFC 9110 8.4)."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise HTTPException(415, "the body must come without a Content-Encoding", {"Accept-Encoding": "identity"})


def _too_long_error(longest: int) -> HTTPException:
    return HTTPException(413, f"a body may be {longest} bytes long ([web] max_store_gb); send the study in parts")


class _MemoryFile:
    """The beginning of a file, in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, at: int, count: int) -> bytes:
        return self._content[at : at + count]
