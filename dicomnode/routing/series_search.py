"""The search for series of a study at a peer that may meet the conditions of a route: C-FIND.

The query names all attributes of the conditions; Modality, which every archive matches (PS3.4 C.6.2.1.3), is a
matching key. Attributes that the peer does not return at the SERIES level are queried at the IMAGE level. An attribute
that it does not return at all excludes nothing: the conditions are evaluated again once the series is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicomnode.config import Peer
from dicomnode.config.conditions import Condition
from dicomnode.dimse import queries
from dicomnode.errors import PeerRefused

__all__ = ["Conditions", "find_candidate_series"]

Conditions = Mapping[str, Condition]
"""Conditions by DICOM keyword."""

_IMAGE_LEVEL_KEYS = frozenset({"SOPClassUID", "SOPInstanceUID", "InstanceNumber"})
"""Keys of the IMAGE level, for which some archives refuse a query at the SERIES level."""


def find_candidate_series(
    peer: Peer, study_uid: str, conditions_by_name: Mapping[str, Conditions], *, requestor: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Return for each name the UIDs of the series that may match, in the order of their Series Numbers.

    ``requestor``: calling AE title, timeout and TLS, as ``queries.find`` takes them. Raises PeerError.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, conditions in conditions_by_name.items():
        answers = sorted(_query_series(peer, study_uid, conditions, requestor), key=_sort_key)
        possible = [each for each in answers if _may_match(conditions, each)]
        found[name] = tuple(
            str(each.SeriesInstanceUID)
            for each in possible
            if _images_may_match(peer, study_uid, conditions, each, requestor)
        )
    return found


def _query_series(peer: Peer, study_uid: str, conditions: Conditions, requestor: Mapping[str, Any]) -> list[Dataset]:
    required = {"StudyInstanceUID": study_uid} | _modality_key(conditions)
    keys = dict.fromkeys(sorted(conditions.keys() - _IMAGE_LEVEL_KEYS), "") | required
    try:
        return queries.find(peer, keys, level="SERIES", **requestor)
    except PeerRefused:  # a key that it does not know at this level
        return queries.find(peer, required, level="SERIES", **requestor)


def _images_may_match(
    peer: Peer, study_uid: str, conditions: Conditions, series: Dataset, requestor: Mapping[str, Any]
) -> bool:
    """Return whether some image may meet the conditions that the series' answer left open.

    True where the peer returns no images or refuses the query.
    """
    open_keys = sorted(conditions.keys() - _returned_values(conditions, series).keys())
    if not open_keys:
        return True
    unique = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": str(series.SeriesInstanceUID)}
    try:
        images = queries.find(peer, dict.fromkeys(open_keys, "") | unique, level="IMAGE", **requestor)
    except PeerRefused:
        return True
    open_conditions = {keyword: conditions[keyword] for keyword in open_keys}
    return not images or any(_may_match(open_conditions, each) for each in images)


def _modality_key(conditions: Conditions) -> dict[str, str]:
    """Return Modality as a matching key, where its condition is a single value that means the same in a query."""
    condition = conditions.get("Modality")
    if condition is None or condition.kind != "any" or len(condition.operands) != 1:
        return {}
    value = condition.operands[0]
    return {"Modality": value} if isinstance(value, str) and not set(value) & set("*?\\") else {}


def _may_match(conditions: Conditions, answer: Dataset) -> bool:
    return all(conditions[keyword].holds(value) for keyword, value in _returned_values(conditions, answer).items())


def _returned_values(keywords: Iterable[str], answer: Dataset) -> dict[str, Any]:
    """Return the values in an answer; empty ones are left out, because a peer that lacks the attribute sends them."""
    values = {keyword: _to_plain(answer.get(keyword)) for keyword in keywords}
    return {keyword: value for keyword, value in values.items() if value not in (None, "", [])}


def _to_plain(value: Any) -> Any:
    return [str(each) for each in value] if isinstance(value, MultiValue) else value


def _sort_key(answer: Dataset) -> tuple[bool, int, str]:
    number = answer.get("SeriesNumber")
    return number is None, int(number or 0), str(answer.SeriesInstanceUID)
