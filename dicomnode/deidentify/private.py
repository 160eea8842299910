"""Removal of private elements, except the node's own provenance record and, if the profile keeps them, those of the
list of safe ones."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from dicomnode.results.provenance import PRIVATE_CREATOR

__all__ = ["clean_private_elements"]


def clean_private_elements(ds: Dataset, *, safe: bool, is_own: bool) -> None:
    """Remove the private elements at this level of the data set; private sequences are removed with their items."""
    private = [tag for tag in ds.keys() if tag.is_private]  # noqa: SIM118 a data set's iterator decodes values
    safe_tags = {tag for tag in private if not _is_creator(tag) and _is_kept(ds, tag, safe=safe, is_own=is_own)}
    creators = {Tag(tag.group, tag.element >> 8) for tag in safe_tags}
    for tag in private:
        if tag not in safe_tags and tag not in creators:
            del ds[tag]


def _is_creator(tag: BaseTag) -> bool:
    return 0x0010 <= tag.element <= 0x00FF  # PS3.5 7.8.1


def _is_kept(ds: Dataset, tag: BaseTag, *, safe: bool, is_own: bool) -> bool:
    creator_element = ds.get(Tag(tag.group, tag.element >> 8))
    creator = str(creator_element.value).strip() if creator_element is not None else ""
    if is_own and creator == PRIVATE_CREATOR:
        return True
    return safe and (creator, tag.group, tag.element & 0xFF) in _load_safe_elements()


@cache
def _load_safe_elements() -> frozenset[tuple[str, int, int]]:
    text = files("dicomnode.deidentify").joinpath("private_safe.csv").read_text()
    lines = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return frozenset((each["creator"], int(each["group"], 16), int(each["element"], 16)) for each in lines)
