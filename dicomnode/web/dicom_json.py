"""Data sets of stored files as DICOM JSON (PS3.18 F).

The bulk data of a stored file are given as URIs. pydicom's ``to_json_dict`` encodes single elements only: for a whole
data set it would read all bulk data and fail at one invalid value, which must not hide a study from a viewer. An
element whose value contradicts its VR is encoded without the value.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicomnode import decoding
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import NotFound
from dicomnode.transcoding import pixels

__all__ = ["encode_metadata", "read_bulk"]

_BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_BULK_BYTES = 1024
_DEFERRED_BYTES = 64 * 1024
_BULK_PLACEHOLDER = "@bulkdata@"
_BULK_PATH = re.compile(r"[0-9A-F]{8}(/\d{1,6}/[0-9A-F]{8}){0,8}")
_DECODING_ERRORS = (AttributeError, KeyError, LookupError, NotImplementedError, OverflowError, TypeError, ValueError)


def encode_metadata(path: Path, bulk_uri: str) -> bytes:
    """Encode a file's data set as a JSON object. Raises InputRefused, NodeBusy.

    ``bulk_uri``: address of the instance's bulk data; an element's path is appended to it.
    """
    return decoding.run_cached(_encode_file, path).replace(
        _BULK_PLACEHOLDER.encode(), json.dumps(bulk_uri)[1:-1].encode()
    )


def _encode_file(path: Path) -> bytes:
    ds = _read_header(path)
    found = _encode_data_set(ds, "")
    if place := pixels.find_element(path):
        name = f"{place.tag:08X}"
        found[name] = {"vr": place.vr, "BulkDataURI": f"{_BULK_PLACEHOLDER}/{name}"}
    return json.dumps(dict(sorted(found.items())), allow_nan=False, separators=(",", ":")).encode()


def read_bulk(path: Path, place: str) -> bytes:
    """Read the bytes of the element at ``TAG`` or ``TAG/item/TAG``, items from 0. Raises NotFound."""
    missing = NotFound("the instance has no such bulk data")
    if not _BULK_PATH.fullmatch(place):
        raise missing
    first, *rest = place.split("/")
    where: Any = _read_header(path)
    try:
        for index, tag in zip(rest[::2], rest[1::2], strict=True):
            where, first = where[int(first, 16)].value[int(index)], tag
        value = where[int(first, 16)].value
    except _DECODING_ERRORS:
        raise missing from None
    if not isinstance(value, bytes):
        raise missing
    return value


def _read_header(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        return dcmread(path, stop_before_pixels=True, defer_size=_DEFERRED_BYTES)


def _encode_data_set(ds: Dataset, at: str) -> Elements:
    found: Elements = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for raw in _iterate_raw(ds):
            name = f"{raw.tag:08X}"
            if raw.tag.element == 0 or raw.tag in pixels.PIXEL_TAGS:  # group lengths are not allowed (PS3.18 F.2.2)
                continue
            found[name] = _encode_raw(ds, raw, f"{at}{name}")
    return found


def _iterate_raw(ds: Dataset) -> Iterator[RawDataElement | DataElement]:
    return (ds.get_item(tag) for tag in sorted(ds.keys()))


def _encode_raw(ds: Dataset, raw: RawDataElement | DataElement, place: str) -> dict[str, Any]:
    vr = _find_vr(raw)
    length = raw.length if isinstance(raw, RawDataElement) else len(raw.value) if isinstance(raw.value, bytes) else 0
    if vr in _BULK_VRS and length > _BULK_BYTES:
        return {"vr": vr, "BulkDataURI": f"{_BULK_PLACEHOLDER}/{place}"}
    try:
        decoded = ds[raw.tag]
        if decoded.VR == "SQ":
            items = [_encode_data_set(item, f"{place}/{index}/") for index, item in enumerate(decoded.value)]
            return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        return _encode_decoded(decoded)
    except _DECODING_ERRORS:
        return {"vr": vr}


def _find_vr(raw: RawDataElement | DataElement) -> str:
    if raw.VR:
        return str(raw.VR)
    try:
        return dictionary_VR(BaseTag(raw.tag)).partition(" or ")[0]
    except KeyError:
        return "UN"


def _encode_decoded(decoded: DataElement) -> dict[str, Any]:
    encoded: dict[str, Any] = decoded.to_json_dict(None, 0)
    if encoded["vr"] in ("DS", "IS", "FL", "FD") and not all(map(_is_json_number, encoded.get("Value", []))):
        return {"vr": encoded["vr"]}
    return encoded


def _is_json_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
