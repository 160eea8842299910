"""The capabilities of this host: the pipelines and bundles that it has, with the weights that were deployed.

A job that needs others is given back with the reason in its row, and for a minute this host claims no job with the
same needs. Where no other host has a worker, the job is run all the same and fails with that reason.
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

__all__ = ["HostCapabilities"]

_CHECK_AGAIN_AFTER = timedelta(seconds=60)
_ALIVE_WITHIN = timedelta(seconds=60)


class HostCapabilities:
    """The pipelines and bundles of a worker's host, as jobs need them."""

    def __init__(
        self, sessions: sessionmaker[Session], config: Config, worker: str, now: Callable[[], datetime]
    ) -> None:
        self._sessions, self._config, self._now = sessions, config, now
        self._host = worker.rpartition(":")[0]
        self._unmet: dict[Needs, datetime] = {}
        self._verified: dict[Path, model_cache.Fingerprint] = {}

    def unmet_needs(self) -> set[Needs]:
        """Return the pipelines and models of which this host claims no job for now."""
        since = self._now() - _CHECK_AGAIN_AFTER
        self._unmet = {needs: at for needs, at in self._unmet.items() if at > since}
        return set(self._unmet)

    def reason_unable(self, job: Job) -> str:
        """Return the reason to leave a job to another host; "" where this one can run it, or is the only one."""
        reason = self._find_missing(job)
        if not reason or not self._is_another_alive():
            return ""
        self._unmet[job.pipeline, job.model, job.model_digest] = self._now()
        return f"{self._host} cannot run it: {reason}"

    def _find_missing(self, job: Job) -> str:
        from dicomnode.deployment import pipeline_names
        from dicomnode.deployment.models import find_bundle
        from model_zoo.bundle import BundleError

        try:
            pipeline = pipeline_names.resolve_pipeline(job.pipeline, self._config, job.model)
            facts = find_bundle(job.model or pipeline.bundle, self._config)
            if job.model_digest and facts.digest != job.model_digest:
                return f"{job.model} has other weights here than were deployed"
            pinned = job.helper_models or {}
            for each in (facts, *(find_bundle(pinned.get(name, name), self._config) for name in pipeline.helpers)):
                self._verify(each)
        except (BundleError, ConfigError) as error:
            return str(error)
        except Exception:  # it occurs again when the job is run, which then fails with it
            return ""
        return ""

    def _verify(self, facts: BundleFacts) -> None:
        from model_zoo import registry

        fingerprint = model_cache.fingerprint(facts)
        if self._verified.get(facts.path) != fingerprint:
            registry.verify(facts)
            self._verified[facts.path] = fingerprint

    def _is_another_alive(self) -> bool:
        with self._sessions() as session:
            return any(row.host != self._host for row in workers.list_alive(session, since=self._now() - _ALIVE_WITHIN))
