"""What a client accepts, and which transfer syntax an answer therefore comes in (PS3.18 8.7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["MEDIA_TYPE_OF", "Accepted", "Form", "accepted", "accepts_json", "form_of_frames", "form_of_instance"]

_ITEM = re.compile(r'(?:[^,"]|"[^"]*")+')
_PARAMETER = re.compile(r';\s*([\w-]+)\s*=\s*("[^"]*"|[^;\s]*)')
_LONGEST_HEADER = 4096
_OCTETS = "application/octet-stream"
_DICOM = "application/dicom"
_JSON = frozenset({"application/dicom+json", "application/json", "application/*", "*/*"})

MEDIA_TYPE_OF = MappingProxyType(
    {f"1.2.840.10008.1.2.4.{number}": "image/jpeg" for number in (50, 51, 57, 70)}
    | {f"1.2.840.10008.1.2.4.{number}": "image/jls" for number in (80, 81)}
    | {f"1.2.840.10008.1.2.4.{number}": "image/jp2" for number in (90, 91)}
    | {f"1.2.840.10008.1.2.4.{number}": "image/jpx" for number in (92, 93)}
    | {f"1.2.840.10008.1.2.4.{number}": "image/jphc" for number in (201, 202, 203)}
    | {"1.2.840.10008.1.2.4.110": "image/jxl", "1.2.840.10008.1.2.4.111": "image/jxl"}
    | {"1.2.840.10008.1.2.4.112": "image/jxl", "1.2.840.10008.1.2.5": "image/dicom-rle"}
    | {f"1.2.840.10008.1.2.4.{number}": "video/mpeg" for number in (100, 101)}
    | {f"1.2.840.10008.1.2.4.{number}": "video/mp4" for number in (102, 103, 104, 105, 106, 107, 108)}
)
"""Media type of one frame as it is stored, by transfer syntax (PS3.18 8.7.3.3)."""


@dataclass(frozen=True)
class Accepted:
    """One media range of an Accept header; of a multipart one the type of its parts, ``*/*`` where it names none.

    ``refused``: whether multipart, and the media type, of ranges of that header with ``q=0``.
    """

    media_type: str
    multipart: bool
    transfer_syntax_uid: str = ""
    weight: float = 1.0
    refused: frozenset[tuple[bool, str]] = frozenset()

    def covers(self, media_type: str) -> bool:
        """Whether that media type is in this range, and not refused by a narrower one (RFC 9110 12.5.1)."""
        family = media_type.partition("/")[0]
        is_inside = self.media_type in (media_type, f"{family}/*", "*/*")
        return is_inside and (self.multipart, media_type) not in self.refused


@dataclass(frozen=True)
class Form:
    """How something is sent: ``transfer_syntax_uid`` is that of what the client gets."""

    media_type: str
    transfer_syntax_uid: str
    multipart: bool = True

    @property
    def content_type(self) -> str:
        """For the header of a part, or of the whole answer."""
        return f"{self.media_type}; transfer-syntax={self.transfer_syntax_uid}"


def accepted(request: Request) -> list[Accepted]:
    """The ranges of the query's ``accept`` or else of the header, the most wanted first; nothing said is ``*/*``."""
    text = request.query_params.get("accept") or ",".join(request.headers.getlist("accept"))
    if len(text) > _LONGEST_HEADER:
        raise HTTPException(400, "the Accept header is too long")
    ranges = [_range(item) for item in _ITEM.findall(text)] or [Accepted("*/*", False)]
    refused = frozenset((each.multipart, each.media_type) for each in ranges if each.weight <= 0)
    wanted = [replace(each, refused=refused) for each in ranges if each.weight > 0]
    return sorted(wanted, key=lambda each: -each.weight)


def accepts_json(request: Request) -> None:
    """Raises 406 when DICOM JSON is not wanted."""
    if not any(not each.multipart and each.media_type in _JSON for each in accepted(request)):
        raise HTTPException(406, "answers of this kind come as application/dicom+json only")


def form_of_instance(stored: str, wanted: Sequence[Accepted], *, convertible: bool) -> Form | None:
    """How an instance of a stored transfer syntax is sent, or None when no accepted form can be made.

    ``convertible``: whether it can be written in Explicit VR Little Endian, which is meant where a range names
    application/dicom and no transfer syntax (PS3.18 8.7.3.5.2). A range that names not even that takes it as stored.
    """
    for each in wanted:
        if not each.covers(_DICOM):
            continue
        multipart = each.multipart or each.media_type != _DICOM
        asked = each.transfer_syntax_uid or (ExplicitVRLittleEndian if each.media_type == _DICOM else "*")
        if asked in ("*", stored):
            return Form(_DICOM, stored, multipart)
        if asked == ExplicitVRLittleEndian and convertible:
            return Form(_DICOM, ExplicitVRLittleEndian, multipart)
    return None


def form_of_frames(stored: str, wanted: Sequence[Accepted], *, decodable: bool) -> Form | None:
    """How a frame of a stored transfer syntax is sent, or None.

    Compressed frames go out as they are where their media type is accepted, or octets in ``*`` or that transfer
    syntax; else decoded, as octets in Explicit VR Little Endian.
    """
    compressed = UID(stored).is_compressed and stored in MEDIA_TYPE_OF
    for each in wanted:
        multipart = each.multipart or each.media_type not in (_OCTETS, MEDIA_TYPE_OF.get(stored))
        asked = each.transfer_syntax_uid
        if (
            compressed
            and each.media_type != "*/*"
            and asked in ("", "*", stored)
            and each.covers(MEDIA_TYPE_OF[stored])
        ):
            return Form(MEDIA_TYPE_OF[stored], stored, multipart)
        if not each.covers(_OCTETS):
            continue
        if compressed and asked in ("*", stored):
            return Form(_OCTETS, stored, multipart)
        plain = asked in ("", "*", ExplicitVRLittleEndian, ImplicitVRLittleEndian)
        if plain and (decodable or not compressed):
            return Form(_OCTETS, ExplicitVRLittleEndian, multipart)
    return None


def _range(item: str) -> Accepted:
    media_type = item.partition(";")[0].strip().lower()
    parameters = {name.lower(): value.strip('"') for name, value in _PARAMETER.findall(item)}
    multipart = media_type in ("multipart/related", "multipart/*")
    kind = parameters.get("type", "*/*").lower() if multipart else media_type
    return Accepted(kind, multipart, parameters.get("transfer-syntax", ""), _weight(parameters.get("q", "1")))


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
