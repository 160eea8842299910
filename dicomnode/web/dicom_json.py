"""Data sets and search answers as DICOM JSON (PS3.18 F).

Of a stored file: everything but its bulk, which is named by a URI. An element whose value is against its VR is told
without the value: one broken number must not hide a whole study from a viewer.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicomnode import decoding
from dicomnode.errors import NotFound
from dicomnode.transcoding import pixels

__all__ = ["MEDIA_TYPE", "bulk", "element", "metadata", "of_keywords"]

MEDIA_TYPE = "application/dicom+json"
_BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_BULK_BYTES = 1024
_DEFERRED_BYTES = 64 * 1024
_PLACE = "@bulkdata@"
_PATH = re.compile(r"[0-9A-F]{8}(/\d{1,6}/[0-9A-F]{8}){0,8}")
_BROKEN = (AttributeError, KeyError, LookupError, NotImplementedError, OverflowError, TypeError, ValueError)

_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def _number(value: Any) -> int | float:
    found = float(value)
    if not math.isfinite(found):
        raise ValueError("a number that is none")
    return int(found) if found.is_integer() else found


_NUMBERS: dict[str, Callable[[Any], int | float]] = dict.fromkeys(("DS", "FD", "FL"), _number) | dict.fromkeys(
    ("IS", "SL", "SS", "SV", "UL", "US", "UV"), lambda value: int(float(value))
)

Elements = dict[str, dict[str, Any]]


def metadata(path: Path, bulk_uri: str) -> bytes:
    """The file's data set as a JSON object; the URI of an element's bulk is ``bulk_uri``, a slash and its place. Raises
    InputRefused, NodeBusy."""
    return decoding.run_cached(_metadata, path).replace(_PLACE.encode(), json.dumps(bulk_uri)[1:-1].encode())


def _metadata(path: Path) -> bytes:
    ds = _header(path)
    found = _elements(ds, "")
    if place := pixels.find_element(path):
        name = f"{place.tag:08X}"
        found[name] = {"vr": place.vr, "BulkDataURI": f"{_PLACE}/{name}"}
    return json.dumps(dict(sorted(found.items())), allow_nan=False, separators=(",", ":")).encode()


def bulk(path: Path, place: str) -> bytes:
    """The bytes of the element at ``TAG`` or ``TAG/item/TAG``, items from 0. Raises NotFound."""
    missing = NotFound("the instance has no such bulk data")
    if not _PATH.fullmatch(place):
        raise missing
    first, *rest = place.split("/")
    where: Any = _header(path)
    try:
        for index, tag in zip(rest[::2], rest[1::2], strict=True):
            where, first = where[int(first, 16)].value[int(index)], tag
        value = where[int(first, 16)].value
    except _BROKEN:
        raise missing from None
    if not isinstance(value, bytes):
        raise missing
    return value


def of_keywords(values: Mapping[str, Any]) -> Elements:
    """Keyword to value (text, number or a list of them; None or "" for an empty element) as DICOM JSON."""
    found: Elements = {}
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        if tag is not None:
            found[f"{tag:08X}"] = element(dictionary_VR(tag), value)
    return dict(sorted(found.items()))


def element(vr: str, value: Any) -> dict[str, Any]:
    """One element of a dictionary VR; without a value where it is empty or none of that VR."""
    vr = vr.partition(" or ")[0]
    values = value if isinstance(value, list | tuple) else [] if value is None or value == "" else [value]
    if vr == "SQ":
        return {"vr": vr, "Value": [of_keywords(item) for item in values]} if values else {"vr": vr}
    try:
        told = [_NUMBERS[vr](each) for each in values] if vr in _NUMBERS else [_text(vr, each) for each in values]
    except (OverflowError, ValueError):
        return {"vr": vr}
    return {"vr": vr, "Value": told} if told else {"vr": vr}


def _text(vr: str, value: Any) -> str | dict[str, str] | None:
    text = str(value)
    if vr != "PN":
        return text or None
    return {name: group for name, group in zip(_NAME_GROUPS, text.split("="), strict=False) if group}


def _header(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        return dcmread(path, stop_before_pixels=True, defer_size=_DEFERRED_BYTES)


def _elements(ds: Dataset, at: str) -> Elements:
    found: Elements = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for raw in _raw(ds):
            name = f"{raw.tag:08X}"
            if raw.tag.element == 0 or raw.tag in pixels.PIXEL_TAGS:  # group lengths are not allowed (PS3.18 F.2.2)
                continue
            found[name] = _described(ds, raw, f"{at}{name}")
    return found


def _raw(ds: Dataset) -> Iterator[RawDataElement | DataElement]:
    return (ds.get_item(tag) for tag in sorted(ds.keys()))


def _described(ds: Dataset, raw: RawDataElement | DataElement, place: str) -> dict[str, Any]:
    vr = _vr(raw)
    length = raw.length if isinstance(raw, RawDataElement) else len(raw.value) if isinstance(raw.value, bytes) else 0
    if vr in _BULK_VRS and length > _BULK_BYTES:
        return {"vr": vr, "BulkDataURI": f"{_PLACE}/{place}"}
    try:
        decoded = ds[raw.tag]
        if decoded.VR == "SQ":
            items = [_elements(item, f"{place}/{index}/") for index, item in enumerate(decoded.value)]
            return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        return _told(decoded)
    except _BROKEN:
        return {"vr": vr}


def _vr(raw: RawDataElement | DataElement) -> str:
    if raw.VR:
        return str(raw.VR)
    try:
        return dictionary_VR(BaseTag(raw.tag)).partition(" or ")[0]
    except KeyError:
        return "UN"


def _told(decoded: DataElement) -> dict[str, Any]:
    told: dict[str, Any] = decoded.to_json_dict(None, 0)
    if told["vr"] in ("DS", "IS", "FL", "FD") and not all(map(_is_plain, told.get("Value", []))):
        return {"vr": told["vr"]}
    return told


def _is_plain(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
