"""UPS-RS (PS3.18 chapter 11): the worklist by HTTP. A refusal has the status of its table, and a Warning header."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from db import engine as engines
from db import workitems
from db.states import WorkitemState
from dicomnode import uids
from dicomnode.config import Config
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import WorkitemRefused
from dicomnode.web import media_types, methods, person, query_parameters
from dicomnode.web.holdings import base_url, require_uid
from dicomnode.web.query_parameters import SearchParameters
from dicomnode.worklist import elements as dicom
from dicomnode.worklist import matching, payload, subscribing, transactions

__all__ = ["Worklist", "add_routes", "add_subscriptions", "parse_ae_title"]

Result = TypeVar("Result")

_HTTP_STATUS = {
    0x0106: 400, 0x0111: 409, 0x0120: 400, 0x0121: 400, 0x0213: 503, 0xC300: 409, 0xC301: 400, 0xC302: 409,
    0xC303: 409, 0xC304: 409, 0xC307: 404, 0xC308: 404, 0xC309: 400, 0xC310: 409, 0xC311: 409,
}  # fmt: skip
"""HTTP status by the status of PS3.4 and PS3.7 (PS3.18 11.4.3.1, 11.6.3.1, 11.7.3.1, 11.8.3.1)."""
_MOST_REQUESTER = 64
_RETURNED = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "ScheduledProcedureStepPriority",
    "ScheduledProcedureStepModificationDateTime", "ProcedureStepLabel", "WorklistLabel",
    "ScheduledProcessingParametersSequence", "ScheduledStationNameCodeSequence", "ScheduledStationClassCodeSequence",
    "ScheduledStationGeographicLocationCodeSequence", "ScheduledHumanPerformersSequence",
    "ScheduledProcedureStepStartDateTime", "ExpectedCompletionDateTime", "ScheduledProcedureStepExpirationDateTime",
    "ScheduledWorkitemCodeSequence", "CommentsOnTheScheduledProcedureStep", "InputReadinessState",
    "InputInformationSequence", "StudyInstanceUID", "OutputDestinationSequence", "PatientName", "PatientID",
    "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AdmissionID", "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "ReferencedRequestSequence",
    "ReplacedProcedureStepSequence", "ProcedureStepState", "ProcedureStepProgressInformationSequence",
)  # fmt: skip
"""What a match states without being asked (Return Key Types 1 to 2 of PS3.4 table CC.2.5-3)."""


class Worklist:
    """The worklist of a node, for requests: each writing one is a transaction of its own."""

    def __init__(
        self, config: Config, sessions: sessionmaker[Session], prefix: str, now: Callable[[], datetime]
    ) -> None:
        self.config, self.prefix, self._sessions, self._now = config, prefix, sessions, now
        self.readers = engines.readers(sessions.kw["bind"])

    def write(self, change: Callable[[Session, datetime], Result]) -> Result:
        """Run a change in a transaction. Raises HTTPException for what is refused."""
        try:
            with self._sessions.begin() as session:
                return change(session, self._now())
        except WorkitemRefused as refusal:
            raise refused(refusal) from None

    def url(self, request: Request, uid: str) -> str:
        """Return the address of a workitem."""
        return f"{base_url(request)}{self.prefix}/workitems/{uid}"


def add_routes(routes: APIRouter, worklist: Worklist) -> None:
    """Add the transactions on workitems (PS3.18 table 11.1.1-1); some clients append who asks to the path."""
    methods.add_get(routes, "/workitems", lambda request: _search(worklist, request))
    methods.add_get(routes, "/workitems/{workitem}", lambda request: _retrieve(worklist, request))
    _add(routes, "POST", "/workitems", lambda request, body: _create(worklist, request, body))
    _add(routes, "POST", "/workitems/{workitem}", lambda request, body: _update(worklist, request, body))
    for end in ("", "/{requester}"):
        _add(routes, "PUT", f"/workitems/{{workitem}}/state{end}", lambda *sent: _change_state(worklist, *sent))
        _add(
            routes, "POST", f"/workitems/{{workitem}}/cancelrequest{end}",
            lambda *sent: _request_cancellation(worklist, *sent),
        )  # fmt: skip


def add_subscriptions(routes: APIRouter, worklist: Worklist) -> None:
    """Add the transactions on subscriptions (PS3.18 11.10 to 11.12)."""
    path = "/workitems/{workitem}/subscribers/{ae_title}"
    _add(routes, "POST", path, lambda request, body: _subscribe(worklist, request))
    _add(routes, "DELETE", path, lambda request, body: _unsubscribe(worklist, request))
    _add(routes, "POST", f"{path}/suspend", lambda request, body: _suspend(worklist, request))


def refused(refusal: WorkitemRefused) -> HTTPException:
    """Return the answer to a request that is refused, with its reason in body and Warning header."""
    return HTTPException(
        _HTTP_STATUS[refusal.status], f"{refusal} (status {refusal.status:04X})", warning(str(refusal))
    )


def warning(sentence: str) -> dict[str, str]:
    """Return the Warning header of a sentence (PS3.18 8.4.1.2)."""
    printable = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "?" for c in sentence)
    return {"Warning": f'299 dicomnode: "{printable}"'}


def parse_ae_title(text: str) -> str:
    """Return the AE title of a subscriber. Raises 400 for what is none (PS3.5 6.2)."""
    title = text.strip(" ")
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise HTTPException(400, "an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


def target_uid(request: Request) -> str:
    """Return the UID of the request's workitem. Raises 404 for what is none."""
    return require_uid(request.path_params["workitem"])


