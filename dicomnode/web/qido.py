"""QIDO-RS (PS3.18 10.6): searches of the catalogue by query string, with matches as DICOM JSON."""

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
from dicomnode.datasets import json_elements
from dicomnode.web import media_types, methods, query_parameters
from dicomnode.web.holdings import Holdings
from dicomnode.web.query_parameters import SearchParameters

__all__ = ["add_routes"]

_STUDY_KEYWORDS = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "TimezoneOffsetFromUTC", "StudyDescription",
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip
_SERIES_KEYWORDS = (
    "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesTime",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence",
)  # fmt: skip
_INSTANCE_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
)  # fmt: skip
_COUNT_KEYWORDS = MappingProxyType(
    {
        "STUDY": ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
        "SERIES": ("NumberOfSeriesRelatedInstances",),
        "IMAGE": (),
    }
)
_ON_DEMAND = frozenset({*_COUNT_KEYWORDS["STUDY"], *_COUNT_KEYWORDS["SERIES"], "SOPClassesInStudy"})
_UID_KEYWORDS = MappingProxyType(
    {
        "STUDY": ("StudyInstanceUID",),
        "SERIES": ("StudyInstanceUID", "SeriesInstanceUID"),
        "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    }
)


def add_routes(routes: APIRouter, holdings: Holdings) -> None:
    """Add the six searches (PS3.18 table 10.6.1-1)."""

    def at(path: str, level: Level) -> None:
        methods.add_get(routes, path, lambda request: _search(holdings, request, level, _path_keys(request)))

    at("/studies", "STUDY")
    at("/series", "SERIES")
    at("/instances", "IMAGE")
    at("/studies/{study}/series", "SERIES")
    at("/studies/{study}/instances", "IMAGE")
    at("/studies/{study}/series/{series}/instances", "IMAGE")


def _path_keys(request: Request) -> dict[str, str]:
    """Return the search keys of the path."""
    names = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
    return {names[name]: uid for name, uid in request.path_params.items()}


def _search(holdings: Holdings, request: Request, level: Level, path: dict[str, str]) -> Response:
    media_types.require_json_accepted(request)
    parameters = query_parameters.parse_search(request, level, path)
    keywords = _returned_keywords(level, path, parameters)
    query = Query(
        level,
        parameters.keys,
        counts=frozenset(keywords) & _ON_DEMAND,
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
    headers = query_parameters.warning_header(request, parameters, more=len(found) > parameters.limit)
    page = found[: parameters.limit]
    if not page:
        return Response(None, 204, headers)
    rows = [_encode_match(holdings, request, match, None if parameters.everything else keywords) for match in page]
    return Response(json.dumps(rows, allow_nan=False), 200, headers, media_types.DICOM_JSON)


def _encode_match(
    holdings: Holdings, request: Request, match: Match, keywords: Iterable[str] | None
) -> json_elements.Elements:
    values = match.attributes
    known: dict[str, Any] = dict(values) if keywords is None else {name: values.get(name) for name in keywords}
    known["RetrieveURL"] = holdings.url(request, *(str(values[name]) for name in _UID_KEYWORDS[match.level]))
    known["InstanceAvailability"] = "ONLINE"
    return json_elements.encode_keywords(known)


def _returned_keywords(level: Level, path: dict[str, str], parameters: SearchParameters) -> tuple[str, ...]:
    """Return the keywords of an answer: of the level, of levels that the path does not fix, and the requested ones."""
    names: tuple[str, ...] = (*_UID_KEYWORDS[level], *_COUNT_KEYWORDS[level])
    if "StudyInstanceUID" not in path:
        names += _STUDY_KEYWORDS
    if level != "STUDY" and "SeriesInstanceUID" not in path:
        names += _SERIES_KEYWORDS
    if level == "IMAGE":
        names += _INSTANCE_KEYWORDS
    requested = (*parameters.keys, *parameters.fields)
    return tuple(dict.fromkeys((*names, *(name for name in requested if name in catalogue.supported_keywords(level)))))
