"""Orders of workitems to this node: route or pipeline, study and series, options and destinations.

Names of this node are codes of the scheme 99DICOMNODE: of the Scheduled Workitem Code Sequence the name of a route or
pipeline, of a processing parameter the name of an option or ``model``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from db.models import Workitem
from dicomnode.config import Config, Route
from dicomnode.config.routes import name_of_workitem
from dicomnode.datasets import moments
from dicomnode.datasets.json_elements import Elements
from dicomnode.deployment import pipeline_names
from dicomnode.errors import ConfigError, NotAllowed
from dicomnode.worklist import elements as dicom

__all__ = ["SCHEME", "Order", "find_own_code", "has_expired", "is_due", "is_for_this_node", "read_order", "waits_until"]

SCHEME = "99DICOMNODE"
_PRIORITIES = {"HIGH": 1000, "LOW": -1000}


@dataclass(frozen=True)
class Order:
    """The work of one workitem. ``route``: what to run, under the workitem's own name; ``series_uids``: empty for all
    series that the route matches; ``sop_instance_uids``: those that must have arrived."""

    route: Route
    study_uid: str
    series_uids: frozenset[str]
    sop_instance_uids: frozenset[str]
    patient_id: str


def find_own_code(attributes: Elements) -> str:
    """Return the name of a route or pipeline of this node that a workitem states, or ""."""
    codes = map(dicom.read_code, dicom.items(attributes, "ScheduledWorkitemCodeSequence"))
    return next((value for value, scheme in codes if scheme == SCHEME), "")


def is_for_this_node(attributes: Elements, config: Config) -> bool:
    """Return whether a workitem names work of this node, and no other station to do it."""
    stations = [dicom.read_code(each)[0] for each in dicom.items(attributes, "ScheduledStationNameCodeSequence")]
    return bool(find_own_code(attributes)) and (not stations or config.node.ae_title in stations)


def is_due(attributes: Elements, config: Config, now: datetime) -> bool:
    """Return whether the inputs are ready and the start has come; a start without offset is in the node's zone."""
    if dicom.text(attributes, "InputReadinessState") != "READY":
        return False
    start = dicom.text(attributes, "ScheduledProcedureStepStartDateTime")
    local = config.node.to_local_time(now)
    begin = _parse_start(start, local)
    return start[:8] <= local.strftime("%Y%m%d") if begin is None else begin <= now


def waits_until(row: Workitem, config: Config, now: datetime) -> datetime:
    """Return when a workitem has waited for its inputs as long as it may: since its last change, or its start."""
    return _find_begin(row, config, now) + timedelta(hours=config.worklist.wait_h)


def has_expired(row: Workitem, config: Config, now: datetime) -> bool:
    """Return whether nobody claimed a workitem in time: counted from its last change, or its start.

    A start that is no moment but lies ahead, such as one in 9999, keeps it.
    """
    local = config.node.to_local_time(now)
    start = dicom.text(row.attributes, "ScheduledProcedureStepStartDateTime")
    if _parse_start(start, local) is None and start[:8] > local.strftime("%Y%m%d"):
        return False
    return _find_begin(row, config, now) + timedelta(days=config.worklist.unclaimed_days) <= now


def _find_begin(row: Workitem, config: Config, now: datetime) -> datetime:
    """Return the later of a workitem's last change and its start."""
    local = config.node.to_local_time(now)
    start = dicom.text(row.attributes, "ScheduledProcedureStepStartDateTime")
    begin = _parse_start(start, local) or _parse_start(f"{start[:8]}000000", local)
    return max(filter(None, (row.updated_at, begin)))


def _parse_start(start: str, local: datetime) -> datetime | None:
    """Return the moment of a start, without an offset of its own in the zone of ``local``; None for a date alone."""
    begin = moments.parse_datetime(start, local.utcoffset())
    return None if begin is None or begin.offset is None else begin.local.replace(tzinfo=timezone(begin.offset))


def read_order(uid: str, attributes: Elements, config: Config) -> Order:
    """Read what a workitem orders. Raises NotAllowed with the reason for what this node cannot do."""
    study_uid, series_uids, sop_instance_uids = _read_inputs(attributes)
    route = _find_route(find_own_code(attributes), bool(series_uids), config)
    options = dict(route.options) | _read_options(attributes)
    changes: dict[str, Any] = {
        "name": name_of_workitem(uid, route.name if route in config.routes else ""),
        "priority": route.priority + _PRIORITIES.get(dicom.text(attributes, "ScheduledProcedureStepPriority"), 0),
        "model": str(options.pop("model", route.model)),
        "options": options,
    }
    if destinations := _read_destinations(attributes, config):
        changes["destinations"] = destinations
    own = route.model_copy(update=changes)
    return Order(own, study_uid, series_uids, sop_instance_uids, dicom.text(attributes, "PatientID"))


