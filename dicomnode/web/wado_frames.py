"""Frames of an instance as they are, and as pictures (PS3.18 10.4.1.1.4 and 10.4.1.1.3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pydicom.uid import UID, EncapsulatedPDFStorage
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from db.catalogue import StoredObject
from dicomnode import decoding
from dicomnode.errors import InputRefused
from dicomnode.transcoding import pixels
from dicomnode.transcoding.pixels import PixelLayout
from dicomnode.web import dicom_json, media_types, multipart, ranges, sr_page, sr_tree
from dicomnode.web.holdings import Holdings, representative
from dicomnode.web.media_types import Accepted, Form
from dicomnode.web.multipart import Part

__all__ = ["all_of", "frames", "rendered", "thumbnail"]

_LIST = re.compile(r"[0-9]{1,7}(,[0-9]{1,7})*")
_NUMBER = re.compile(r"[0-9]{1,7}")
_PICTURES = ("image/jpeg", "image/png")
_PDF = "application/pdf"
_THUMBNAIL = (128, 128)


def frames(holdings: Holdings, request: Request) -> Response:
    """The frames of a list, numbers from 1."""
    stored, pictures = _place(holdings, request)
    numbers = _numbers(request.path_params["frames"], pictures.frames)
    form = _form(stored, media_types.accepted(request))
    if not form.multipart:
        if len(numbers) > 1:
            raise HTTPException(406, "several frames come as multipart/related")
        return ranges.of_bytes(request, b"".join(_frames(pictures, numbers[0], form)), form.content_type)
    where = request.url.path.rpartition("/")[0]
    return _answer(pictures, numbers, form, [f"{where}/{number}" for number in numbers])


def all_of(request: Request, path: Path, stored: StoredObject, wanted: Sequence[Accepted]) -> Response:
    """The pixels as bulk data: one part, or where they are compressed one for each frame."""
    found = pixels.read_layout(path)
    if found is None:
        raise HTTPException(404, "the instance has no pixels")
    form, location = _form(stored, wanted), request.url.path
    if found.is_plain and form.multipart:
        return multipart.answer([Part(form.content_type, location, pixels.read_native(found))], form.media_type)
    if found.is_plain:
        return ranges.answer(request, found.length, partial(pixels.read_native, found), form.content_type)
    if not form.multipart:
        raise HTTPException(406, "compressed pixels come as multipart/related")
    return _answer(found, range(1, found.frames + 1), form, [location] * found.frames)


def rendered(holdings: Holdings, request: Request) -> Response:
    """One frame through its window; of an instance the first. A report on paper is its PDF, one in items a page."""
    path = request.path_params
    stored = holdings.one(path["study"], path["series"], path["instance"])
    if stored.sop_class_uid == EncapsulatedPDFStorage:
        return _pdf(holdings.path(stored), request)
    if sr_tree.is_report(stored.sop_class_uid):
        return _report(holdings.path(stored), request)
    return _picture(holdings, request, stored, _wanted_frame(request) or 1, small=False)


def thumbnail(holdings: Holdings, request: Request) -> Response:
    """A small picture of a frame, or of the middle of an instance, a series or a study."""
    path = request.path_params
    found = holdings.find(path["study"], path.get("series", ""), path.get("instance", ""))
    drawable = [each for each in found if pixels.read_layout(holdings.path(each)) is not None]
    if not drawable:
        raise HTTPException(404, "there are no pixels to draw")
    stored = representative(drawable)
    place = pixels.read_layout(holdings.path(stored))
    middle = place.frames // 2 + 1 if place else 1
    return _picture(holdings, request, stored, _wanted_frame(request) or middle, small=True)


def _picture(holdings: Holdings, request: Request, stored: StoredObject, number: int, *, small: bool) -> Response:
    from dicomnode.web import rendered as drawing

    media_type = _picture_type(request)
    place = pixels.read_layout(holdings.path(stored))
    if place is None:
        raise HTTPException(406, "an instance of this kind cannot be drawn")
    if number > place.frames:
        raise HTTPException(404, f"the instance has {place.frames} frames")
    query = dict(request.query_params)
    if small and "viewport" not in query:
        query["viewport"] = ",".join(map(str, _THUMBNAIL))
    try:
        asked = drawing.Asked.of(query, media_type)
        content = decoding.run_in_pieces(drawing.picture, holdings.path(stored), number - 1, asked)
    except drawing.BadQuery as error:
        raise HTTPException(400, str(error)) from None
    except InputRefused as error:
        raise HTTPException(406, str(error)) from None
    return StreamingResponse(multipart.begun(decoding.stream(content)), media_type=media_type)


def _pdf(path: Path, request: Request) -> Response:
    if not any(each.covers(_PDF) for each in media_types.accepted(request)):
        raise HTTPException(406, f"an encapsulated document comes as {_PDF}")
    return Response(decoding.run(dicom_json.bulk, path, "00420011"), media_type=_PDF)


def _report(path: Path, request: Request) -> Response:
    if not any(each.covers(sr_page.MEDIA_TYPE) for each in media_types.accepted(request)):
        raise HTTPException(406, f"a structured report comes as {sr_page.MEDIA_TYPE}")
    try:
        return sr_page.page(path)
    except InputRefused as error:
        raise HTTPException(406, str(error)) from None


def _picture_type(request: Request) -> str:
    for each in media_types.accepted(request):
        for media_type in _PICTURES:
            if each.covers(media_type):
                return media_type
    raise HTTPException(406, f"pictures come as {' or '.join(_PICTURES)}")


def _place(holdings: Holdings, request: Request) -> tuple[StoredObject, PixelLayout]:
    path = request.path_params
    stored = holdings.one(path["study"], path["series"], path["instance"])
    found = pixels.read_layout(holdings.path(stored))
    if found is None:
        raise HTTPException(404, "the instance has no frames")
    return stored, found


def _form(stored: StoredObject, wanted: Sequence[Accepted]) -> Form:
    syntax = stored.transfer_syntax_uid
    form = media_types.form_of_frames(syntax, wanted, decodable=pixels.is_decodable(syntax))
    if form is None:
        raise HTTPException(406, f"frames in {UID(syntax).name} cannot be sent in an accepted media type")
    return form


def _answer(found: PixelLayout, numbers: Sequence[int], form: Form, locations: Sequence[str]) -> Response:
    parts = (
        Part(form.content_type, location, _frames(found, number, form))
        for number, location in zip(numbers, locations, strict=True)
    )
    return multipart.answer(parts, form.media_type)


def _frames(found: PixelLayout, number: int, form: Form) -> Iterator[bytes]:
    try:
        yield from pixels.stream_frame(found, number - 1, decode=form.transfer_syntax_uid != found.transfer_syntax_uid)
    except InputRefused as error:
        raise HTTPException(406, str(error)) from None


def _numbers(text: str, frames: int) -> list[int]:
    if not _LIST.fullmatch(text):
        raise HTTPException(400, "frames are numbers from 1, with commas")
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise HTTPException(400, "frames are counted from 1")
    if max(numbers) > frames:
        raise HTTPException(404, f"the instance has {frames} frames")
    return numbers


def _wanted_frame(request: Request) -> int | None:
    """One frame of the path, where it names one."""
    text = request.path_params.get("frames")
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) < 1:
        raise HTTPException(400, "one frame, a number from 1")
    return int(text)