def _add(routes: APIRouter, method: str, path: str, answer: Callable[[Request, bytes], Response]) -> None:
    """Add a transaction whose request may have a body of limited length."""

    async def endpoint(request: Request) -> Response:
        body = await _read_body(request)
        return await run_in_threadpool(answer, request, body)

    routes.add_api_route(path, endpoint, methods=[method])


async def _read_body(request: Request) -> bytes:
    """Read a body. Raises 413 for one that is too long, 415 for one that is not DICOM JSON."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > payload.MOST_BYTES:
                raise HTTPException(413, f"a body may be {payload.MOST_BYTES} bytes long")
    except ClientDisconnect:
        raise HTTPException(400, "the client closed the connection before the end of the body") from None
    kind = media_types.parse_content_type(request)[0]
    if body and kind not in (media_types.DICOM_JSON, "application/json"):
        header = {"Accept": media_types.DICOM_JSON}
        raise HTTPException(415, f"the body must be {media_types.DICOM_JSON}", header)
    return bytes(body)


def _parse(body: bytes, *, may_be_empty: bool = False) -> Elements:
    if may_be_empty and not body.strip():
        return {}
    try:
        return payload.parse(body)
    except WorkitemRefused as refusal:
        raise refused(refusal) from None


def _create(worklist: Worklist, request: Request, body: bytes) -> Response:
    data_set = _parse(body)
    uid_text = _query_uid(request, "workitem", "affectedsopinstanceuid") or dicom.text(data_set, "SOPInstanceUID")
    uid = require_uid(uid_text) if uid_text else str(uids.derive("workitem", uuid.uuid4().hex))
    most, who = worklist.config.worklist.most_workitems, _requester(request)
    made = worklist.write(
        lambda session, now: transactions.create(session, uid, data_set, most=most, who=who, now=now)
    )  # fmt: skip
    where = worklist.url(request, made.uid)
    modified = warning("The Workitem was created with modifications.") if made.is_modified else {}
    return Response(None, 201, {"Location": where, "Content-Location": where} | modified)


def _retrieve(worklist: Worklist, request: Request) -> Response:
    media_types.require_json_accepted(request)
    uid = target_uid(request)
    try:
        with worklist.readers() as session:
            found = transactions.retrieve(session, uid)
    except WorkitemRefused as refusal:
        raise refused(refusal) from None
    return _json([found])


def _update(worklist: Worklist, request: Request, body: bytes) -> Response:
    uid, data_set = target_uid(request), _parse(body)
    transaction_uid = _query_uid(request, "transaction-uid", "transaction", "transactionuid")
    worklist.write(lambda session, now: transactions.update(session, uid, data_set, transaction_uid, now))
    return Response(None, 200, {"Content-Location": worklist.url(request, uid)})


def _change_state(worklist: Worklist, request: Request, body: bytes) -> Response:
    uid, data_set, who = target_uid(request), _parse(body), _requester(request)
    already = worklist.write(lambda session, now: transactions.change_state(session, uid, data_set, who=who, now=now))
    return Response(None, 200, warning(already) if already else None)


def _request_cancellation(worklist: Worklist, request: Request, body: bytes) -> Response:
    uid, data_set, who = target_uid(request), _parse(body, may_be_empty=True), _requester(request)
    already = worklist.write(
        lambda session, now: transactions.request_cancellation(session, uid, data_set, who=who, now=now)
    )  # fmt: skip
    return Response(None, 202, warning(already) if already else None)


def _search(worklist: Worklist, request: Request) -> Response:
    media_types.require_json_accepted(request)
    parameters = query_parameters.parse_worklist_search(request)
    try:
        matching.check_keys(parameters.keys)
    except WorkitemRefused as refusal:
        raise refused(refusal) from None
    with worklist.readers() as session:
        found = _find_matches(session, parameters)
    headers = query_parameters.warning_header(request, parameters, more=len(found) > parameters.limit)
    page = found[: parameters.limit]
    if not page:
        return Response(None, 204, headers)
    if parameters.everything:
        return _json(page, headers)
    names = (*_RETURNED, *(name.partition(".")[0] for name in (*parameters.keys, *parameters.fields)))
    tags = {dicom.tag(name) for name in names}
    return _json([{tag: each[tag] for tag in sorted(tags & set(each))} for each in page], headers)


def _find_matches(session: Session, parameters: SearchParameters) -> list[dict[str, Any]]:
    """Return one match more than the limit if there are so many; the oldest first."""
    keys, found, skipped = parameters.keys, list[dict[str, Any]](), 0
    state = keys.get("ProcedureStepState", "")
    patient_id = keys.get("PatientID", "")
    rows = workitems.scan(
        session,
        states=[WorkitemState(state)] if state in set(WorkitemState) else (),
        patient_id="" if set(patient_id) & set("*?") else patient_id,
    )
    for row in rows:
        if not matching.matches(row.attributes, keys, fuzzy=parameters.fuzzy):
            continue
        if skipped < parameters.offset:
            skipped += 1
            continue
        found.append(row.attributes)
        if len(found) > parameters.limit:
            break
    return found


def _subscribe(worklist: Worklist, request: Request) -> Response:
    uid, ae_title = target_uid(request), parse_ae_title(request.path_params["ae_title"])
    parameters = query_parameters.parse_worklist_search(request)
    lock = request.query_params.get("deletionlock", "false").lower()
    if lock not in ("true", "false"):
        raise HTTPException(400, "deletionlock is true or false")
    worklist.write(
        lambda session, now: subscribing.subscribe(
            session, ae_title, uid, deletion_lock=lock == "true", keys=parameters.keys, now=now
        )
    )
    after = _follow_part(worklist, ae_title, uid, 0)
    while after is not None:
        after = _follow_part(worklist, ae_title, uid, after)
    address = f"{base_url(request)}{worklist.prefix}/subscribers/{quote(ae_title)}"
    return Response(None, 201, {"Content-Location": f"ws{address.removeprefix('http')}"})


def _follow_part(worklist: Worklist, ae_title: str, uid: str, after: int) -> int | None:
    """Follow the next present workitems in a transaction of their own; return where to go on, or None."""
    return worklist.write(
        lambda session, now: subscribing.follow_present(session, ae_title, uid, after=after, now=now)
    )  # fmt: skip


def _unsubscribe(worklist: Worklist, request: Request) -> Response:
    uid, ae_title = target_uid(request), parse_ae_title(request.path_params["ae_title"])
    worklist.write(lambda session, now: subscribing.unsubscribe(session, ae_title, uid, now=now))
    return Response(None, 200)


def _suspend(worklist: Worklist, request: Request) -> Response:
    uid, ae_title = target_uid(request), parse_ae_title(request.path_params["ae_title"])
    worklist.write(lambda session, now: subscribing.suspend(session, ae_title, uid, now=now))
    return Response(None, 200)


def _query_uid(request: Request, *names: str) -> str:
    """Return the UID that the query states under one of the names in any case, or as a bare UID; else "".

    PS3.18 names the parameter, and writes it without a value in its templates of addresses.
    """
    for name, value in request.query_params.multi_items():
        if name.lower() in names and value:
            return value[:65]
        if not value and name[:1].isdigit():
            return name[:65]
    return ""


def _requester(request: Request) -> str:
    """Return who asks, for the audit trail: the account, else as the path or the query names it, else the address."""
    if (found := person.current()) is not None:
        return found.display_name
    requester: str = request.path_params.get("requester", "") or request.query_params.get("requester", "")
    if len(requester) > _MOST_REQUESTER or not requester.isprintable():
        raise HTTPException(400, "the name of who asks is too long or not printable")
    return requester or (request.client.host if request.client else "unknown")


def _json(found: list[dict[str, Any]], headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(found, allow_nan=False), 200, headers, media_types.DICOM_JSON)
