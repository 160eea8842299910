"""Frames of an instance: as stored, and rendered (PS3.18 10.4.1.1.4 and 10.4.1.1.3)."""

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
from dicomnode.transcoding import pixels
from dicomnode.transcoding.pixels import PixelLayout
from dicomnode.web import dicom_json, media_types, multipart, ranges, sr_page, sr_tree
from dicomnode.web.holdings import Holdings, select_middle
from dicomnode.web.media_types import MediaRange, Representation
from dicomnode.web.multipart import Part

__all__ = ["all_frames_response", "frames_response", "rendered_response", "thumbnail_response"]

_FRAME_LIST = re.compile(r"[0-9]{1,7}(,[0-9]{1,7})*")
_FRAME_NUMBER = re.compile(r"[0-9]{1,7}")
_PICTURES = ("image/jpeg", "image/png")
_THUMBNAIL = (128, 128)


def frames_response(holdings: Holdings, request: Request) -> Response:
    """Return the frames of a list of numbers from 1."""
    stored, pictures = _find_pixels(holdings, request)
    numbers = _parse_frame_list(request.path_params["frames"], pictures.frames)
    form = _choose_representation(stored, media_types.parse_accept(request))
    if not form.multipart:
        if len(numbers) > 1:
            raise HTTPException(406, "several frames come as multipart/related")
        return ranges.bytes_response(request, b"".join(_frame_bytes(pictures, numbers[0], form)), form.content_type)
    where = request.url.path.rpartition("/")[0]
    return _multipart_frames(pictures, numbers, form, [f"{where}/{number}" for number in numbers])


def all_frames_response(request: Request, path: Path, stored: StoredObject, accepted: Sequence[MediaRange]) -> Response:
    """Return the pixels as bulk data: one part, or one for each frame where they are compressed."""
    found = pixels.read_layout(path)
    if found is None:
        raise HTTPException(404, "the instance has no pixels")
    form, location = _choose_representation(stored, accepted), request.url.path
    if found.is_plain and form.multipart:
        return multipart.multipart_response(
            [Part(form.content_type, location, pixels.read_native(found))], form.media_type
        )
    if found.is_plain:
        return ranges.range_response(request, found.length, partial(pixels.read_native, found), form.content_type)
    if not form.multipart:
        raise HTTPException(406, "compressed pixels come as multipart/related")
    return _multipart_frames(found, range(1, found.frames + 1), form, [location] * found.frames)


def rendered_response(holdings: Holdings, request: Request) -> Response:
    """Return one frame, by default the first, through its window; a PDF document as such; a report as a page."""
    path = request.path_params
    stored = holdings.find_instance(path["study"], path["series"], path["instance"])
    if stored.sop_class_uid == EncapsulatedPDFStorage:
        return _pdf_response(holdings.path(stored), request)
    if sr_tree.is_report(stored.sop_class_uid):
        return _report_response(holdings.path(stored), request)
    return _picture_response(holdings, request, stored, _parse_frame_number(request) or 1, small=False)


def thumbnail_response(holdings: Holdings, request: Request) -> Response:
    """Return a small picture of a frame, or of the middle of an instance, a series or a study."""
    path = request.path_params
    found = holdings.find(path["study"], path.get("series", ""), path.get("instance", ""))
    drawable = [each for each in found if pixels.read_layout(holdings.path(each)) is not None]
    if not drawable:
        raise HTTPException(404, "the instances have no pixels to draw")
    stored = select_middle(drawable)
    layout = pixels.read_layout(holdings.path(stored))
    middle = layout.frames // 2 + 1 if layout else 1
    return _picture_response(holdings, request, stored, _parse_frame_number(request) or middle, small=True)


def _picture_response(
    holdings: Holdings, request: Request, stored: StoredObject, number: int, *, small: bool
) -> Response:
    from dicomnode.web import rendered as drawing

    media_type = _choose_picture_type(request)
    layout = pixels.read_layout(holdings.path(stored))
    if layout is None:
        raise HTTPException(406, "an instance of this kind cannot be drawn")
    if number > layout.frames:
        raise HTTPException(404, f"the instance has {layout.frames} frames")
    query = dict(request.query_params)
    if small and "viewport" not in query:
        query["viewport"] = ",".join(map(str, _THUMBNAIL))
    try:
        options = drawing.RenderOptions.from_query(query, media_type)
        content = decoding.run_in_pieces(drawing.render_frame, holdings.path(stored), number - 1, options)
    except drawing.BadQuery as error:
        raise HTTPException(400, str(error)) from None
    return StreamingResponse(multipart.start_early(decoding.stream(content)), media_type=media_type)


def _pdf_response(path: Path, request: Request) -> Response:
    if not any(each.covers(media_types.PDF) for each in media_types.parse_accept(request)):
        raise HTTPException(406, f"an encapsulated document comes as {media_types.PDF}")
    return Response(decoding.run(dicom_json.read_bulk, path, "00420011"), media_type=media_types.PDF)


def _report_response(path: Path, request: Request) -> Response:
    if not any(each.covers(sr_page.MEDIA_TYPE) for each in media_types.parse_accept(request)):
        raise HTTPException(406, f"a structured report comes as {sr_page.MEDIA_TYPE}")
    return sr_page.report_response(path)


def _choose_picture_type(request: Request) -> str:
    for each in media_types.parse_accept(request):
        for media_type in _PICTURES:
            if each.covers(media_type):
                return media_type
    raise HTTPException(406, f"pictures come as {' or '.join(_PICTURES)}")


def _find_pixels(holdings: Holdings, request: Request) -> tuple[StoredObject, PixelLayout]:
    path = request.path_params
    stored = holdings.find_instance(path["study"], path["series"], path["instance"])
    found = pixels.read_layout(holdings.path(stored))
    if found is None:
        raise HTTPException(404, "the instance has no frames")
    return stored, found


def _choose_representation(stored: StoredObject, accepted: Sequence[MediaRange]) -> Representation:
    syntax = stored.transfer_syntax_uid
    form = media_types.choose_for_frames(syntax, accepted, decodable=pixels.is_decodable(syntax))
    if form is None:
        raise HTTPException(406, f"frames in {UID(syntax).name} cannot be sent in an accepted media type")
    return form


def _multipart_frames(
    found: PixelLayout, numbers: Sequence[int], form: Representation, locations: Sequence[str]
) -> Response:
    parts = (
        Part(form.content_type, location, _frame_bytes(found, number, form))
        for number, location in zip(numbers, locations, strict=True)
    )
    return multipart.multipart_response(parts, form.media_type)


def _frame_bytes(found: PixelLayout, number: int, form: Representation) -> Iterator[bytes]:
    yield from pixels.stream_frame(found, number - 1, decode=form.transfer_syntax_uid != found.transfer_syntax_uid)


def _parse_frame_list(text: str, frames: int) -> list[int]:
    if not _FRAME_LIST.fullmatch(text):
        raise HTTPException(400, "frames are numbers from 1, with commas")
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise HTTPException(400, "frames are counted from 1")
    if max(numbers) > frames:
        raise HTTPException(404, f"the instance has {frames} frames")
    return numbers


def _parse_frame_number(request: Request) -> int | None:
    """Parse the frame number of the path, None where the path has none."""
    text = request.path_params.get("frames")
    if text is None:
        return None
    if not _FRAME_NUMBER.fullmatch(text) or int(text) < 1:
        raise HTTPException(400, "the frame is a number from 1")
    return int(text)
