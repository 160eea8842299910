"""What a process counts while it receives, for /metrics: in a registry of the node's own, never a patient's word.

Labels come from lists of ours, so their number is bounded whatever is sent.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from dicomnode import errors
from dicomnode.errors import NodeError

__all__ = ["Meters"]

_REASONS: dict[type[Exception], str] = {
    errors.OutOfSpace: "out_of_space",
    errors.OverRate: "over_rate",
    errors.TooLarge: "too_large",
    errors.MismatchedClass: "mismatched_class",
    errors.CannotUnderstand: "cannot_understand",
    errors.DuplicateConflict: "duplicate_conflict",
}
_OTHER = "not_kept"
_UNKNOWN = "unknown_sender"
_AT_THE_DOOR = ("too_many_associations", "too_many_connections", "tls", "silent")
"""Why a connection came to nothing: above a limit, no TLS as we want it, no association request in time."""


class Meters:
    """Counters of one process; Prometheus takes a restart for what it is."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instances = Counter(
            "dicomnode_ingest_instances",
            "Instances that were acknowledged: new, or here already with the same content.",
            ["outcome"],
            registry=self.registry,
        )
        self._bytes = Counter("dicomnode_ingest_bytes", "Bytes of acknowledged instances.", registry=self.registry)
        self._refused = Counter(
            "dicomnode_ingest_refused", "Instances that were refused.", ["reason"], registry=self.registry
        )
        self._associations = Counter(
            "dicomnode_associations_refused", "Associations that were refused.", ["reason"], registry=self.registry
        )
        for reason in (*_REASONS.values(), _OTHER):  # so that the first one is an increase
            self._refused.labels(reason)
        for reason in (_UNKNOWN, "out_of_space", *_AT_THE_DOOR):
            self._associations.labels(reason)
        for outcome in ("new", "duplicate"):
            self._instances.labels(outcome)

    def received(self, outcome: str, size_bytes: int) -> None:
        """An instance was acknowledged."""
        self._instances.labels(outcome).inc()
        self._bytes.inc(size_bytes)

    def refused(self, error: Exception) -> None:
        """An instance was not."""
        self._refused.labels(_REASONS.get(type(error), _OTHER)).inc()

    def association_refused(self, error: NodeError | None) -> None:
        """An association was not accepted: by the error, or for who asked for it."""
        self._associations.labels(_UNKNOWN if error is None else _REASONS.get(type(error), _OTHER)).inc()

    def turned_away(self, reason: str) -> None:
        """A connection came to nothing before an association was accepted."""
        self._associations.labels(reason if reason in _AT_THE_DOOR else _OTHER).inc()
