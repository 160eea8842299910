"""How values are written on pages: moments, spans, sizes, names. Filters of the templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from db.models import Event

__all__ = ["FILTERS", "ago", "happened", "number", "person", "span"]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STATES = MappingProxyType({
    "ready": "waiting", "dead": "failed", "given_up": "given up", "routed": "routed", "done": "finished",
})  # fmt: skip
_SUBJECTS = MappingProxyType({
    "studies": "Study", "jobs": "Job", "deliveries": "Delivery", "instances": "Instance", "quarantine": "Quarantine",
    "prior_searches": "Search at a peer", "destination": "Destination", "results": "Result",
    "models": "Model", "clock": "Clock",
})  # fmt: skip


def span(seconds: float | None) -> str:
    """A length of time, to two units at most."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        minutes, rest = divmod(whole, _MINUTE)
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    if whole < 2 * _DAY:
        hours, rest = divmod(whole // _MINUTE, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{whole // _DAY} days"


def ago(moment: datetime | None, now: datetime) -> str:
    """How long it has been."""
    if moment is None:
        return ""
    seconds = (now - moment).total_seconds()
    return "just now" if seconds < 5 else f"{span(seconds)} ago"


def person(name: str, mask: bool = False) -> str:
    """A person's name as people write it (PS3.5 6.2.1.2), the first group that is not empty; or that it is masked."""
    if not name:
        return ""
    if mask:
        return "name masked"
    group = next((each for each in name.split("=") if each.strip("^ ")), "")
    family, given, *rest = [part.strip() for part in [*group.split("^"), "", ""]]
    words = " ".join(part for part in (given, rest[0]) if part)
    return ", ".join(part for part in (family, words) if part)


def patient_id(value: str, mask: bool = False) -> str:
    """A Patient ID; masked, its last three characters stay, to tell two studies apart."""
    if not mask or not value:
        return value
    return f"…{value[-3:]}" if len(value) > 5 else "masked"


def number(value: Any) -> str:
    """A measurement to four digits, a whole number as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.4g}"


def happened(event: Event) -> str:
    """An event of the audit trail as a sentence."""
    detail = event.detail
    subject = _SUBJECTS.get(event.subject, event.subject)
    who = subject if event.subject == "studies" else f"{subject} {event.subject_id}".strip()
    if event.event == "moved":
        why = f": {detail['reason']}" if detail.get("reason") else ""
        return f"{who} {_state(str(detail.get('from', '')))} → {_state(str(detail.get('to', '')))}{why}"
    if event.event == "enqueued":
        return f"{who} made for {detail.get('pipeline', '')} by route {detail.get('route', '')}"
    if event.subject == "deployments":
        by = detail.get("who") or detail.get("by") or "somebody"
        what = f"{detail.get('model', '')} {event.event} as {detail.get('mode', '')}"
        return f"{what} of {detail.get('pipeline', '')}: {by}"
    told = detail.get("reason") or detail.get("who") or detail.get("sender") or ""
    return f"{who} {event.event.replace('_', ' ')}" + (f": {told}" if told else "")


def _state(state: Any) -> str:
    return _STATES.get(str(state), str(state))


def _date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:8]}" if len(value) == 8 and value.isdecimal() else value


def _time(value: str) -> str:
    return f"{value[:2]}:{value[2:4]}" if len(value) >= 4 and value[:4].isdecimal() else ""


def _moment(value: datetime | None) -> str:
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _size(count: float) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _plural(count: int, word: str, several: str = "") -> str:
    return f"{number(count)} {word if count == 1 else several or word + 's'}"


def _in_words(value: Any) -> str:
    """Nested values on one line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_in_words(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_in_words(each) for each in value)
    return number(value)


def _short(uid: str) -> str:
    """The end of a UID or digest, where they differ."""
    return uid if len(uid) <= 14 else f"…{uid[-12:]}"


FILTERS: Mapping[str, Callable[..., Any]] = MappingProxyType({
    "ago": ago, "date": _date, "happened": happened, "moment": _moment, "number": number, "patient_id": patient_id,
    "person": person, "plural": _plural, "short": _short, "size": _size, "span": span, "state": _state, "time": _time,
    "in_words": _in_words,
})  # fmt: skip
