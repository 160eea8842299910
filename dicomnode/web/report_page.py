"""The report page of a study: the one among its results, else one from the command ``studies report``.

Drawing a page takes seconds and imports packages that the serving process must not load: it runs the command in a
process of its own, one at a time, and caches the last few pages.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from db.models import Job, Output, Study
from db.states import JobState
from dicomnode.config import Config
from dicomnode.errors import NotFound

__all__ = ["MEDIA_TYPES", "find_stored_page", "has_results", "make_page", "results_version"]

_log = logging.getLogger(__name__)

MEDIA_TYPES = MappingProxyType({"png": "image/png", "pdf": "application/pdf"})
_TIMEOUT_S = 120.0
_STATES = (JobState.DONE, JobState.HELD, JobState.REFUSED)
_MOST_CACHED = 16

Version = tuple[int, str]
"""Number of results, and the time of the last one."""

_cache: OrderedDict[tuple[str, str, str, Version], bytes] = OrderedDict()
_lock = threading.Lock()


def results_version(session: Session, study: Study) -> Version:
    """Return the version of a study's results that a page can show; a page of an earlier version is outdated.

    Trials, and held results that were discarded, have no page.
    """
    made = (
        select(func.count(Output.id), func.max(Output.created_at))
        .join(Job)
        .where(Job.study_id == study.id, ~Job.is_trial, Job.state.in_(_STATES), Output.expired_at.is_(None))
    )
    count, last = session.execute(made).one()
    return count, str(last)


def find_stored_page(config: Config, study: Study, kind: str) -> Response | None:
    """Return the page that is a result of the study's newest job of a route, or None."""
    from dicomnode.execution import stored  # imports readers of results, which a receiver does not need

    try:
        content = stored.find_stored_page(stored.choose_job(study, None), config, kind)
    except (NotFound, OSError):
        return None
    return _response(content, kind) if content else None


def has_results(session: Session, study: Study) -> bool:
    """Return whether the study has results for a page."""
    return results_version(session, study)[0] > 0


def make_page(config: Config, uid: str, kind: str, version: Version) -> Response | None:
    """Return the page, made if it is not cached; None when it cannot be made."""
    key = (str(config.path), uid, kind, version)
    with _lock:
        content = _cache.get(key) or (_run_command(config, uid, kind) if version[0] else None)
        if content is None:
            return None
        _cache[key] = content
        _cache.move_to_end(key)
        while len(_cache) > _MOST_CACHED:
            _cache.popitem(last=False)
    return _response(content, kind)


def _response(content: bytes, kind: str) -> Response:
    headers = {"Content-Disposition": f'inline; filename="report.{kind}"'}
    return Response(content, media_type=MEDIA_TYPES[kind], headers=headers)


def _run_command(config: Config, uid: str, kind: str) -> bytes | None:
    with tempfile.TemporaryDirectory(prefix="dicomnode-report-") as folder:
        out = Path(folder) / f"report.{kind}"
        command = [sys.executable, "-m", "dicomnode", "--config", str(config.path)]
        command += ["studies", "report", uid, "--out", str(out)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            _log.error("web: a report page took more than %.0f s", _TIMEOUT_S)
            return None
        if done.returncode or not out.is_file():
            _log.error("web: a report page could not be made (status %d)", done.returncode)
            return None
        return out.read_bytes()
