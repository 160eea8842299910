"""Ray as the engine: every actor is a worker, with its share of a GPU and its models warm.

An actor claims, renews and commits as ``dicomnode work`` does, so the rows alone decide whose a job is and the most
urgent study goes first, whatever dies: an actor, its machine, the cluster, or this driver. The driver only sees to it
that there are as many actors as jobs ask for, and says of those that died what they had in hand; what nobody says, the
lease does. An actor for which no machine has room waits in Ray, which is what makes KubeRay start one.

ray is imported on use (``dicomnode[ray]``).
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from db import clock, jobs, workers
from db import engine as engines
from dicomnode.config import Config
from dicomnode.errors import ConfigError

__all__ = ["Actor", "Fleet", "drive", "imported"]

log = logging.getLogger("dicomnode.ray")

_TEND_S = 0.5
_PAUSE_S = 1.0
"""After an actor died, before another is asked for: one that cannot even start is not started in a loop."""
_DRAIN_S = 20.0
_ALONE = {"include_dashboard": False, "object_store_memory": 100_000_000}
"""Of a cluster of this machine's own: studies go by the spool, not by Ray's memory."""


class Actor:
    """What runs in the cluster: a worker, as ``dicomnode work`` is one.

    The machine's own DICOMNODE_CONFIG names its configuration; else it lies where the driver's does.
    """

    def __init__(self, config_path: str) -> None:
        from dicomnode.config import load
        from dicomnode.monitoring import log_lines

        self._config = load(Path(os.environ.get("DICOMNODE_CONFIG") or config_path))
        log_lines.set_up_logging(self._config.node.log_format)
        self._stop = threading.Event()

    def name(self) -> str:
        """How it signs its leases."""
        from dicomnode.execution import process

        return process.name_of(self._config)

    def work(self) -> int:
        """Take jobs until told to stop."""
        from dicomnode.execution import process

        return process.work(self._config, once=False, stop=self._stop)

    def stop(self) -> None:
        """Give the job back at its next step, take no other."""
        self._stop.set()


@dataclass
class _Hand:
    """An actor as the driver sees it; ``name`` is empty until it has a place to run."""

    actor: Any
    named: Any
    working: Any
    name: str = ""


def imported() -> Any:
    """The module ray. Raises ConfigError, naming the extra, where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    # Ray would else hide all GPUs from an actor that asks for none; [worker] device says what is used.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("[worker] engine = \"ray\" needs Ray: pip install 'dicomnode[ray]'") from None
    return ray


def drive(config: Config, *, stop: threading.Event) -> None:
    """See to the actors until told to stop. Raises where the cluster is gone: whoever started this starts it again."""
    engine = engines.connect(config.database_url)
    try:
        now = clock.make_clock(engine)
        with _connected(config) as ray:
            fleet = Fleet(ray, config, engines.sessions(engine), now)
            try:
                while not stop.wait(_TEND_S):
                    fleet.tend()
            finally:
                fleet.end(_DRAIN_S)
    finally:
        engine.dispose()


@contextmanager
def _connected(config: Config) -> Iterator[Any]:
    """Ray, in the cluster that [worker] ray_address names, or in one of this machine's own."""
    ray = imported()
    if not config.worker.ray_address and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the user's home
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    ray.init(
        address=config.worker.ray_address or "local",
        namespace="dicomnode",
        configure_logging=False,
        **({} if config.worker.ray_address else _ALONE),
    )
    signal.signal(signal.SIGTERM, asked_to_stop)  # Ray's would end us in the middle
    log.info("Ray %s: %d nodes", ray.__version__, len(ray.nodes()))
    try:
        yield ray
    finally:
        ray.shutdown()


