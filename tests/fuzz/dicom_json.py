"""Files that were accepted, as DICOM JSON, as bulk data and as the page of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dicomnode.errors import CannotUnderstand, InputRefused, NotFound
from dicomnode.web import dicom_json, sr_page
from tests.fuzz.changes import change
from tests.fuzz.instances import accept, changed_files, data_sets, files, temporary_file
from tests.fuzz.oracle import recorded_errors

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (CannotUnderstand, InputRefused)
_BULK = "http://node/bulkdata"


def target(data: bytes) -> None:
    """``data``: a file; only one that the receiver takes is opened, by the processes that open files for the web."""
    with temporary_file(data) as path, recorded_errors() as errors:
        accept(path)
        try:
            found = json.loads(dicom_json.encode_metadata(path, _BULK), parse_constant=_refuse_constant)
            for place in _list_bulk(found):
                _read_bulk(path, place)
            sr_page.report_response(path)
        finally:
            assert not errors, errors


def examples() -> SearchStrategy[bytes]:
    """Files with changed attributes and bytes, and files with further elements at their end."""
    joined = st.builds(lambda content, more: content + more, st.sampled_from(files()), data_sets())
    return st.one_of(changed_files(), joined, st.sampled_from(files()).flatmap(change))


def _refuse_constant(text: str) -> Any:
    raise AssertionError(f"{text} is no JSON")


def _list_bulk(found: dict[str, dict[str, Any]]) -> list[str]:
    places = [each["BulkDataURI"].removeprefix(f"{_BULK}/") for each in found.values() if "BulkDataURI" in each]
    for each in found.values():
        for item in each.get("Value", []) if each["vr"] == "SQ" else []:
            places += _list_bulk(item)
    return places


def _read_bulk(path: Path, place: str) -> None:
    try:
        dicom_json.read_bulk(path, place)
    except NotFound:
        return
