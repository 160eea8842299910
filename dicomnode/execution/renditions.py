"""The objects of a job in all renditions of its destinations, each once, and the destinations of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import Dataset

from dicomnode.config.results import ResultsConfig

if TYPE_CHECKING:
    from dicomnode.delivery.negotiation import KindChoice
    from dicomnode.execution.processing import TaskResult

__all__ = ["AssignedObject", "assign_objects"]


@dataclass(frozen=True)
class AssignedObject:
    """An object with its destinations.

    ``rendition``: empty for the node's own, else its name. ``destinations``: None for all of them. ``spare_for``: the
    destinations that get the object should they not accept the one of their choice.
    """

    ds: Dataset
    rendition: str = ""
    destinations: tuple[str, ...] | None = None
    spare_for: tuple[str, ...] = ()


def assign_objects(produced: TaskResult, own: ResultsConfig, chosen: Mapping[str, KindChoice]) -> list[AssignedObject]:
    """Return all objects with their destinations, the node's own first.

    Equal objects of several renditions have the same UID and are returned once.
    """
    sets = {own: produced.objects} | dict(produced.renditions)
    if all(each.results == own and each.spare is None for each in chosen.values()):
        return [AssignedObject(ds) for ds in produced.objects]
    members = {form: {ds.SOPInstanceUID for ds in objects} for form, objects in sets.items()}
    found: dict[str, AssignedObject] = {}
    for form, objects in sets.items():
        for ds in objects:
            uid = ds.SOPInstanceUID
            receivers = tuple(name for name, each in chosen.items() if uid in members[each.results])
            spare = tuple(name for name, each in chosen.items() if each.spare and uid in members[each.spare])
            rendition = "" if form == own else form.rendition_key or "other"
            found.setdefault(uid, AssignedObject(ds, rendition, receivers, spare))
    return list(found.values())
