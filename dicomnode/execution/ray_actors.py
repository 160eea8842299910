"""Ray as the engine: every actor is a worker, with its share of a GPU and its models loaded.

An actor claims, renews and commits as ``dicomnode work`` does. The rows alone decide which worker has a job, and the
most urgent study goes first, whatever dies: an actor, its machine, the cluster, or this driver. The driver keeps as
many actors as the jobs need, and releases the jobs of actors that died; jobs that it cannot release are free when
their leases lapse. An actor for which no machine has room waits in Ray, which makes KubeRay start a machine.

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

__all__ = ["Actor", "ActorPool", "import_ray", "run_actor_pool"]

log = logging.getLogger("dicomnode.ray")

_SUPERVISE_S = 0.5
_PAUSE_S = 1.0
"""The pause after the death of an actor, so that one that cannot start is not started in a loop."""
_LONGEST_PAUSE_S = 30.0
"""The longest pause between attempts to reach the cluster."""
_DRAIN_S = 20.0
_LOCAL_CLUSTER = {"include_dashboard": False, "object_store_memory": 100_000_000}
"""The options of a local cluster: studies pass through the spool, not through Ray's memory."""


class Actor:
    """A worker in the cluster, like ``dicomnode work``.

    DICOMNODE_CONFIG of the actor's machine names the configuration; without it, the path is the driver's.
    """

    def __init__(self, config_path: str) -> None:
        from dicomnode.config import load
        from dicomnode.monitoring import log_lines

        self._config = load(Path(os.environ.get("DICOMNODE_CONFIG") or config_path))
        log_lines.set_up_logging(self._config.node.log_format)
        self._stop = threading.Event()

    def name(self) -> str:
        """Return the name with which this actor signs its leases."""
        from dicomnode.execution import worker_process

        return worker_process.build_worker_name(self._config)

    def work(self) -> int:
        """Run jobs until stopped; return their number."""
        from dicomnode.execution import worker_process

        return worker_process.run_worker_process(self._config, once=False, stop=self._stop)

    def stop(self) -> None:
        """Give the job back at its next step, and take no other."""
        self._stop.set()


@dataclass
class _Handle:
    """An actor and Ray's references to its results; ``name`` is empty until the actor runs."""

    actor: Any
    name_ref: Any
    work_ref: Any
    name: str = ""


