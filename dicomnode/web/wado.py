"""WADO-RS (PS3.18 10.4): instances, their metadata and bulk data. Files are read while they are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from fastapi import APIRouter
from pydicom.uid import EncapsulatedPDFStorage
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from db.catalogue import StoredObject
from dicomnode import decoding
from dicomnode.transcoding import pixels
from dicomnode.transcoding.convert import convert_to_explicit_little_endian
from dicomnode.web import dicom_json, media_types, methods, multipart, ranges, wado_frames
from dicomnode.web.holdings import Holdings
from dicomnode.web.media_types import MediaRange, Representation
from dicomnode.web.missing_windows import add_missing_window
from dicomnode.web.multipart import Part

__all__ = ["add_routes"]

_STUDY = "/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"
_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 16 << 20
_PIXELS = frozenset(f"{tag:08X}" for tag in pixels.PIXEL_TAGS)

Answer = Callable[[Holdings, Request], Response]


def add_routes(routes: APIRouter, holdings: Holdings) -> None:
    """Add every resource below a root."""

    def at(path: str, answer: Answer) -> None:
        methods.add_get(routes, path, lambda request: answer(holdings, request))

    for level in (_STUDY, _SERIES, _INSTANCE):
        at(level, _instances_response)
        at(f"{level}/metadata", _metadata_response)
        at(f"{level}/thumbnail", wado_frames.thumbnail_response)
    at(_INSTANCE + "/rendered", wado_frames.rendered_response)
    at(_INSTANCE + "/frames/{frames}", wado_frames.frames_response)
    at(_INSTANCE + "/frames/{frames}/rendered", wado_frames.rendered_response)
    at(_INSTANCE + "/frames/{frames}/thumbnail", wado_frames.thumbnail_response)
    at(_INSTANCE + "/bulkdata/{place:path}", _bulkdata_response)


def _find_instances(holdings: Holdings, request: Request) -> list[StoredObject]:
    path = request.path_params
    return holdings.find(path["study"], path.get("series", ""), path.get("instance", ""))


def _instances_response(holdings: Holdings, request: Request) -> Response:
    found = _find_instances(holdings, request)
    accepted = media_types.parse_accept(request)
    if len(found) > 1:  # several instances need a multipart answer
        accepted = [each for each in accepted if each.multipart or each.media_type != media_types.DICOM]
    forms = [(stored, form) for stored in found if (form := _choose_representation(stored, accepted))]
    if not forms:
        raise HTTPException(406, "none of the instances can be sent in an accepted media type and transfer syntax")
    if not forms[0][1].multipart:
        return _single_instance_response(request, holdings.path(forms[0][0]), *forms[0])
    parts = (
        Part(
            form.content_type,
            holdings.instance_url(request, stored),
            _instance_content(holdings.path(stored), stored, form),
        )
        for stored, form in forms
    )
    return multipart.multipart_response(parts, media_types.DICOM, 200 if len(forms) == len(found) else 206)


def _choose_representation(stored: StoredObject, accepted: Sequence[MediaRange]) -> Representation | None:
    syntax = stored.transfer_syntax_uid
    return media_types.choose_for_instance(syntax, accepted, convertible=pixels.is_decodable(syntax))


def _single_instance_response(request: Request, path: Path, stored: StoredObject, form: Representation) -> Response:
    """Return one instance without a multipart envelope; a large one that is converted supports no ranges."""
    if form.transfer_syntax_uid != stored.transfer_syntax_uid:
        place = pixels.read_layout(path)
        if place is None or place.frames * place.frame_bits <= 8 * _SMALL_BYTES:
            return ranges.bytes_response(request, b"".join(convert_to_explicit_little_endian(path)), form.content_type)
        return StreamingResponse(
            multipart.start_early(convert_to_explicit_little_endian(path)), media_type=form.content_type
        )
    return ranges.range_response(request, path.stat().st_size, partial(_read_file, path), form.content_type)


def _instance_content(path: Path, stored: StoredObject, form: Representation) -> Iterator[bytes]:
    if form.transfer_syntax_uid != stored.transfer_syntax_uid:
        yield from convert_to_explicit_little_endian(path)
    else:
        yield from _read_file(path, 0, path.stat().st_size)


def _read_file(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(_BLOCK_BYTES, stop - start)):
            start += len(block)
            yield block


def _metadata_response(holdings: Holdings, request: Request) -> Response:
    media_types.require_json_accepted(request)
    found = _find_instances(holdings, request)

    @cache
    def list_series(uid: str) -> tuple[Path, ...]:
        return tuple(map(holdings.path, holdings.find(request.path_params["study"], uid)))

    def pieces() -> Iterator[bytes]:
        before = b"["
        for stored in found:
            encoded = dicom_json.encode_metadata(
                holdings.path(stored), f"{holdings.instance_url(request, stored)}/bulkdata"
            )
            if holdings.adds_windows:
                encoded = add_missing_window(encoded, list_series(stored.series_uid))
            yield before
            yield from decoding.stream([encoded])
            before = b",\n"
        yield b"]"

    return StreamingResponse(multipart.start_early(pieces(), 2), media_type=media_types.DICOM_JSON)


def _bulkdata_response(holdings: Holdings, request: Request) -> Response:
    """Return bulk data: compressed pixels frame by frame, everything else as one part."""
    (stored,) = _find_instances(holdings, request)
    path, place = holdings.path(stored), request.path_params["place"]
    location = str(request.url.path)
    accepted = media_types.parse_accept(request)
    if place in _PIXELS:
        return wado_frames.all_frames_response(request, path, stored, accepted)
    value = decoding.run(dicom_json.read_bulk, path, place)
    kind = (
        media_types.PDF
        if stored.sop_class_uid == EncapsulatedPDFStorage and place == "00420011"
        else media_types.OCTET_STREAM
    )
    for each in accepted:
        if not each.multipart and each.media_type in (kind, media_types.OCTET_STREAM):
            return ranges.bytes_response(request, value, each.media_type)
        if each.covers(media_types.OCTET_STREAM):
            return multipart.multipart_response(
                [Part(media_types.OCTET_STREAM, location, [value])], media_types.OCTET_STREAM
            )
    raise HTTPException(
        406,
        f"this bulk data comes as {media_types.OCTET_STREAM}"
        + (f" or {kind}" if kind != media_types.OCTET_STREAM else ""),
    )
