"""What this host cannot run and another may: a pipeline or a bundle that is not here, or not as it was deployed.

Such a job is given back with the reason in its row, and this host asks for no other that needs the same until it has
looked again. Where no other host has a worker, the job is run into its end, which says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session, sessionmaker

from db import workers
from db.jobs import Needs
from db.models import Job
from dicomnode.config import Config
from dicomnode.errors import ConfigError
from dicomnode.execution import model_cache

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts

__all__ = ["Lacking"]

_LOOK_AGAIN = timedelta(seconds=60)
_ALIVE = timedelta(seconds=60)


class Lacking:
    """One worker's knowledge of what its host lacks."""

    def __init__(
        self, sessions: sessionmaker[Session], config: Config, worker: str, now: Callable[[], datetime]
    ) -> None:
        self._sessions, self._config, self._now = sessions, config, now
        self._host = worker.rpartition(":")[0]
        self._known: dict[Needs, datetime] = {}
        self._verified: dict[Path, model_cache.Stamp] = {}

    def known(self) -> set[Needs]:
        """What to ask for no job of, for now."""
        since = self._now() - _LOOK_AGAIN
        self._known = {needs: at for needs, at in self._known.items() if at > since}
        return set(self._known)

    def why(self, job: Job) -> str:
        """Why another host should have that job; empty where this one can run it, or is the only one."""
        reason = self._missing(job)
        if not reason or not self._is_another_alive():
            return ""
        self._known[job.pipeline, job.model, job.model_digest] = self._now()
        return f"{self._host} cannot run it: {reason}"

    def _missing(self, job: Job) -> str:
        from dicomnode.deployment import pipeline_names
        from dicomnode.deployment.models import find_bundle
        from model_zoo.bundle import BundleError

        try:
            pipeline = pipeline_names.resolve_pipeline(job.pipeline, self._config, job.model)
            facts = find_bundle(job.model or pipeline.bundle, self._config)
            if job.model_digest and facts.digest != job.model_digest:
                return f"{job.model} is here with other weights than were deployed"
            pinned = job.helper_models or {}
            for each in (facts, *(find_bundle(pinned.get(name, name), self._config) for name in pipeline.helpers)):
                self._verify(each)
        except (BundleError, ConfigError) as error:
            return str(error)
        except Exception:  # shows again when the job is run, which then ends with it
            return ""
        return ""

    def _verify(self, facts: BundleFacts) -> None:
        from model_zoo import registry

        stamp = model_cache.stamp(facts)
        if self._verified.get(facts.path) != stamp:
            registry.verify(facts)
            self._verified[facts.path] = stamp

    def _is_another_alive(self) -> bool:
        with self._sessions() as session:
            return any(row.host != self._host for row in workers.list_alive(session, since=self._now() - _ALIVE))