def _read_inputs(attributes: Elements) -> tuple[str, frozenset[str], frozenset[str]]:
    """Return the UIDs of study, series and instances. Raises NotAllowed for items of which a part would be ignored."""
    items = dicom.items(attributes, "InputInformationSequence")
    study_uids = {dicom.text(item, "StudyInstanceUID") for item in items}
    if len(study_uids) != 1 or "" in study_uids:
        what = "several studies" if len(study_uids - {""}) > 1 else "no study"
        raise NotAllowed(f"the Input Information Sequence names {what}; one is a must")
    series_uids = frozenset(dicom.text(item, "SeriesInstanceUID") for item in items)
    references = [dicom.items(item, "ReferencedSOPSequence") for item in items]
    if "" in series_uids and (len(series_uids) > 1 or any(references)):
        what = "instances without their series" if any(references) else "a whole study beside series of it"
        raise NotAllowed(f"the Input Information Sequence names {what}")
    sop_instance_uids = {dicom.text(each, "ReferencedSOPInstanceUID") for those in references for each in those}
    return study_uids.pop(), series_uids - {""}, frozenset(sop_instance_uids) - {""}


def _find_route(name: str, has_series: bool, config: Config) -> Route:
    """Return the route of that name, or one that runs the pipeline of that name on every series that is stated.

    A pipeline takes further inputs, and without a stated series its own, as the first route that runs it does.
    """
    if (route := next((each for each in config.routes if each.name == name), None)) is not None:
        return route
    try:
        pipeline_names.check_pipeline(name, config)
    except ConfigError:
        raise NotAllowed(f"{name!r} is neither a route nor a pipeline of this node") from None
    like = next((each for each in config.routes if each.pipeline == name), None)
    if not has_series and like is None:
        raise NotAllowed(f"no route runs {name}, so the Input Information Sequence has to name the series")
    match = {} if has_series or like is None else like.match
    further = {"with_": like.with_, "prior": like.prior} if like else {}
    return Route(name=name, pipeline=name, match=match).model_copy(update=further)


def _read_options(attributes: Elements) -> dict[str, Any]:
    """Return the options of the processing parameters. Raises NotAllowed for one whose value is not understood."""
    options: dict[str, Any] = {}
    for item in dicom.items(attributes, "ScheduledProcessingParametersSequence"):
        codes = [dicom.read_code(each) for each in dicom.items(item, "ConceptNameCodeSequence")]
        name = next((value for value, scheme in codes if scheme == SCHEME), "")
        if name:
            options[name] = _read_value(name, item)
    return options


def _read_value(name: str, item: Mapping[str, Any]) -> Any:
    """Return a number, or a text, which may be JSON: true, 0.5, ["hippocampus"]. Raises NotAllowed."""
    if dicom.has_value(item, "NumericValue"):
        number = _read_number(name, dicom.values(item, "NumericValue"))
        return int(number) if number.is_integer() else number
    if not dicom.has_value(item, "TextValue"):
        raise NotAllowed(f"the processing parameter {name!r} has neither a Text Value nor a Numeric Value")
    words = dicom.text(item, "TextValue")
    try:
        value = json.loads(words)
    except (ValueError, RecursionError):
        return words
    if not _is_finite(value):
        raise NotAllowed(f"the processing parameter {name!r} is not finite")
    return value


def _read_number(name: str, numbers: list[Any]) -> float:
    if len(numbers) != 1 or numbers[0] is None:
        raise NotAllowed(f"the processing parameter {name!r} has to have one Numeric Value")
    if not math.isfinite(number := float(numbers[0])):
        raise NotAllowed(f"the processing parameter {name!r} is not finite")
    return number


def _is_finite(value: Any) -> bool:
    """Return whether all numbers of a value from JSON are finite."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _read_destinations(attributes: Elements, config: Config) -> tuple[str, ...]:
    """Return the names of the peers that get the results. Raises NotAllowed for a destination that is no peer."""
    names: list[str] = []
    for item in dicom.items(attributes, "OutputDestinationSequence"):
        titles = [dicom.text(each, "DestinationAE") for each in dicom.items(item, "DICOMStorageSequence")]
        if not titles:
            raise NotAllowed("results go to DICOM application entities only: name one in the DICOM Storage Sequence")
        for title in titles:
            name = next((peer.name for peer in config.peers if peer.ae_title == title), None)
            if name is None:
                raise NotAllowed(f"the destination {title!r} is none of this node's peers")
            names.append(name)
    return tuple(dict.fromkeys(names))
