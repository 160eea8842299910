"""The report page of a study: the one among its results, else made by ``studies report`` in a process of its own.

Drawing it takes seconds and loads what the receiver must not: the serving process only starts it, one at a time, and
keeps the last few.
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
from dicomnode.config import Config
from dicomnode.errors import NotFound

__all__ = ["KINDS", "answer", "exists", "kept", "version"]

_log = logging.getLogger(__name__)

KINDS = MappingProxyType({"png": "image/png", "pdf": "application/pdf"})
_TIMEOUT_S = 120.0
_KEPT = 16

Version = tuple[int, str]
"""How many results there are, and when the last one was made."""

_made: OrderedDict[tuple[str, str, str, Version], bytes] = OrderedDict()
_one_at_a_time = threading.Lock()


def version(session: Session, study: Study) -> Version:
    """What a page that was made before must not be older than."""
    made = select(func.count(Output.id), func.max(Output.created_at)).join(Job).where(Job.study_id == study.id)
    count, last = session.execute(made).one()
    return count, str(last)


def kept(config: Config, study: Study, kind: str) -> Response | None:
    """The page of the newest job, where it is one of its results."""
    from dicomnode.execution import stored  # brings readers of results with it, which a receiver does not need

    try:
        content = stored.kept_page(stored.job_of(study, None), config, kind)
    except (NotFound, OSError):
        return None
    return _answer(content, kind) if content else None


def exists(session: Session, study: Study) -> bool:
    """Whether there is anything to make a page of."""
    return version(session, study)[0] > 0


def answer(config: Config, uid: str, kind: str, ended: Version) -> Response | None:
    """The page; None when it cannot be made."""
    key = (str(config.path), uid, kind, ended)
    with _one_at_a_time:
        content = _made.get(key) or (_draw(config, uid, kind) if ended[0] else None)
        if content is None:
            return None
        _made[key] = content
        _made.move_to_end(key)
        while len(_made) > _KEPT:
            _made.popitem(last=False)
    return _answer(content, kind)


def _answer(content: bytes, kind: str) -> Response:
    headers = {"Content-Disposition": f'inline; filename="report.{kind}"'}
    return Response(content, media_type=KINDS[kind], headers=headers)


def _draw(config: Config, uid: str, kind: str) -> bytes | None:
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
