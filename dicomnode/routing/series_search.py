"""Which series of a study at a peer may be those that conditions describe: C-FIND, as far as the peer tells.

Asked are all attributes of the conditions; Modality, which every archive matches (PS3.4 C.6.2.1.3), goes along as a
key. Attributes that the peer does not tell of its series are asked of their images. What it does not tell at all
speaks against nothing: the series is judged again when it is here.
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

__all__ = ["find"]

Match = Mapping[str, Condition]

_OF_IMAGES = frozenset({"SOPClassUID", "SOPInstanceUID", "InstanceNumber"})
"""Keys of the level below, for which some refuse a query of series."""


def find(
    peer: Peer, study_uid: str, matches: Mapping[str, Match], *, asking: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """For each name the UIDs of the series that may match, in the order of their Series Numbers.

    ``asking``: who asks, as ``queries.find`` takes it. Raises PeerError.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, match in matches.items():
        answers = sorted(_series(peer, study_uid, match, asking), key=_place)
        likely = [each for each in answers if _may_match(match, each)]
        found[name] = tuple(
            str(each.SeriesInstanceUID) for each in likely if _images_may_match(peer, study_uid, match, each, asking)
        )
    return found


def _series(peer: Peer, study_uid: str, match: Match, asking: Mapping[str, Any]) -> list[Dataset]:
    of_all = {"StudyInstanceUID": study_uid} | _modality(match)
    asked = dict.fromkeys(sorted(match.keys() - _OF_IMAGES), "") | of_all
    try:
        return queries.find(peer, asked, level="SERIES", **asking)
    except PeerRefused:  # a key that it does not know at this level
        return queries.find(peer, of_all, level="SERIES", **asking)


def _images_may_match(peer: Peer, study_uid: str, match: Match, series: Dataset, asking: Mapping[str, Any]) -> bool:
    """Whether some image may match on what the series' answer left open; images that are not told of may."""
    left = sorted(match.keys() - _stated(match, series).keys())
    if not left:
        return True
    unique = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": str(series.SeriesInstanceUID)}
    try:
        images = queries.find(peer, dict.fromkeys(left, "") | unique, level="IMAGE", **asking)
    except PeerRefused:
        return True
    return not images or any(_may_match({keyword: match[keyword] for keyword in left}, each) for each in images)


def _modality(match: Match) -> dict[str, str]:
    """The key, where the condition is a single value that means the same in a query."""
    condition = match.get("Modality")
    if condition is None or condition.kind != "any" or len(condition.operands) != 1:
        return {}
    value = condition.operands[0]
    return {"Modality": value} if isinstance(value, str) and not set(value) & set("*?\\") else {}


def _may_match(match: Match, answer: Dataset) -> bool:
    return all(match[keyword].holds(value) for keyword, value in _stated(match, answer).items())


def _stated(keywords: Iterable[str], answer: Dataset) -> dict[str, Any]:
    """What the answer tells; an empty value is also that of a peer that does not know the attribute."""
    values = {keyword: _plain(answer.get(keyword)) for keyword in keywords}
    return {keyword: value for keyword, value in values.items() if value not in (None, "", [])}


def _plain(value: Any) -> Any:
    return [str(each) for each in value] if isinstance(value, MultiValue) else value


def _place(answer: Dataset) -> tuple[bool, int, str]:
    number = answer.get("SeriesNumber")
    return number is None, int(number or 0), str(answer.SeriesInstanceUID)
