"""What one DICOMweb root shows of the node: everything that is held, or what others may see."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker
from starlette.exceptions import HTTPException
from starlette.requests import Request

from db import catalogue
from db.catalogue import StoredObject
from dicomnode.delivery import gate
from dicomnode.errors import NotMarked, StorageDamaged
from dicomnode.storage import spool

__all__ = ["Holdings", "checked_uid", "representative", "whole_url"]

_log = logging.getLogger(__name__)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)


@dataclass(frozen=True)
class Holdings:
    """``prefix``: the root's path; ``include_held``: whether results that wait for a person's decision are among it."""

    readers: sessionmaker[Session]
    spool_dir: Path
    prefix: str
    include_held: bool = False

    def find(self, study_uid: str, series_uid: str = "", sop_instance_uid: str = "") -> list[StoredObject]:
        """The instances there, each with its file and free to leave. Raises 404 when there is none."""
        with self.readers() as session:
            found = catalogue.find_objects(
                session,
                study_uid=checked_uid(study_uid),
                series_uids=(checked_uid(series_uid),) if series_uid else (),
                sop_instance_uids=(checked_uid(sop_instance_uid),) if sop_instance_uid else (),
                include_held=self.include_held,
            )
        leaving = [each for each in found if self._may_leave(each)]
        if not leaving:
            what = "instance" if sop_instance_uid else "series" if series_uid else "study"
            raise HTTPException(404, f"no such {what} here")
        return leaving

    def one(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> StoredObject:
        """That instance. Raises 404."""
        return self.find(study_uid, series_uid, sop_instance_uid)[0]

    def path(self, stored: StoredObject) -> Path:
        """Where its file lies."""
        return spool.path(self.spool_dir, stored.sha256)

    def url(self, request: Request, *uids: str) -> str:
        """The address of a study, a series or an instance below this root."""
        levels = "".join(
            f"/{level}/{uid}" for level, uid in zip(("studies", "series", "instances"), uids, strict=False)
        )
        return f"{whole_url(request)}{self.prefix}{levels}"

    def url_of(self, request: Request, stored: StoredObject) -> str:
        """The address of an instance."""
        return self.url(request, stored.study_uid, stored.series_uid, stored.sop_instance_uid)

    def _may_leave(self, stored: StoredObject) -> bool:
        path = self.path(stored)
        if not path.is_file():
            raise StorageDamaged(f"the file {stored.sha256} is missing from the spool")
        if stored.is_result and (missing := _marks_missing(path, stored.sha256)):
            _log.error("web: result %s stays here: %s", stored.sha256, missing)
            return False
        return True


def whole_url(request: Request) -> str:
    """Scheme and host as the client named them; some name this machine without the port that they have called."""
    host, server = request.url.netloc, request.scope.get("server")
    if host in _LOOPBACK and server is not None and server[1] not in (None, 80):
        host = f"{host}:{server[1]}"
    return f"{request.url.scheme}://{host}"


def checked_uid(uid: str) -> str:
    """Raises 404 for a part of a path that is no UID."""
    if not _UID.fullmatch(uid) or len(uid) > 64:
        raise HTTPException(404, "no such thing here: that is no UID")
    return uid


@lru_cache(maxsize=65536)
def _marks_missing(path: Path, sha256: str) -> str:
    """Why a result may not leave; a file of the spool never changes, so it is asked once. Raises StorageDamaged."""
    try:
        gate.check(path, sha256)
    except NotMarked as error:
        return str(error)
    return ""


def representative(found: Sequence[StoredObject]) -> StoredObject:
    """The one in the middle, which shows most."""
    return found[len(found) // 2]
