"""Counters of a receiving process for /metrics, in the node's own registry and without patient data.

Labels come from fixed lists, so their number is bounded, whatever a sender sends.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from dicomnode import errors
from dicomnode.errors import NodeError
from dicomnode.monitoring.refused_callers import RefusedCallers

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
_BEFORE_ASSOCIATION = ("too_many_associations", "too_many_connections", "tls", "silent")
"""Reasons why a connection ended before an association: a limit, a failed TLS handshake, no request in time."""


class Meters:
    """Counters of one process; Prometheus recognizes a restart by their return to zero."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.refused_callers = RefusedCallers()
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
        for reason in (*_REASONS.values(), _OTHER):  # so that the first event is an increase
            self._refused.labels(reason)
        for reason in (_UNKNOWN, "out_of_space", *_BEFORE_ASSOCIATION):
            self._associations.labels(reason)
        for outcome in ("new", "duplicate"):
            self._instances.labels(outcome)

    def count_received(self, outcome: str, size_bytes: int) -> None:
        """Count an acknowledged instance."""
        self._instances.labels(outcome).inc()
        self._bytes.inc(size_bytes)

    def count_refused(self, error: Exception) -> None:
        """Count an instance that was refused with that error."""
        self._refused.labels(_REASONS.get(type(error), _OTHER)).inc()

    def count_refused_association(self, error: NodeError | None) -> None:
        """Count an association that was rejected with the error, or, where that is None, as its sender is unknown."""
        self._associations.labels(_UNKNOWN if error is None else _REASONS.get(type(error), _OTHER)).inc()

    def count_refused_connection(self, reason: str) -> None:
        """Count a connection that ended before an association was accepted."""
        self._associations.labels(reason if reason in _BEFORE_ASSOCIATION else _OTHER).inc()
