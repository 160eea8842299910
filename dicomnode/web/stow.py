"""STOW-RS (PS3.18 10.5): parts of a body go piece by piece through the same ingest as C-STORE, with its guarantees.

An instance is reported as stored when it is durable. A body that breaks off costs the instance in which it did.
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
from dicomnode.web import dicom_json, media_types
from dicomnode.web.holdings import Holdings
from dicomnode.web.multipart import Parts, boundary_of

__all__ = ["SENDER", "add"]

SENDER = "STOW-RS"
"""What stands in place of an AE title for what came over the web."""

_DICOM = "application/dicom"
_UID = re.compile(r"[0-9.]{1,64}")
_LONGEST_META = 1 << 16
_BATCH = 1 << 20
_MOST_PARTS = 20_000
_CLASS, _INSTANCE = 0x00020002, 0x00020003
# PS3.18 table I.2-2 and PS3.7 C: failure reasons
_CANNOT_UNDERSTAND, _SOP_CLASS, _TRANSFER_SYNTAX = 0xC000, 0x0122, 0xC122


@dataclass(frozen=True)
class _Stored:
    """How one part fared; status 0: it is stored."""

    sop_class_uid: str
    sop_instance_uid: str
    status: int


class _Incoming:
    """One part on its way in: first its file meta information, then the data set."""

    def __init__(self, store: _Store, content_type: str) -> None:
        self._store, self._head = store, bytearray()
        self._reception: InstanceSink | None = None
        self._announced = StoreAnnouncement("", "", "")
        kind = content_type.partition(";")[0].strip().lower()
        self._failure = 0 if kind in (_DICOM, "") else _CANNOT_UNDERSTAND

    def write(self, piece: memoryview) -> None:
        if self._reception is not None:
            self._reception.write(piece)
        elif not self._failure:
            self._head += piece
            if len(self._head) >= _LONGEST_META:
                self._begin()

    def finish(self) -> None:
        if self._reception is None and not self._failure:
            self._begin()
        status = self._failure
        if self._reception is not None:
            status, _ = self._reception.finish()
        each = self._announced
        self._store.outcomes.append(_Stored(each.sop_class_uid, each.sop_instance_uid, status))

    def discard(self) -> None:
        """Leave nothing behind of a part that did not end."""
        if self._reception is not None:
            self._reception.discard()

    def _begin(self) -> None:
        try:
            self._announced, start = _announced(bytes(self._head), self._store.study_uid)
        except CannotUnderstand:
            self._failure = _CANNOT_UNDERSTAND
            return
        self._failure = _unwanted(self._announced)
        if not self._failure:
            self._reception = InstanceSink(self._store.ledger, self._store.limits, self._announced, self._store.sender)
            self._reception.write(memoryview(self._head)[start:])
        self._head = bytearray()


class _Store:
    """One request."""

    def __init__(self, ledger: Ledger, limits: SpoolConfig, sender: Sender, study_uid: str, boundary: bytes) -> None:
        self.ledger, self.limits, self.sender, self.study_uid = ledger, limits, sender, study_uid
        self.outcomes: list[_Stored] = []
        self._open: _Incoming | None = None
        self._parts = Parts(boundary, self._next)

    def write(self, piece: bytes) -> None:
        """The next piece of the body; returns when what it completes is durable."""
        self._parts.write(piece)

    def close(self) -> None:
        """The body has ended. Raises 400 when the message has not."""
        self.discard()
        if not self._parts.is_whole:
            kept = sum(not each.status for each in self.outcomes)
            raise HTTPException(
                400, f"the body ends before its last boundary; {kept} whole instances before are stored"
            )
        if not self.outcomes:
            raise HTTPException(400, "the body holds no instance")

    def discard(self) -> None:
        """Drop the part that has not ended."""
        if self._open is not None:
            self._open.discard()

    def _next(self, content_type: str) -> _Incoming:
        if len(self.outcomes) >= _MOST_PARTS:
            kept = sum(not each.status for each in self.outcomes)
            raise HTTPException(
                413,
                f"a body may have {_MOST_PARTS} parts; {kept} whole instances are stored: send the others in another",
            )
        self._open = _Incoming(self, content_type)
        return self._open


def add(
    routes: APIRouter,
    holdings: Holdings,
    config: Config,
    sessions: sessionmaker[Session],
    *,
    now: Callable[[], datetime],
    meters: Meters | None = None,
) -> None:
    """POST to /studies and to one study."""
    ledger = Ledger(config.spool_dir, sessions, now, meters)
    longest = int(config.web.max_store_gb * 1e9)

    async def store(request: Request) -> Response:
        media_types.accepts_json(request)
        boundary = boundary_of(request.headers.get("content-type", ""), _DICOM)
        _check_coding(request)
        length = request.headers.get("content-length", "0")
        if len(length) > 18 or not length.isdecimal() or int(length) > longest:
            raise _too_long(longest)
        sender = Sender(SENDER, request.client.host if request.client else "")
        incoming = _Store(ledger, config.spool, sender, request.path_params.get("study", ""), boundary)
        await _take(request, incoming, longest)
        return await run_in_threadpool(_answer, holdings, request, incoming.outcomes)

    for path in ("/studies", "/studies/{study}"):
        routes.post(path)(store)


async def _take(request: Request, incoming: _Store, longest: int) -> None:
    """The body in pieces large enough that changing threads for each costs nothing."""
    pending, total = bytearray(), 0
    try:
        async for piece in request.stream():
            pending += piece
            total += len(piece)
            if total > longest:
                raise _too_long(longest)
            if len(pending) >= _BATCH:
                await run_in_threadpool(incoming.write, bytes(pending))
                pending.clear()
        await run_in_threadpool(incoming.write, bytes(pending))
        await run_in_threadpool(incoming.close)
    except ClientDisconnect:
        raise HTTPException(400, "the client broke off") from None
    finally:
        await run_in_threadpool(incoming.discard)


def _answer(holdings: Holdings, request: Request, outcomes: Sequence[_Stored]) -> Response:
    """The Store Instances Response (PS3.18 table 10.5.3-1 and annex I)."""
    stored = [each for each in outcomes if each.status == 0]
    failed = [each for each in outcomes if each.status != 0]
    places = _places(holdings, [each.sop_instance_uid for each in stored])
    studies = sorted({place.study_uid for place in places.values()})
    nameless = [each for each in failed if not each.sop_instance_uid]
    found: dict[str, Any] = {
        "00081190": _element("UR", holdings.url(request, *studies) if len(studies) == 1 else None),
        "00081198": _sequence(_item(each, "00081197", "US", each.status) for each in failed if each.sop_instance_uid),
        "00081199": _sequence(
            _item(each, "00081190", "UR", holdings.url_of(request, place) if place else None)
            for each in stored
            for place in [places.get(each.sop_instance_uid)]
        ),
        "0008119A": _sequence({"00081197": _element("US", each.status)} for each in nameless),
    }
    told = {tag: element for tag, element in found.items() if element["vr"] != "SQ" or "Value" in element}
    return JSONResponse(told, _status(stored, failed), media_type=dicom_json.MEDIA_TYPE)


def _status(stored: Sequence[_Stored], failed: Sequence[_Stored]) -> int:
    if not failed:
        return 200
    if stored:
        return 202
    return 503 if all(each.status == OutOfSpace.dicom_status for each in failed) else 409


def _item(each: _Stored, tag: str, vr: str, value: str | int | None) -> dict[str, Any]:
    return {
        "00081150": _element("UI", each.sop_class_uid),
        "00081155": _element("UI", each.sop_instance_uid),
        tag: _element(vr, value),
    }


def _element(vr: str, value: str | int | None) -> dict[str, Any]:
    return {"vr": vr} if value is None else {"vr": vr, "Value": [value]}


def _sequence(items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": found} if (found := list(items)) else {"vr": "SQ"}


def _places(holdings: Holdings, uids: Sequence[str]) -> dict[str, StoredObject]:
    """Where instances can be had from now on, by their UIDs."""
    found: dict[str, StoredObject] = {}
    with holdings.readers() as session:
        for at in range(0, len(uids), 500):
            query = Query("IMAGE", {"SOPInstanceUID": "\\".join(uids[at : at + 500])})
            for match in catalogue.search(session, query):
                if match.stored is not None:
                    found[match.stored.sop_instance_uid] = match.stored
    return found


def _announced(head: bytes, study_uid: str) -> tuple[StoreAnnouncement, int]:
    """What a file's meta information says, and where its data set begins. Raises CannotUnderstand."""
    content = _Bytes(head)
    syntax, start = read_file_meta(content, len(head))
    uids = {_CLASS: "", _INSTANCE: ""}
    for element in walk(Window(content, 132, start), ExplicitVRLittleEndian):
        if element.tag in uids:
            value = head[132 + element.at : 132 + element.at + element.length]
            uids[element.tag] = value.decode("ascii", "replace").strip("\0 ")
    if not all(_UID.fullmatch(uid) for uid in uids.values()):
        raise CannotUnderstand("the file meta information names no SOP class or instance")
    return StoreAnnouncement(uids[_CLASS], uids[_INSTANCE], syntax, study_uid), start


def _unwanted(announced: StoreAnnouncement) -> int:
    """The failure reason of what cannot be taken whatever its content."""
    if announced.transfer_syntax_uid not in scp.TRANSFER_SYNTAXES:
        return _TRANSFER_SYNTAX
    return 0 if scp.is_storage(announced.sop_class_uid) else _SOP_CLASS


def _check_coding(request: Request) -> None:
    """Raises 415 for a body that is compressed (RFC 9110 8.4)."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise HTTPException(415, "the body must come without a Content-Encoding", {"Accept-Encoding": "identity"})


def _too_long(longest: int) -> HTTPException:
    return HTTPException(413, f"a body may be {longest} bytes long ([web] max_store_gb); send the study in parts")


class _Bytes:
    """The beginning of a file, as it is in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, at: int, count: int) -> bytes:
        return self._content[at : at + count]
