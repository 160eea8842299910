"""Gauges of the node at the moment of a scrape: queues, disk, circuit breakers, workers, GPUs and sweeps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from db import destinations, proofs, queues, trail, workers
from db.states import ProofState
from dicomnode import tls
from dicomnode.config import Config
from dicomnode.errors import ConfigError, OutOfSpace
from dicomnode.installation import read_version
from dicomnode.monitoring.sweep_health import SweepHealth
from dicomnode.storage import spool

__all__ = ["Gauges"]

_ALIVE = timedelta(seconds=60)
"""The longest time since the last report of a worker that counts as alive."""

Values = Mapping[Any, float]
"""Values of a metric by the values of its labels."""


@dataclass(frozen=True, eq=False)
class Gauges(Collector):
    """Collector of all gauges, called by ``registry`` at every scrape.

    Where the database does not answer, ``database_up`` is 0 and the gauges that are read from it are absent.
    """

    config: Config
    readers: sessionmaker[Session]
    now: Callable[[], datetime]
    sweep_health: SweepHealth

    def register(self, registry: CollectorRegistry) -> None:
        """Add these gauges to the registry."""
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Return no metrics: names need not be known before a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge."""
        yield _gauge("build_info", "The version that runs.", ["version"], {(read_version(),): 1})
        yield from self._disk()
        yield from self._sweeps()
        yield self._certificates()
        try:
            with self.readers() as session:
                metrics = [*self._queues(session), *self._peers(session), *self._workers(session)]
                metrics.append(_plain("audit_events", "Events in the audit trail.", trail.read_head(session)))
        except SQLAlchemyError:
            metrics = []
        yield _plain("database_up", "Whether the database answers.", bool(metrics))
        yield from metrics

    def _queues(self, session: Session) -> Iterator[Metric]:
        studies = {(state,): count for state, count in queues.count_studies(session).items()}
        yield _gauge("studies", "Studies that are not routed yet.", ["state"], studies)
        jobs = queues.count_jobs(session)
        yield _gauge("jobs", "Jobs that are not done.", ["pipeline", "model", "state"], jobs)
        yield _gauge(
            "deliveries", "Objects that are not there.", ["destination", "state"], queues.count_deliveries(session)
        )
        open_proofs = proofs.count_open(session, (ProofState.SENT, ProofState.UNPROVEN))
        yield _gauge("proofs", "Delivered objects that are not proven.", ["destination", "state"], open_proofs)
        notifications = queues.count_notifications(session)
        yield _gauge("notifications", "Notifications that are not sent.", ["name", "state"], notifications)
        reports = queues.count_reports(session)
        yield _gauge("commitment_reports", "Reports on commitments that are not sent.", ["state"], reports)
        yield _gauge("searches", "Searches for what studies lack.", ["peer", "state"], queues.count_retrievals(session))
        yield _plain("quarantine", "Files in quarantine.", queues.count_quarantined(session))
        oldest = {(what,): age for what, age in queues.measure_oldest_s(session, now=self.now()).items()}
        yield _gauge("oldest_seconds", "How long the oldest of it has waited.", ["what"], oldest)

    def _peers(self, session: Session) -> Iterator[Metric]:
        now = self.now()
        breakers = {(peer.name,): destinations.load_breaker(session, peer.name) for peer in self.config.peers}
        is_open = {name: each.is_open(now) for name, each in breakers.items()}
        failures = {name: each.failures for name, each in breakers.items()}
        yield _gauge("breaker_open", "Whether nothing is sent there for now.", ["destination"], is_open)
        yield _gauge("breaker_failures", "Failures there in a row.", ["destination"], failures)

    def _workers(self, session: Session) -> Iterator[Metric]:
        alive = workers.list_alive(session, since=self.now() - _ALIVE)
        hosts: dict[tuple[str, ...], float] = {}
        gpus: dict[tuple[str, ...], dict[str, Any]] = {}
        for worker in alive:
            hosts[worker.host,] = hosts.get((worker.host,), 0) + 1
            gpus |= {(worker.host, index): facts for index, facts in worker.gpus.items()}
        yield _gauge("workers", "Workers that are alive.", ["host"], hosts)
        for key, name, help_text in (
            ("use", "gpu_use_ratio", "How busy the GPU is, 0 to 1."),
            ("memory_used", "gpu_memory_used_bytes", "Memory of the GPU in use."),
            ("memory_total", "gpu_memory_total_bytes", "Memory of the GPU."),
        ):
            known = {where: float(facts[key]) for where, facts in gpus.items() if key in facts}
            yield _gauge(name, help_text, ["host", "gpu"], known)

    def _disk(self) -> Iterator[Metric]:
        try:
            disk = os.statvfs(self.config.spool_dir)
            spool.check_space(self.config.spool_dir, self.config.spool)
            refusing = False
        except OutOfSpace:
            refusing = True
        except OSError:
            return
        block = disk.f_frsize
        yield _plain("disk_free_bytes", "Free for us where the spool is.", disk.f_bavail * block)
        yield _plain("disk_used_bytes", "In use where the spool is.", (disk.f_blocks - disk.f_bfree) * block)
        yield _plain("disk_refusing", "Whether instances are refused for want of space.", refusing)

    def _certificates(self) -> Metric:
        """Return the seconds left of each certificate; one that cannot be read is absent (see 'dicomnode check')."""
        left: dict[tuple[str, ...], float] = {}
        for identity in tls.identities(self.config):
            with suppress(ConfigError):
                left[identity.where,] = (identity.read_expiry() - self.now()).total_seconds()
        return _gauge("certificate_seconds_left", "Until the certificate ends.", ["of"], left)

    def _sweeps(self) -> Iterator[Metric]:
        heartbeats = self.sweep_health.heartbeats()
        ages = {(name,): max(0.0, self.sweep_health.measure_age_s(each)) for name, each in heartbeats.items()}
        failures = {(name,): each.failures for name, each in heartbeats.items()}
        late = self.sweep_health.list_late()
        yield _gauge("sweep_age_seconds", "Since the sweep's last success.", ["sweep"], ages)
        broken = CounterMetricFamily("dicomnode_sweep_failures", "How often the sweep broke off.", labels=["sweep"])
        for name, count in failures.items():
            broken.add_metric(name, count)
        yield broken
        yield _gauge("sweep_late", "Whether that is longer than it may be.", ["sweep"],
                     {(name,): name in late for name in heartbeats})  # fmt: skip
        yield _plain("local_workers_expected", "Workers that this node starts.", self.sweep_health.expected_workers)
        yield _plain("local_workers", "Those of them that run.", self.sweep_health.count_workers())


def _plain(name: str, help_text: str, value: float) -> Metric:
    return _gauge(name, help_text, [], {(): value})


def _gauge(name: str, help_text: str, labels: Sequence[str], values: Values) -> Metric:
    family = GaugeMetricFamily(f"dicomnode_{name}", help_text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
