"""Filters of the templates: moments, durations, sizes, names and events as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from db.models import Event
from dicomnode.deployment.display_names import name_pipeline, title_pipeline

__all__ = [
    "FILTERS",
    "describe_event",
    "format_age",
    "format_duration",
    "format_number",
    "format_person_name",
    "shorten_uid",
]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STATE_NAMES = MappingProxyType({
    "ready": "waiting", "dead": "failed", "given_up": "given up", "routed": "routed", "done": "finished",
})  # fmt: skip
_SUBJECT_NAMES = MappingProxyType({
    "studies": "Study", "jobs": "Job", "deliveries": "Delivery", "instances": "Instance", "quarantine": "Quarantine",
    "prior_searches": "Search at a peer", "workitems": "Workitem", "destination": "Destination", "results": "Result",
    "proofs": "Proof", "commitment_requests": "Commitment request",
    "models": "Model", "clock": "Clock", "accounts": "Account",
})  # fmt: skip


def format_duration(seconds: float | None) -> str:
    """Format a duration in at most two units."""
    if seconds is None:
        return ""
    rounded = round(seconds)
    if rounded < _MINUTE:
        return f"{rounded} s"
    if rounded < _HOUR:
        minutes, rest = divmod(rounded, _MINUTE)
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    if rounded < 2 * _DAY:
        hours, rest = divmod(rounded // _MINUTE, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{rounded // _DAY} days"


def format_age(moment: datetime | None, now: datetime) -> str:
    """Format the time since a moment."""
    if moment is None:
        return ""
    seconds = (now - moment).total_seconds()
    return "just now" if seconds < 5 else f"{format_duration(seconds)} ago"


def format_person_name(name: str, mask: bool = False) -> str:
    """Format the first non-empty group of a person's name (PS3.5 6.2.1.2) as "Family, Given"."""
    if not name:
        return ""
    if mask:
        return "name masked"
    group = next((each for each in name.split("=") if each.strip("^ ")), "")
    family, given_name, *rest = [part.strip() for part in [*group.split("^"), "", ""]]
    given_names = " ".join(part for part in (given_name, rest[0]) if part)
    return ", ".join(part for part in (family, given_names) if part)


def format_patient_id(value: str, mask: bool = False) -> str:
    """Format a Patient ID; masked, its last three characters stay, to distinguish patients."""
    if not mask or not value:
        return value
    return f"…{value[-3:]}" if len(value) > 5 else "masked"


def format_number(value: Any) -> str:
    """Format a measurement with four digits; an integer unchanged, with thin spaces between thousands."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.4g}"


def describe_event(event: Event) -> str:
    """Describe an event of the audit trail in a sentence, with the account that caused it."""
    text, account = _describe_cause(event), str(event.detail.get("account", ""))
    is_own = event.subject == "accounts" and event.subject_id == account and "who" not in event.detail
    is_named = re.search(rf"(\bby |: ){re.escape(account)}(?![\w.:@-]*\w)", text)  # not as a part of another name
    return text if not account or is_own or is_named else f"{text}, by {account}"


def _describe_cause(event: Event) -> str:
    detail = event.detail
    subject = _SUBJECT_NAMES.get(event.subject, event.subject)
    who = f"{subject} {event.subject_id}".strip()
    if event.event == "moved":
        why = f": {detail['reason']}" if detail.get("reason") else ""
        return f"{who} {_format_state(str(detail.get('from', '')))} → {_format_state(str(detail.get('to', '')))}{why}"
    if event.event == "enqueued":
        return f"{who} made for {detail.get('pipeline', '')} by route {detail.get('route', '')}"
    if event.subject == "deployments":
        by = detail.get("who") or detail.get("by") or "somebody"
        what = f"{detail.get('model', '')} {event.event} as {detail.get('mode', '')}"
        return f"{what} of {detail.get('pipeline', '')}: {by}"
    detail_text = detail.get("reason") or detail.get("who") or detail.get("sender") or ""
    return f"{who} {event.event.replace('_', ' ')}" + (f": {detail_text}" if detail_text else "")


def _format_state(state: Any) -> str:
    return _STATE_NAMES.get(str(state), str(state))


def _format_date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:8]}" if len(value) == 8 and value.isdecimal() else value


def _format_time(value: str) -> str:
    return f"{value[:2]}:{value[2:4]}" if len(value) >= 4 and value[:4].isdecimal() else ""


def _format_moment(value: datetime | None) -> str:
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _format_size(count: float) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _format_count(count: int, noun: str, plural: str = "") -> str:
    return f"{format_number(count)} {noun if count == 1 else plural or noun + 's'}"


def _format_nested(value: Any) -> str:
    """Format nested values on one line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_format_nested(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_format_nested(each) for each in value)
    return format_number(value)


def shorten_uid(uid: str) -> str:
    """Shorten a UID or digest to its end, which differs between objects."""
    return uid if len(uid) <= 14 else f"…{uid[-12:]}"


FILTERS: Mapping[str, Callable[..., Any]] = MappingProxyType({
    "ago": format_age, "date": _format_date, "describe_event": describe_event, "duration": format_duration,
    "moment": _format_moment, "nested": _format_nested, "number": format_number, "patient_id": format_patient_id,
    "person": format_person_name, "plural": _format_count, "short": shorten_uid, "size": _format_size,
    "pipeline_name": name_pipeline, "pipeline_title": title_pipeline, "state": _format_state, "time": _format_time,
})  # fmt: skip
