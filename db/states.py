"""States of rows, and the tables of allowed transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

__all__ = [
    "TRANSITIONS",
    "TRIAL_PREFIX",
    "WORKITEM_PREFIX",
    "DeliveryState",
    "DeploymentMode",
    "InvalidTransition",
    "JobState",
    "LearningState",
    "NotificationState",
    "ProofState",
    "ProofStep",
    "QuarantineState",
    "ReportState",
    "RetrievalPurpose",
    "RetrievalState",
    "Role",
    "StudyState",
    "WorkitemState",
    "check_transition",
]


TRIAL_PREFIX = "trial:"
"""Beginning of the route's name in jobs that a person starts to try a pipeline; no route of node.toml has it."""

WORKITEM_PREFIX = "workitem:"
"""Beginning of the route's name in jobs of a workitem, whose UID follows; no route of node.toml has it."""


class InvalidTransition(Exception):
    """Transition that the row's state does not allow."""


class Role(StrEnum):
    """Rights of a person on the web, each role with all of those before it: read; decide and run; configure."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"

    def includes(self, needed: Role) -> bool:
        """Return whether this role suffices where ``needed`` is asked for."""
        roles = list(Role)
        return roles.index(self) >= roles.index(needed)


class StudyState(StrEnum):
    """State of a study's newest revision: still arriving, closed, or matched with the routes."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    ROUTED = "routed"


class JobState(StrEnum):
    """State of a job: waiting, running under a lease, held for a person's decision, or ended.

    ``refused``: no fault occurred, but the input or the result may not go out. ``dead``: no attempts are left.
    """

    READY = "ready"
    RUNNING = "running"
    HELD = "held"
    DONE = "done"
    REFUSED = "refused"
    DEAD = "dead"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """State of the delivery of one result object to one destination."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class NotificationState(StrEnum):
    """State of the notification of one receiver of one event of a job."""

    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    GIVEN_UP = "given_up"


class ReportState(StrEnum):
    """State of the report on a storage commitment that was requested of this node."""

    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    GIVEN_UP = "given_up"


class ProofState(StrEnum):
    """State of a delivered object: sent, committed by the destination, found there by a search, or not proven."""

    SENT = "sent"
    COMMITTED = "committed"
    VERIFIED = "verified"
    UNPROVEN = "unproven"


class ProofStep(StrEnum):
    """Next step towards the proof: request commitment, wait for the report, search the destination, or none."""

    REQUEST = "request"
    REPORT = "report"
    READ_BACK = "read_back"
    NONE = "none"


class DeploymentMode(StrEnum):
    """Use of a version by a pipeline: for all studies, in shadow of the current one, or for a share of them."""

    CURRENT = "current"
    SHADOW = "shadow"
    SHARE = "share"


class ReadingVerdict(StrEnum):
    """Decision of a reader on a result."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class LearningState(StrEnum):
    """State of a learning run: cases are exported, the network trains, the new version is evaluated, or it failed."""

    EXPORTING = "exporting"
    TRAINING = "training"
    EVALUATED = "evaluated"
    FAILED = "failed"


class QuarantineState(StrEnum):
    """State of a file that ingest refused to register as an instance."""

    KEPT = "kept"
    RELEASED = "released"
    DISCARDED = "discarded"


class RetrievalPurpose(StrEnum):
    """Purpose of a retrieval from a peer: a prior examination, or series of the study that are missing here."""

    PRIOR = "prior"
    SERIES = "series"


class RetrievalState(StrEnum):
    """State of a retrieval from a peer: to be requested, in transfer, complete, or ended without a complete result."""

    WANTED = "wanted"
    FETCHING = "fetching"
    ARRIVED = "arrived"
    ENDED = "ended"


class WorkitemState(StrEnum):
    """Procedure Step State of a workitem (PS3.4 CC.1.1), spelled as in DICOM."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


_STUDY = {
    StudyState.RECEIVING: {StudyState.COMPLETE},
    StudyState.COMPLETE: {StudyState.ROUTED, StudyState.RECEIVING},
    StudyState.ROUTED: {StudyState.RECEIVING, StudyState.COMPLETE},
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
    DeliveryState.DELIVERED: {DeliveryState.WAITING},
    DeliveryState.GIVEN_UP: {DeliveryState.WAITING},
}

_PROOF = {
    ProofState.SENT: {ProofState.COMMITTED, ProofState.VERIFIED, ProofState.UNPROVEN},
    ProofState.COMMITTED: {ProofState.SENT},
    ProofState.VERIFIED: {ProofState.COMMITTED, ProofState.SENT},
    ProofState.UNPROVEN: {ProofState.COMMITTED, ProofState.SENT},
}

_NOTIFICATION = {
    NotificationState.WAITING: {NotificationState.SENDING, NotificationState.GIVEN_UP},
    NotificationState.SENDING: {NotificationState.SENT, NotificationState.WAITING},
    NotificationState.SENT: set[NotificationState](),
    NotificationState.GIVEN_UP: set[NotificationState](),
}

_REPORT = {
    ReportState.WAITING: {ReportState.SENDING, ReportState.GIVEN_UP},
    ReportState.SENDING: {ReportState.SENT, ReportState.WAITING},
    ReportState.SENT: {ReportState.WAITING},
    ReportState.GIVEN_UP: {ReportState.WAITING},
}

_QUARANTINE = {
    QuarantineState.KEPT: {QuarantineState.RELEASED, QuarantineState.DISCARDED},
    QuarantineState.RELEASED: set[QuarantineState](),
    QuarantineState.DISCARDED: set[QuarantineState](),
}

_RETRIEVAL = {
    RetrievalState.WANTED: {RetrievalState.FETCHING, RetrievalState.ENDED},
    RetrievalState.FETCHING: {RetrievalState.ARRIVED, RetrievalState.ENDED},
    RetrievalState.ARRIVED: set[RetrievalState](),
    RetrievalState.ENDED: set[RetrievalState](),
}

_LEARNING = {
    LearningState.EXPORTING: {LearningState.TRAINING, LearningState.FAILED},
    LearningState.TRAINING: {LearningState.EVALUATED, LearningState.FAILED},
    LearningState.EVALUATED: set[LearningState](),
    LearningState.FAILED: set[LearningState](),
}

_WORKITEM = {
    WorkitemState.SCHEDULED: {WorkitemState.IN_PROGRESS},
    WorkitemState.IN_PROGRESS: {WorkitemState.COMPLETED, WorkitemState.CANCELED},
    WorkitemState.COMPLETED: set[WorkitemState](),
    WorkitemState.CANCELED: set[WorkitemState](),
}

TRANSITIONS: Mapping[type[StrEnum], Mapping[Any, set[Any]]] = {
    StudyState: _STUDY,
    JobState: _JOB,
    DeliveryState: _DELIVERY,
    ProofState: _PROOF,
    NotificationState: _NOTIFICATION,
    QuarantineState: _QUARANTINE,
    ReportState: _REPORT,
    RetrievalState: _RETRIEVAL,
    LearningState: _LEARNING,
    WorkitemState: _WORKITEM,
}


def check_transition(old: StrEnum, new: StrEnum) -> None:
    """Raise InvalidTransition for a transition that the table of the state's kind does not contain."""
    if new not in TRANSITIONS[type(old)][old]:
        allowed = ", ".join(sorted(TRANSITIONS[type(old)][old])) or "nothing"
        raise InvalidTransition(f"{type(old).__name__} {old} may not become {new}, only {allowed}")
