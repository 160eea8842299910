"""The states of rows, and the tables of allowed moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

__all__ = [
    "TRANSITIONS",
    "DeliveryState",
    "DeploymentMode",
    "InvalidTransition",
    "JobState",
    "NotificationState",
    "QuarantineState",
    "RetrievalPurpose",
    "RetrievalState",
    "StudyState",
    "check_transition",
]


class InvalidTransition(Exception):
    """A row may not go from its state to the one asked for."""


class StudyState(StrEnum):
    """A study's newest revision: still arriving, closed, and given to the routes."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    ROUTED = "routed"


class JobState(StrEnum):
    """A job waits, runs under a lease, is held for a person's decision, or has ended.

    ``refused``: nothing broke, but the input or what came of it may not go out; ``dead``: it failed too often.
    """

    READY = "ready"
    RUNNING = "running"
    HELD = "held"
    DONE = "done"
    REFUSED = "refused"
    DEAD = "dead"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """One result object for one destination."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class NotificationState(StrEnum):
    """One event of a job for one of those who are told."""

    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    GIVEN_UP = "given_up"


class DeploymentMode(StrEnum):
    """How a pipeline uses a version: for all studies, beside the current one without delivering, or for a share."""

    CURRENT = "current"
    SHADOW = "shadow"
    SHARE = "share"


class QuarantineState(StrEnum):
    """What ingest refused to treat as a normal instance."""

    KEPT = "kept"
    RELEASED = "released"
    DISCARDED = "discarded"


class RetrievalPurpose(StrEnum):
    """What a study's search at a peer is for: an earlier examination, or series that the study lacks here."""

    PRIOR = "prior"
    SERIES = "series"


class RetrievalState(StrEnum):
    """A study's search at a peer: to be asked for, on its way, all here, or none came."""

    WANTED = "wanted"
    FETCHING = "fetching"
    ARRIVED = "arrived"
    ENDED = "ended"


_STUDY = {
    StudyState.RECEIVING: {StudyState.COMPLETE},
    StudyState.COMPLETE: {StudyState.ROUTED, StudyState.RECEIVING},
    StudyState.ROUTED: {StudyState.RECEIVING},
}

_JOB = {
    JobState.READY: {JobState.RUNNING, JobState.CANCELLED},
    JobState.RUNNING: {
        JobState.DONE,
        JobState.HELD,
        JobState.REFUSED,
        JobState.READY,
        JobState.DEAD,
        JobState.CANCELLED,
    },
    JobState.HELD: {JobState.DONE, JobState.CANCELLED},
    JobState.DONE: set[JobState](),
    JobState.REFUSED: {JobState.READY, JobState.CANCELLED},
    JobState.DEAD: {JobState.READY, JobState.CANCELLED},
    JobState.CANCELLED: {JobState.READY},
}

_DELIVERY = {
    DeliveryState.WAITING: {DeliveryState.SENDING, DeliveryState.GIVEN_UP},
    DeliveryState.SENDING: {DeliveryState.DELIVERED, DeliveryState.WAITING, DeliveryState.GIVEN_UP},
    DeliveryState.DELIVERED: set[DeliveryState](),
    DeliveryState.GIVEN_UP: {DeliveryState.WAITING},
}

_NOTIFICATION = {
    NotificationState.WAITING: {NotificationState.SENDING, NotificationState.GIVEN_UP},
    NotificationState.SENDING: {NotificationState.SENT, NotificationState.WAITING},
    NotificationState.SENT: set[NotificationState](),
    NotificationState.GIVEN_UP: set[NotificationState](),
}

_QUARANTINE = {
    QuarantineState.KEPT: {QuarantineState.RELEASED, QuarantineState.DISCARDED},
    QuarantineState.RELEASED: set[QuarantineState](),
    QuarantineState.DISCARDED: set[QuarantineState](),
}

_SEARCH = {
    RetrievalState.WANTED: {RetrievalState.FETCHING, RetrievalState.ENDED},
    RetrievalState.FETCHING: {RetrievalState.ARRIVED, RetrievalState.ENDED},
    RetrievalState.ARRIVED: set[RetrievalState](),
    RetrievalState.ENDED: set[RetrievalState](),
}

TRANSITIONS: Mapping[type[StrEnum], Mapping[Any, set[Any]]] = {
    StudyState: _STUDY,
    JobState: _JOB,
    DeliveryState: _DELIVERY,
    NotificationState: _NOTIFICATION,
    QuarantineState: _QUARANTINE,
    RetrievalState: _SEARCH,
}


def check_transition(old: StrEnum, new: StrEnum) -> None:
    """Refuse a move that the table of the state's kind does not have."""
    if new not in TRANSITIONS[type(old)][old]:
        allowed = ", ".join(sorted(TRANSITIONS[type(old)][old])) or "nothing"
        raise InvalidTransition(f"{type(old).__name__} {old} may not become {new}, only {allowed}")