def import_ray() -> Any:
    """Import and return ray. Raises ConfigError with the name of the extra where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    # Otherwise Ray would hide all GPUs from an actor that asks for none; [worker] device says what is used.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("[worker] engine = \"ray\" needs Ray: pip install 'dicomnode[ray]'") from None
    return ray


def run_actor_pool(config: Config, *, stop: threading.Event) -> None:
    """Supervise the actors until ``stop`` is set. Raises where the cluster is gone; the parent then starts it again.

    Waits for a cluster that is not there yet or too busy to answer.
    """
    engine = engines.connect(config.database_url)
    try:
        now = clock.make_clock(engine)
        with _connect(config, stop) as ray:
            if ray is None:
                return
            pool = ActorPool(ray, config, engines.sessions(engine), now)
            try:
                while not stop.wait(_SUPERVISE_S):
                    pool.supervise()
            finally:
                pool.shut_down(_DRAIN_S)
    finally:
        engine.dispose()


@contextmanager
def _connect(config: Config, stop: threading.Event) -> Iterator[Any]:
    """Connect to the cluster that [worker] ray_address names, or start a local one; yield the module ray.

    Yields None if ``stop`` is set before a cluster answers.
    """
    ray = import_ray()
    if not config.worker.ray_address and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home directory
    try:
        if not _wait_for_cluster(ray, config.worker.ray_address, stop):
            yield None
            return
        log.info("Ray %s: %d nodes", ray.__version__, len(ray.nodes()))
        yield ray
    finally:
        ray.shutdown()


def _wait_for_cluster(ray: Any, address: str, stop: threading.Event) -> bool:
    """Connect to a cluster, with growing pauses between attempts; return False if ``stop`` is set before."""
    pause_s, own_handler = _PAUSE_S, signal.getsignal(signal.SIGTERM)
    while not stop.is_set():
        try:
            ray.init(
                address=address or "local",
                namespace="dicomnode",
                configure_logging=False,
                **({} if address else _LOCAL_CLUSTER),
            )
        except ConnectionError as error:
            place = f"the cluster at [worker] ray_address = {address!r}" if address else "the local cluster"
            signal.signal(signal.SIGTERM, own_handler)
            ray.shutdown()
            log.warning("%s does not answer (%s); next attempt in %g s", place, type(error).__name__, pause_s)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            signal.signal(signal.SIGTERM, own_handler)  # Ray's would end this process in the middle of a job
            return True
    return False


class ActorPool:
    """The actors of this driver, as many as the jobs need within the bounds of [worker]."""

    def __init__(self, ray: Any, config: Config, sessions: sessionmaker[Session], now: Callable[[], datetime]) -> None:
        self._ray, self._config, self._sessions, self._now = ray, config, sessions, now
        self._handles: list[_Handle] = []
        self._not_before = 0.0
        self._needed_at = time.monotonic()

    @property
    def names(self) -> list[str]:
        """The names of the actors that run."""
        return [handle.name for handle in self._handles if handle.name]

    def supervise(self) -> None:
        """Remove actors that ended, start missing ones, and stop those that have long been idle."""
        self._read_names()
        self._remove_ended()
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
        target = max(own.min_workers, min(own.max_workers, waiting + len(busy)))
        if target >= len(self._handles):
            self._needed_at = time.monotonic()
        if time.monotonic() >= self._not_before:
            self._handles += [self._start_actor() for _ in range(target - len(self._handles))]
        if time.monotonic() - self._needed_at > own.idle_s:
            self._stop_actors([each for each in self._handles if each.name not in busy][: len(self._handles) - target])

    def shut_down(self, timeout_s: float) -> None:
        """Stop all actors, which give their jobs back; kill those that do not end in time, and release their jobs."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.actor.stop.remote()
        ended = self._wait_for_end(handles, timeout_s)
        for handle in handles:
            self._ray.kill(handle.actor)
            if handle.work_ref not in ended:
                self._release_jobs(handle)

    def _start_actor(self) -> _Handle:
        own = self._config.worker
        remote = self._ray.remote(Actor).options(
            num_cpus=own.cpus_per_model, num_gpus=self._gpu_share(), max_concurrency=3, max_restarts=0
        )
        actor = remote.remote(str(self._config.path))
        return _Handle(actor, actor.name.remote(), actor.work.remote())

    def _gpu_share(self) -> float:
        """Return the share of a GPU that an actor requests; with "auto", only if the cluster has any."""
        own = self._config.worker
        uses_gpu = own.device == "cuda" or (own.device == "auto" and self._ray.cluster_resources().get("GPU", 0) > 0)
        share = own.gpus_per_model if uses_gpu else 0.0
        return share if share <= 1 else math.ceil(share)  # Ray takes parts of one GPU, or whole ones

    def _remove_ended(self) -> None:
        """Remove the actors that ended, and release the jobs of those that died."""
        for work_ref in self._wait_for_end(self._handles, 0):
            handle = next(each for each in self._handles if each.work_ref == work_ref)
            self._handles.remove(handle)
            self._not_before = time.monotonic() + _PAUSE_S
            try:
                log.info("%s ended after %d jobs", handle.name or "an actor", self._ray.get(work_ref))
            except Exception as error:  # of the actor, or of Ray about it
                log.error("%s died: %s", handle.name or "an actor", _describe_error(error))
                self._ray.kill(handle.actor)  # it may only be out of reach, and would be one too many
                self._release_jobs(handle)

    def _read_names(self) -> None:
        for handle in self._handles:
            if not handle.name and self._ray.wait([handle.name_ref], timeout=0)[0]:
                try:
                    handle.name = self._ray.get(handle.name_ref)
                except Exception as error:
                    log.error("an actor does not begin: %s", _describe_error(error))

    def _wait_for_end(self, handles: Sequence[_Handle], timeout_s: float) -> list[Any]:
        """Return the work references of the actors that ended within the time."""
        if not handles:
            return []
        work_refs = [handle.work_ref for handle in handles]
        ended: list[Any] = self._ray.wait(work_refs, num_returns=len(work_refs), timeout=timeout_s)[0]
        return ended

    def _stop_actors(self, handles: Sequence[_Handle]) -> None:
        for handle in handles:
            handle.actor.stop.remote()
        self._needed_at = time.monotonic()

    def _release_jobs(self, handle: _Handle) -> None:
        """Free the jobs of an actor that died; without the database they are free when their leases lapse."""
        if not handle.name:
            return
        try:
            with self._sessions.begin() as session:
                attempts = self._config.worker.attempts
                lost = jobs.reclaim(session, worker=handle.name, attempts=attempts, now=self._now())
        except SQLAlchemyError as error:
            log.warning("the jobs of %s wait for the end of their leases: %s", handle.name, type(error).__name__)
            return
        for job in lost:
            log.error("job %d: its actor died; now %s", job.id, job.state)


def _describe_error(error: Exception) -> str:
    """Return the text of a ConfigError, which names no patient, or the type of any other error."""
    cause = getattr(error, "cause", None)
    return str(cause) if isinstance(cause, ConfigError) else type(error).__name__
