"""The stored objects that a DICOMweb root shows: with or without results that are held for a decision."""

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

__all__ = ["Holdings", "base_url", "require_uid", "select_middle"]

_log = logging.getLogger(__name__)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)


@dataclass(frozen=True)
class Holdings:
    """The objects of one DICOMweb root. ``prefix``: its path; ``include_held``: true to include held results.

    ``adds_windows``: true for metadata with a window from the pixels where the header has none.
    """

    readers: sessionmaker[Session]
    spool_dir: Path
    prefix: str
    include_held: bool = False
    adds_windows: bool = False

    def find(self, study_uid: str, series_uid: str = "", sop_instance_uid: str = "") -> list[StoredObject]:
        """Find the instances of a study, series or UID that may leave the node. Raises 404 when there is none."""
        with self.readers() as session:
            found = catalogue.find_objects(
                session,
                study_uid=require_uid(study_uid),
                series_uids=(require_uid(series_uid),) if series_uid else (),
                sop_instance_uids=(require_uid(sop_instance_uid),) if sop_instance_uid else (),
                include_held=self.include_held,
            )
        allowed = [each for each in found if self._allows_release(each)]
        if not allowed:
            level = "instance" if sop_instance_uid else "series" if series_uid else "study"
            raise HTTPException(404, f"no such {level} here")
        return allowed

    def find_instance(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> StoredObject:
        """Find one instance. Raises 404."""
        return self.find(study_uid, series_uid, sop_instance_uid)[0]

    def path(self, stored: StoredObject) -> Path:
        """Return the path of an instance's file."""
        return spool.path(self.spool_dir, stored.sha256)

    def url(self, request: Request, *uids: str) -> str:
        """Return the address of a study, a series or an instance below this root."""
        levels = "".join(
            f"/{level}/{uid}" for level, uid in zip(("studies", "series", "instances"), uids, strict=False)
        )
        return f"{base_url(request)}{self.prefix}{levels}"

    def instance_url(self, request: Request, stored: StoredObject) -> str:
        """Return the address of an instance."""
        return self.url(request, stored.study_uid, stored.series_uid, stored.sop_instance_uid)

    def _allows_release(self, stored: StoredObject) -> bool:
        path = self.path(stored)
        if not path.is_file():
            raise StorageDamaged(f"the file {stored.sha256} is missing from the spool")
        if stored.is_result and (missing := _missing_marks(path, stored.sha256)):
            _log.error("web: result %s stays here: %s", stored.sha256, missing)
            return False
        return True


def base_url(request: Request) -> str:
    """Return scheme and host as the client named them; adds the port where a loopback client omits it."""
    host, server = request.url.netloc, request.scope.get("server")
    if host in _LOOPBACK and server is not None and server[1] not in (None, 80):
        host = f"{host}:{server[1]}"
    return f"{request.url.scheme}://{host}"


def require_uid(uid: str) -> str:
    """Return the UID, or raise 404 for a part of a path that is none."""
    if not _UID.fullmatch(uid) or len(uid) > 64:
        raise HTTPException(404, "no such thing here: that is no UID")
    return uid


@lru_cache(maxsize=65536)
def _missing_marks(path: Path, sha256: str) -> str:
    """Return why a result may not leave the node, or "". Cached: spool files never change. Raises StorageDamaged."""
    try:
        gate.check_outgoing_result(path, sha256)
    except NotMarked as error:
        return str(error)
    return ""


def select_middle(found: Sequence[StoredObject]) -> StoredObject:
    """Return the object in the middle of the list, which shows most of the anatomy."""
    return found[len(found) // 2]
