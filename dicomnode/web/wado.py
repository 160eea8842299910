"""WADO-RS (PS3.18 10.4): instances, their metadata and their bulk data. Files are read while they are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from fastapi import APIRouter
from pydicom.uid import EncapsulatedPDFStorage
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from db.catalogue import StoredObject
from dicomnode import decoding
from dicomnode.errors import InputRefused, NotFound
from dicomnode.transcoding import pixels
from dicomnode.transcoding.convert import convert_to_explicit_little_endian
from dicomnode.web import dicom_json, media_types, methods, multipart, ranges, wado_frames
from dicomnode.web.holdings import Holdings
from dicomnode.web.media_types import Accepted, Form
from dicomnode.web.multipart import Part

__all__ = ["add"]

_STUDY = "/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"
_BLOCK = 1 << 20
_SMALL = 16 << 20
_DICOM, _OCTETS, _PDF = "application/dicom", "application/octet-stream", "application/pdf"
_PIXELS = frozenset(f"{tag:08X}" for tag in pixels.PIXEL_TAGS)

Answer = Callable[[Holdings, Request], Response]


def add(routes: APIRouter, holdings: Holdings) -> None:
    """Every resource below a root."""

    def at(path: str, answer: Answer) -> None:
        methods.add_get(routes, path, lambda request: answer(holdings, request))

    for level in (_STUDY, _SERIES, _INSTANCE):
        at(level, _instances)
        at(f"{level}/metadata", _metadata)
        at(f"{level}/thumbnail", wado_frames.thumbnail)
    at(_INSTANCE + "/rendered", wado_frames.rendered)
    at(_INSTANCE + "/frames/{frames}", wado_frames.frames)
    at(_INSTANCE + "/frames/{frames}/rendered", wado_frames.rendered)
    at(_INSTANCE + "/frames/{frames}/thumbnail", wado_frames.thumbnail)
    at(_INSTANCE + "/bulkdata/{place:path}", _bulkdata)


def _found(holdings: Holdings, request: Request) -> list[StoredObject]:
    path = request.path_params
    return holdings.find(path["study"], path.get("series", ""), path.get("instance", ""))


def _instances(holdings: Holdings, request: Request) -> Response:
    found = _found(holdings, request)
    wanted = media_types.accepted(request)
    if len(found) > 1:  # several do not fit into an answer that is one
        wanted = [each for each in wanted if each.multipart or each.media_type != _DICOM]
    forms = [(stored, form) for stored in found if (form := _form(stored, wanted))]
    if not forms:
        raise HTTPException(406, "none of the instances can be sent in an accepted media type and transfer syntax")
    if not forms[0][1].multipart:
        return _alone(request, holdings.path(forms[0][0]), *forms[0])
    parts = (
        Part(form.content_type, holdings.url_of(request, stored), _content(holdings.path(stored), stored, form))
        for stored, form in forms
    )
    return multipart.answer(parts, _DICOM, 200 if len(forms) == len(found) else 206)


def _form(stored: StoredObject, wanted: Sequence[Accepted]) -> Form | None:
    syntax = stored.transfer_syntax_uid
    return media_types.form_of_instance(syntax, wanted, convertible=pixels.is_decodable(syntax))


def _alone(request: Request, path: Path, stored: StoredObject, form: Form) -> Response:
    """One instance without an envelope; a large one that is converted comes without ranges."""
    if form.transfer_syntax_uid != stored.transfer_syntax_uid:
        place = pixels.read_layout(path)
        if place is None or place.frames * place.frame_bits <= 8 * _SMALL:
            return ranges.of_bytes(request, b"".join(_converted(path)), form.content_type)
        return StreamingResponse(multipart.begun(_converted(path)), media_type=form.content_type)
    return ranges.answer(request, path.stat().st_size, partial(_file, path), form.content_type)


def _content(path: Path, stored: StoredObject, form: Form) -> Iterator[bytes]:
    if form.transfer_syntax_uid != stored.transfer_syntax_uid:
        yield from _converted(path)
    else:
        yield from _file(path, 0, path.stat().st_size)


def _converted(path: Path) -> Iterator[bytes]:
    try:
        yield from convert_to_explicit_little_endian(path)
    except InputRefused as error:
        raise HTTPException(406, str(error)) from None


def _file(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(_BLOCK, stop - start)):
            start += len(block)
            yield block


def _metadata(holdings: Holdings, request: Request) -> Response:
    media_types.accepts_json(request)
    found = _found(holdings, request)

    def pieces() -> Iterator[bytes]:
        before = b"["
        for stored in found:
            told = dicom_json.metadata(holdings.path(stored), f"{holdings.url_of(request, stored)}/bulkdata")
            yield before
            yield from decoding.stream([told])
            before = b",\n"
        yield b"]"

    return StreamingResponse(multipart.begun(pieces(), 2), media_type=dicom_json.MEDIA_TYPE)


def _bulkdata(holdings: Holdings, request: Request) -> Response:
    """Pixels come frame by frame where they are compressed, else as one part like all other bulk."""
    (stored,) = _found(holdings, request)
    path, place = holdings.path(stored), request.path_params["place"]
    location = str(request.url.path)
    wanted = media_types.accepted(request)
    if place in _PIXELS:
        return wado_frames.all_of(request, path, stored, wanted)
    try:
        value = decoding.run(dicom_json.bulk, path, place)
    except NotFound as error:
        raise HTTPException(404, str(error)) from None
    kind = _PDF if stored.sop_class_uid == EncapsulatedPDFStorage and place == "00420011" else _OCTETS
    for each in wanted:
        if not each.multipart and each.media_type in (kind, _OCTETS):
            return ranges.of_bytes(request, value, each.media_type)
        if each.covers(_OCTETS):
            return multipart.answer([Part(_OCTETS, location, [value])], _OCTETS)
    raise HTTPException(406, f"this bulk data comes as {_OCTETS}" + (f" or {kind}" if kind != _OCTETS else ""))