class Fleet:
    """The actors: as many as jobs ask for, within the bounds of [worker]."""

    def __init__(self, ray: Any, config: Config, sessions: sessionmaker[Session], now: Callable[[], datetime]) -> None:
        self._ray, self._config, self._sessions, self._now = ray, config, sessions, now
        self._hands: list[_Hand] = []
        self._not_before = 0.0
        self._needed_at = time.monotonic()

    @property
    def names(self) -> list[str]:
        """How those actors sign their leases that have begun."""
        return [hand.name for hand in self._hands if hand.name]

    def tend(self) -> None:
        """Replace the dead, start what is missing, and let go what nobody needed for long."""
        self._learn_names()
        self._bury()
        try:
            with self._sessions() as session:
                waiting, busy = (
                    workers.count_startable_jobs(session, now=self._now()),
                    workers.find_busy(session, self.names),
                )
        except SQLAlchemyError as error:
            log.warning("the database does not answer: %s", type(error).__name__)
            return
        own = self._config.worker
        wanted = max(own.min_workers, min(own.max_workers, waiting + len(busy)))
        if wanted >= len(self._hands):
            self._needed_at = time.monotonic()
        if time.monotonic() >= self._not_before:
            self._hands += [self._hire() for _ in range(wanted - len(self._hands))]
        if time.monotonic() - self._needed_at > own.idle_s:
            self._dismiss([hand for hand in self._hands if hand.name not in busy][: len(self._hands) - wanted])

    def end(self, patience_s: float) -> None:
        """Jobs in hand are given back; whoever does not end in time is killed, and its job taken from it."""
        hands, self._hands = self._hands, []
        for hand in hands:
            hand.actor.stop.remote()
        ended = self._ended(hands, patience_s)
        for hand in hands:
            self._ray.kill(hand.actor)
            if hand.working not in ended:
                self._abandon(hand)

    def _hire(self) -> _Hand:
        own = self._config.worker
        remote = self._ray.remote(Actor).options(
            num_cpus=own.cpus_per_model, num_gpus=self._gpus(), max_concurrency=3, max_restarts=0
        )
        actor = remote.remote(str(self._config.path))
        return _Hand(actor, actor.name.remote(), actor.work.remote())

    def _gpus(self) -> float:
        """The share of a GPU that an actor asks for; with "auto", if the cluster has any."""
        own = self._config.worker
        wants = own.device == "cuda" or (own.device == "auto" and self._ray.cluster_resources().get("GPU", 0) > 0)
        share = own.gpus_per_model if wants else 0.0
        return share if share <= 1 else math.ceil(share)  # Ray takes parts of one GPU, or whole ones

    def _bury(self) -> None:
        """What an actor has left in hand is free at once."""
        for working in self._ended(self._hands, 0):
            hand = next(each for each in self._hands if each.working == working)
            self._hands.remove(hand)
            self._not_before = time.monotonic() + _PAUSE_S
            try:
                log.info("%s ended after %d jobs", hand.name or "an actor", self._ray.get(working))
            except Exception as error:  # its own, or Ray's about it
                log.error("%s died: %s", hand.name or "an actor", _said(error))
                self._ray.kill(hand.actor)  # one that is only out of reach would be one too many
                self._abandon(hand)

    def _learn_names(self) -> None:
        for hand in self._hands:
            if not hand.name and self._ray.wait([hand.named], timeout=0)[0]:
                try:
                    hand.name = self._ray.get(hand.named)
                except Exception as error:
                    log.error("an actor does not begin: %s", _said(error))

    def _ended(self, hands: Sequence[_Hand], patience_s: float) -> list[Any]:
        if not hands:
            return []
        working = [hand.working for hand in hands]
        ended: list[Any] = self._ray.wait(working, num_returns=len(working), timeout=patience_s)[0]
        return ended

    def _dismiss(self, hands: Sequence[_Hand]) -> None:
        for hand in hands:
            hand.actor.stop.remote()
        self._needed_at = time.monotonic()

    def _abandon(self, hand: _Hand) -> None:
        if not hand.name:
            return
        try:
            with self._sessions.begin() as session:
                attempts = self._config.worker.attempts
                lost = jobs.reclaim(session, worker=hand.name, attempts=attempts, now=self._now())
        except SQLAlchemyError as error:  # then its lease lapses
            log.warning("what %s had in hand waits for its lease: %s", hand.name, type(error).__name__)
            return
        for job in lost:
            log.error("job %d: its actor died; now %s", job.id, job.state)


def _said(error: Exception) -> str:
    """Our own errors name no patient; of others only what they are."""
    cause = getattr(error, "cause", None)
    return str(cause) if isinstance(cause, ConfigError) else type(error).__name__
