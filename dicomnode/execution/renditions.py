"""Whose is what: the objects of a job in every form that its destinations want, each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import Dataset

from dicomnode.config.results import ResultsConfig

if TYPE_CHECKING:
    from dicomnode.delivery.negotiation import Chosen
    from dicomnode.execution.processing import Produced

__all__ = ["Assigned", "assigned"]


@dataclass(frozen=True)
class Assigned:
    """An object; ``rendition`` is empty for the node's own, else names the form. ``destinations`` None: all."""

    ds: Dataset
    rendition: str = ""
    destinations: tuple[str, ...] | None = None
    spare_for: tuple[str, ...] = ()


def assigned(produced: Produced, own: ResultsConfig, chosen: Mapping[str, Chosen]) -> list[Assigned]:
    """The node's own objects first. Objects of several forms that are the same have the same UID and are kept once."""
    sets = {own: produced.objects} | dict(produced.forms)
    if all(each.results == own and each.spare is None for each in chosen.values()):
        return [Assigned(ds) for ds in produced.objects]
    members = {form: {ds.SOPInstanceUID for ds in objects} for form, objects in sets.items()}
    found: dict[str, Assigned] = {}
    for form, objects in sets.items():
        for ds in objects:
            uid = ds.SOPInstanceUID
            get = tuple(name for name, each in chosen.items() if uid in members[each.results])
            spare = tuple(name for name, each in chosen.items() if each.spare and uid in members[each.spare])
            found.setdefault(uid, Assigned(ds, "" if form == own else form.rendition_key or "other", get, spare))
    return list(found.values())
