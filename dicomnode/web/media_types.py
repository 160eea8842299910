"""Content negotiation: accepted media types and the transfer syntax of an answer (PS3.18 8.7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = [
    "DICOM", "DICOM_JSON", "MEDIA_TYPE_OF", "OCTET_STREAM", "PDF", "MediaRange", "Representation", "choose_for_frames",
    "choose_for_instance", "parse_accept", "parse_content_type", "parse_header", "require_json_accepted",
]  # fmt: skip

_RANGE_ITEM = re.compile(r'(?:[^,"]|"[^"]*")+')
_MOST_HEADER_CHARACTERS = 4096
DICOM, DICOM_JSON = "application/dicom", "application/dicom+json"
OCTET_STREAM, PDF = "application/octet-stream", "application/pdf"
_JSON = frozenset({DICOM_JSON, "application/json", "application/*", "*/*"})

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
class MediaRange:
    """A media range of an Accept header; for a multipart one, the type of its parts, ``*/*`` where none is named.

    ``refused``: whether multipart, and media type, of the ranges of the same header with ``q=0``.
    """

    media_type: str
    multipart: bool
    transfer_syntax_uid: str = ""
    weight: float = 1.0
    refused: frozenset[tuple[bool, str]] = frozenset()

    def covers(self, media_type: str) -> bool:
        """Return whether this range includes a media type that no narrower range refuses (RFC 9110 12.5.1)."""
        family = media_type.partition("/")[0]
        is_inside = self.media_type in (media_type, f"{family}/*", "*/*")
        return is_inside and (self.multipart, media_type) not in self.refused


@dataclass(frozen=True)
class Representation:
    """The representation of an answer: media type, transfer syntax, and whether parts of a multipart message."""

    media_type: str
    transfer_syntax_uid: str
    multipart: bool = True

    @property
    def content_type(self) -> str:
        """Content-Type of a part, or of the answer."""
        return f"{self.media_type}; transfer-syntax={self.transfer_syntax_uid}"


def parse_header(text: str) -> tuple[str, dict[str, str]]:
    """Parse a header with parameters into its value and the parameters, both names in lower case."""
    value, parameters = parse_options_header(text.encode("latin-1", "replace"))
    return value.decode("latin-1"), {
        name.decode("latin-1"): each.decode("latin-1") for name, each in parameters.items()
    }


def parse_content_type(request: Request) -> tuple[str, dict[str, str]]:
    """Parse the Content-Type of a request. Raises 400 when the header is too long."""
    text = request.headers.get("content-type", "")
    _check_length(text, "Content-Type")
    return parse_header(text)


def parse_accept(request: Request) -> list[MediaRange]:
    """Parse the query's ``accept``, else the Accept header, highest weight first; ``*/*`` where both are absent."""
    text = request.query_params.get("accept") or ",".join(request.headers.getlist("accept"))
    _check_length(text, "Accept")
    ranges = [_parse_range(item) for item in _RANGE_ITEM.findall(text)] or [MediaRange("*/*", False)]
    refused = frozenset((each.multipart, each.media_type) for each in ranges if each.weight <= 0)
    accepted = [replace(each, refused=refused) for each in ranges if each.weight > 0]
    return sorted(accepted, key=lambda each: -each.weight)


def require_json_accepted(request: Request) -> None:
    """Raise 406 unless DICOM JSON is accepted."""
    if not any(not each.multipart and each.media_type in _JSON for each in parse_accept(request)):
        raise HTTPException(406, "answers of this kind come as application/dicom+json only")


def choose_for_instance(stored: str, accepted: Sequence[MediaRange], *, convertible: bool) -> Representation | None:
    """Choose the representation of an instance of a stored transfer syntax, or None where none is acceptable.

    ``convertible``: true where it can be written in Explicit VR Little Endian, the default of application/dicom without
    a transfer syntax (PS3.18 8.7.3.5.2). A wildcard range accepts the stored transfer syntax.
    """
    for each in accepted:
        if not each.covers(DICOM):
            continue
        multipart = each.multipart or each.media_type != DICOM
        transfer_syntax = each.transfer_syntax_uid or (ExplicitVRLittleEndian if each.media_type == DICOM else "*")
        if transfer_syntax in ("*", stored):
            return Representation(DICOM, stored, multipart)
        if transfer_syntax == ExplicitVRLittleEndian and convertible:
            return Representation(DICOM, ExplicitVRLittleEndian, multipart)
    return None


def choose_for_frames(stored: str, accepted: Sequence[MediaRange], *, decodable: bool) -> Representation | None:
    """Choose the representation of frames of a stored transfer syntax, or None where none is acceptable.

    Compressed frames stay compressed where their media type is accepted, or octets in ``*`` or that transfer syntax;
    else they are decoded to octets in Explicit VR Little Endian.
    """
    compressed = UID(stored).is_compressed and stored in MEDIA_TYPE_OF
    for each in accepted:
        multipart = each.multipart or each.media_type not in (OCTET_STREAM, MEDIA_TYPE_OF.get(stored))
        transfer_syntax = each.transfer_syntax_uid
        if (
            compressed
            and each.media_type != "*/*"
            and transfer_syntax in ("", "*", stored)
            and each.covers(MEDIA_TYPE_OF[stored])
        ):
            return Representation(MEDIA_TYPE_OF[stored], stored, multipart)
        if not each.covers(OCTET_STREAM):
            continue
        if compressed and transfer_syntax in ("*", stored):
            return Representation(OCTET_STREAM, stored, multipart)
        plain = transfer_syntax in ("", "*", ExplicitVRLittleEndian, ImplicitVRLittleEndian)
        if plain and (decodable or not compressed):
            return Representation(OCTET_STREAM, ExplicitVRLittleEndian, multipart)
    return None


def _parse_range(item: str) -> MediaRange:
    media_type, parameters = parse_header(item)
    multipart = media_type in ("multipart/related", "multipart/*")
    kind = parameters.get("type", "*/*").lower() if multipart else media_type
    return MediaRange(kind, multipart, parameters.get("transfer-syntax", ""), _parse_weight(parameters.get("q", "1")))


def _parse_weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _check_length(text: str, name: str) -> None:
    if len(text) > _MOST_HEADER_CHARACTERS:
        raise HTTPException(400, f"the {name} header is too long")
