"""QIDO-RS (PS3.18 10.6): a query string becomes a question to the catalogue, its matches become DICOM JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from db import catalogue
from db.catalogue import BadValue, Level, Match, Query
from dicomnode.web import dicom_json, media_types
from dicomnode.web.holdings import Holdings

__all__ = ["add"]

MOST = 10_000
"""Answers of one request; more come page by page."""

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_CONTROLS = frozenset({"accept", "charset", "fuzzymatching", "includefield", "limit", "offset"})
_STUDY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "TimezoneOffsetFromUTC", "StudyDescription",
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip
_SERIES = (
    "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesTime",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
)  # fmt: skip
_IMAGE = (
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
)  # fmt: skip
_COUNTED = MappingProxyType(
    {
        "STUDY": ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
        "SERIES": ("NumberOfSeriesRelatedInstances",),
        "IMAGE": (),
    }
)
_ON_DEMAND = frozenset({*_COUNTED["STUDY"], *_COUNTED["SERIES"], "SOPClassesInStudy"})
_UIDS = MappingProxyType(
    {
        "STUDY": ("StudyInstanceUID",),
        "SERIES": ("StudyInstanceUID", "SeriesInstanceUID"),
        "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    }
)


@dataclass(frozen=True)
class _Asked:
    """A query string as it was understood; ``ignored``: what cannot be matched here."""

    keys: dict[str, str] = field(repr=False)
    fields: tuple[str, ...]
    everything: bool
    fuzzy: bool
    limit: int
    offset: int
    ignored: tuple[str, ...]


def add(routes: APIRouter, holdings: Holdings) -> None:
    """The six searches (PS3.18 table 10.6.1-1)."""

    @routes.get("/studies")
    def studies(request: Request) -> Response:
        return _answer(holdings, request, "STUDY", {})

    @routes.get("/series")
    def series(request: Request) -> Response:
        return _answer(holdings, request, "SERIES", {})

    @routes.get("/instances")
    def instances(request: Request) -> Response:
        return _answer(holdings, request, "IMAGE", {})

    @routes.get("/studies/{study}/series")
    def series_of_study(request: Request, study: str) -> Response:
        return _answer(holdings, request, "SERIES", {"StudyInstanceUID": study})

    @routes.get("/studies/{study}/instances")
    def instances_of_study(request: Request, study: str) -> Response:
        return _answer(holdings, request, "IMAGE", {"StudyInstanceUID": study})

    @routes.get("/studies/{study}/series/{series}/instances")
    def instances_of_series(request: Request, study: str, series: str) -> Response:
        return _answer(holdings, request, "IMAGE", {"StudyInstanceUID": study, "SeriesInstanceUID": series})


def _answer(holdings: Holdings, request: Request, level: Level, path: dict[str, str]) -> Response:
    media_types.accepts_json(request)
    asked = _understood(request, level, path)
    told = _told(level, path, asked)
    query = Query(
        level,
        asked.keys,
        wanted=frozenset(told) & _ON_DEMAND,
        include_held=holdings.include_held,
        combined=True,
        fuzzy=asked.fuzzy,
        limit=asked.limit + 1,
        offset=asked.offset,
    )
    try:
        with holdings.readers() as session:
            found = catalogue.search(session, query)
    except BadValue as error:
        raise HTTPException(400, str(error)) from None
    headers = _warnings(request, asked, more=len(found) > asked.limit)
    if not found[: asked.limit]:
        return Response(None, 204, headers)
    rows = [_row(holdings, request, match, None if asked.everything else told) for match in found[: asked.limit]]
    return Response(json.dumps(rows, allow_nan=False), 200, headers, dicom_json.MEDIA_TYPE)


def _row(holdings: Holdings, request: Request, match: Match, told: Iterable[str] | None) -> dicom_json.Elements:
    values = match.attributes
    known: dict[str, Any] = dict(values) if told is None else {name: values.get(name) for name in told}
    known["RetrieveURL"] = holdings.url(request, *(str(values[name]) for name in _UIDS[match.level]))
    known["InstanceAvailability"] = "ONLINE"
    return dicom_json.of_keywords(known)


def _told(level: Level, path: dict[str, str], asked: _Asked) -> tuple[str, ...]:
    """What is told without being asked for: the level's own, and of the levels that the path does not fix theirs."""
    names: tuple[str, ...] = (*_UIDS[level], *_COUNTED[level])
    if "StudyInstanceUID" not in path:
        names += _STUDY
    if level != "STUDY" and "SeriesInstanceUID" not in path:
        names += _SERIES
    if level == "IMAGE":
        names += _IMAGE
    asked_for = (*asked.keys, *asked.fields)
    return tuple(dict.fromkeys((*names, *(name for name in asked_for if name in catalogue.supported(level)))))


def _understood(request: Request, level: Level, path: dict[str, str]) -> _Asked:
    """Raises 400 on what is no attribute, or stands there twice."""
    given = request.query_params.multi_items()
    repeated = [name for name, count in Counter(name for name, _ in given).items() if count > 1]
    if set(repeated) - {"includefield"}:
        raise HTTPException(400, "a parameter stands there more than once")
    query = request.query_params
    fields = [name for value in query.getlist("includefield") for name in value.split(",")]
    keys = {_keyword(name): value for name, value in given if name not in _CONTROLS}
    can = catalogue.supported(level)
    matched = {name: _value(name, value) for name, value in keys.items() if name in can}
    if any(matched.get(name, uid) != uid for name, uid in path.items()):
        raise HTTPException(400, "the query names another study or series than the path")
    return _Asked(
        matched | path,
        tuple(_keyword(name) for name in fields if name not in ("all", "")),
        "all" in fields,
        _flag(query.get("fuzzymatching", "false")),
        min(_number("limit", query.get("limit", str(MOST))), MOST),
        _number("offset", query.get("offset", "0")),
        tuple(sorted(set(keys) - can)),
    )


def _keyword(name: str) -> str:
    """Of a keyword, a tag, or a path of them into sequences, which nothing here can match."""
    parts = [keyword_for_tag(int(part, 16)) if _TAG.fullmatch(part) else part for part in name.split(".")]
    if len(name) > 256 or any(not part or tag_for_keyword(part) is None for part in parts):
        raise HTTPException(400, "a parameter of the query is neither a DICOM attribute nor one of QIDO-RS")
    return ".".join(parts)


def _value(keyword: str, value: str) -> str:
    """Lists of UIDs come with commas (PS3.18 8.3.4.1)."""
    return value.replace(",", "\\") if dictionary_VR(tag_for_keyword(keyword) or 0) == "UI" else value


def _number(name: str, value: str) -> int:
    if not value.isdecimal() or len(value) > 12:
        raise HTTPException(400, f"{name} is a whole number from 0")
    return int(value)


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise HTTPException(400, "fuzzymatching is true or false")
    return value == "true"


def _warnings(request: Request, asked: _Asked, *, more: bool) -> dict[str, str]:
    """PS3.18 8.3.4.4 and 10.6.3.2: what was ignored, and that there is more."""
    said = []
    if asked.ignored:
        said.append(f"these attributes are not matched: {', '.join(asked.ignored)}")
    if more and "limit" not in request.query_params:
        said.append("there are more results that can be requested")
    return {"Warning": f'299 dicomnode: "{"; ".join(said)}"'} if said else {}
