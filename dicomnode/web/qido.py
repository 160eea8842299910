"""QIDO-RS (PS3.18 10.6): a query string becomes a question to the catalogue, its matches become DICOM JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from db import catalogue
from db.catalogue import BadValue, Level, Match, Query
from dicomnode.web import dicom_json, media_types, methods, query_parameters
from dicomnode.web.holdings import Holdings
from dicomnode.web.query_parameters import SearchParameters

__all__ = ["add"]

_STUDY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "TimezoneOffsetFromUTC", "StudyDescription",
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip
_SERIES = (
    "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesTime",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence",
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


def add(routes: APIRouter, holdings: Holdings) -> None:
    """The six searches (PS3.18 table 10.6.1-1)."""

    def at(path: str, level: Level) -> None:
        methods.add_get(routes, path, lambda request: _answer(holdings, request, level, _fixed(request)))

    at("/studies", "STUDY")
    at("/series", "SERIES")
    at("/instances", "IMAGE")
    at("/studies/{study}/series", "SERIES")
    at("/studies/{study}/instances", "IMAGE")
    at("/studies/{study}/series/{series}/instances", "IMAGE")


def _fixed(request: Request) -> dict[str, str]:
    """The keys that the path states."""
    names = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
    return {names[name]: uid for name, uid in request.path_params.items()}


def _answer(holdings: Holdings, request: Request, level: Level, path: dict[str, str]) -> Response:
    media_types.accepts_json(request)
    parameters = query_parameters.read(request, level, path)
    told = _told(level, path, parameters)
    query = Query(
        level,
        parameters.keys,
        counts=frozenset(told) & _ON_DEMAND,
        include_held=holdings.include_held,
        combined=True,
        fuzzy=parameters.fuzzy,
        limit=parameters.limit + 1,
        offset=parameters.offset,
    )
    try:
        with holdings.readers() as session:
            found = catalogue.search(session, query)
    except BadValue as error:
        raise HTTPException(400, str(error)) from None
    headers = _warnings(request, parameters, more=len(found) > parameters.limit)
    page = found[: parameters.limit]
    if not page:
        return Response(None, 204, headers)
    rows = [
        _row(holdings, request, match, None if parameters.everything else told) for match in found[: parameters.limit]
    ]
    return Response(json.dumps(rows, allow_nan=False), 200, headers, dicom_json.MEDIA_TYPE)


def _row(holdings: Holdings, request: Request, match: Match, told: Iterable[str] | None) -> dicom_json.Elements:
    values = match.attributes
    known: dict[str, Any] = dict(values) if told is None else {name: values.get(name) for name in told}
    known["RetrieveURL"] = holdings.url(request, *(str(values[name]) for name in _UIDS[match.level]))
    known["InstanceAvailability"] = "ONLINE"
    return dicom_json.of_keywords(known)


def _told(level: Level, path: dict[str, str], parameters: SearchParameters) -> tuple[str, ...]:
    """What is told without being asked for: the level's own, and of the levels that the path does not fix theirs."""
    names: tuple[str, ...] = (*_UIDS[level], *_COUNTED[level])
    if "StudyInstanceUID" not in path:
        names += _STUDY
    if level != "STUDY" and "SeriesInstanceUID" not in path:
        names += _SERIES
    if level == "IMAGE":
        names += _IMAGE
    asked_for = (*parameters.keys, *parameters.fields)
    return tuple(dict.fromkeys((*names, *(name for name in asked_for if name in catalogue.supported_keywords(level)))))


def _warnings(request: Request, parameters: SearchParameters, *, more: bool) -> dict[str, str]:
    """PS3.18 8.3.4.4 and 10.6.3.2: what was ignored, and that there is more."""
    said = (
        [f"these parameters are not supported and were ignored: {', '.join(parameters.ignored)}"]
        if parameters.ignored
        else []
    )
    if more and "limit" not in request.query_params:
        said.append("there are more results that can be requested")
    return {"Warning": f'299 dicomnode: "{"; ".join(said)}"'} if said else {}
