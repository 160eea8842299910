"""Private elements: removed, but for those that are known to name nobody, if the profile keeps them, and the node's own
record of how a result was made."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from dicomnode.results.provenance import PRIVATE_CREATOR

__all__ = ["clean"]


def clean(ds: Dataset, *, safe: bool, ours: bool) -> None:
    """At this level of the data set; sequences inside of private elements go as a whole."""
    private = [tag for tag in ds.keys() if tag.is_private]  # noqa: SIM118 a data set's iterator decodes values
    kept = {tag for tag in private if not _is_creator(tag) and _stays(ds, tag, safe=safe, ours=ours)}
    creators = {Tag(tag.group, tag.element >> 8) for tag in kept}
    for tag in private:
        if tag not in kept and tag not in creators:
            del ds[tag]


def _is_creator(tag: BaseTag) -> bool:
    return 0x0010 <= tag.element <= 0x00FF  # PS3.5 7.8.1


def _stays(ds: Dataset, tag: BaseTag, *, safe: bool, ours: bool) -> bool:
    found = ds.get(Tag(tag.group, tag.element >> 8))
    creator = str(found.value).strip() if found is not None else ""
    if ours and creator == PRIVATE_CREATOR:
        return True
    return safe and (creator, tag.group, tag.element & 0xFF) in _safe()


@cache
def _safe() -> frozenset[tuple[str, int, int]]:
    text = files("dicomnode.deidentify").joinpath("private_safe.csv").read_text()
    lines = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return frozenset((each["creator"], int(each["group"], 16), int(each["element"], 16)) for each in lines)
