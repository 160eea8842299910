"""The node as it is at the moment of a scrape: queues, disk, breakers, workers, GPUs, the clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from db import destinations, queues, trail, workers
from dicomnode import tls
from dicomnode.config import Config
from dicomnode.errors import ConfigError, OutOfSpace
from dicomnode.monitoring.pulse import Pulse
from dicomnode.storage import spool

__all__ = ["Gauges"]

_ALIVE = timedelta(seconds=60)
"""Who has not reported for so long does not count as a worker."""

Values = Mapping[Any, float]
"""By the labels' values."""


@dataclass(frozen=True, eq=False)
class Gauges(Collector):
    """Asked by ``registry`` at every scrape. A database that does not answer is told, and what it would have said
    is absent."""

    config: Config
    readers: sessionmaker[Session]
    now: Callable[[], datetime]
    pulse: Pulse

    def register(self, registry: CollectorRegistry) -> None:
        """From now on a part of what the registry tells."""
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Names need not be known before a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every gauge."""
        yield _gauge("build_info", "The version that runs.", ["version"], {(version("dicomnode"),): 1})
        yield from self._disk()
        yield from self._clock()
        yield self._certificates()
        try:
            with self.readers() as session:
                found = [*self._queues(session), *self._peers(session), *self._workers(session)]
                found.append(_plain("audit_events", "Events in the audit trail.", trail.head(session)))
        except SQLAlchemyError:
            found = []
        yield _plain("database_up", "Whether the database answers.", bool(found))
        yield from found

    def _queues(self, session: Session) -> Iterator[Metric]:
        studies = {(state,): count for state, count in queues.studies(session).items()}
        yield _gauge("studies", "Studies that are not routed yet.", ["state"], studies)
        jobs = queues.jobs(session)
        yield _gauge("jobs", "Jobs that are not done.", ["pipeline", "model", "state"], jobs)
        yield _gauge("deliveries", "Objects that are not there.", ["destination", "state"], queues.deliveries(session))
        told = queues.notifications(session)
        yield _gauge("notifications", "Notifications that are not sent.", ["name", "state"], told)
        yield _gauge("searches", "Searches for what studies lack.", ["peer", "state"], queues.searches(session))
        yield _plain("quarantine", "Files in quarantine.", queues.quarantined(session))
        oldest = {(what,): age for what, age in queues.oldest_s(session, now=self.now()).items()}
        yield _gauge("oldest_seconds", "How long the oldest of it has waited.", ["what"], oldest)

    def _peers(self, session: Session) -> Iterator[Metric]:
        now = self.now()
        breakers = {(peer.name,): destinations.breaker(session, peer.name) for peer in self.config.peers}
        is_open = {name: each.is_open(now) for name, each in breakers.items()}
        failures = {name: each.failures for name, each in breakers.items()}
        yield _gauge("breaker_open", "Whether nothing is sent there for now.", ["destination"], is_open)
        yield _gauge("breaker_failures", "Failures there in a row.", ["destination"], failures)

    def _workers(self, session: Session) -> Iterator[Metric]:
        alive = workers.alive(session, since=self.now() - _ALIVE)
        hosts: dict[tuple[str, ...], float] = {}
        gpus: dict[tuple[str, ...], dict[str, Any]] = {}
        for worker in alive:
            hosts[worker.host,] = hosts.get((worker.host,), 0) + 1
            gpus |= {(worker.host, index): facts for index, facts in worker.gpus.items()}
        yield _gauge("workers", "Workers that are alive.", ["host"], hosts)
        for key, name, says in (
            ("use", "gpu_use_ratio", "How busy the GPU is, 0 to 1."),
            ("memory_used", "gpu_memory_used_bytes", "Memory of the GPU in use."),
            ("memory_total", "gpu_memory_total_bytes", "Memory of the GPU."),
        ):
            known = {where: float(facts[key]) for where, facts in gpus.items() if key in facts}
            yield _gauge(name, says, ["host", "gpu"], known)

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
        """What cannot be read is absent; the log and 'dicomnode check' say why."""
        left: dict[tuple[str, ...], float] = {}
        for identity in tls.identities(self.config):
            with suppress(ConfigError):
                left[identity.where,] = (identity.ends_at() - self.now()).total_seconds()
        return _gauge("certificate_seconds_left", "Until the certificate ends.", ["of"], left)

    def _clock(self) -> Iterator[Metric]:
        beats = self.pulse.beats()
        ages = {(name,): max(0.0, self.pulse.age_s(beat)) for name, beat in beats.items()}
        failures = {(name,): beat.failures for name, beat in beats.items()}
        late = self.pulse.late()
        yield _gauge("sweep_age_seconds", "Since the sweep's last success.", ["sweep"], ages)
        broken = CounterMetricFamily("dicomnode_sweep_failures", "How often the sweep broke off.", labels=["sweep"])
        for name, count in failures.items():
            broken.add_metric(name, count)
        yield broken
        yield _gauge("sweep_late", "Whether that is longer than it may be.", ["sweep"],
                     {(name,): name in late for name in beats})  # fmt: skip
        yield _plain("local_workers_expected", "Workers that this node starts.", self.pulse.expected_workers)
        yield _plain("local_workers", "Those of them that run.", self.pulse.count_workers())


def _plain(name: str, says: str, value: float) -> Metric:
    return _gauge(name, says, [], {(): value})


def _gauge(name: str, says: str, labels: Sequence[str], values: Values) -> Metric:
    family = GaugeMetricFamily(f"dicomnode_{name}", says, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
