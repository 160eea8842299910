"""The folders of learning runs: one process at a time in each, and no image of a patient in those of ended runs."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import learning
from dicomnode.errors import NotAllowed

__all__ = ["CASES", "INCOMING", "RUN", "lock_folder", "remove_ended", "remove_images"]

CASES, RUN = "cases", "run"
"""Folders of a run: links to images with label maps, and the training. They go when the run ends."""
INCOMING = "incoming"
"""Folder of a run that has no row yet."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[IO[str]]:
    """Lock the folder of a [[learning]]. The processes that the night starts hold the lock as long as they live."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # images of patients
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotAllowed(f"learning {folder.name}: another process learns already") from None
        yield lock


def remove_images(folder: Path, *, keep: int | None = None) -> None:
    """Remove images and trainings of all runs below the folder of a [[learning]] but one."""
    shutil.rmtree(folder / INCOMING, ignore_errors=True)
    for run in folder.iterdir():
        if run.is_dir() and run.name != str(keep):
            for name in (CASES, RUN):
                shutil.rmtree(run / name, ignore_errors=True)


def remove_ended(root: Path, sessions: sessionmaker[Session]) -> None:
    """Remove the images of ended runs, also of names that node.toml no longer has; folders in use are left alone."""
    for folder in root.iterdir() if root.is_dir() else ():
        if not folder.is_dir():
            continue
        try:
            with lock_folder(folder):
                with engines.readers(sessions.kw["bind"])() as session:
                    run = learning.find_open(session, folder.name)
                remove_images(folder, keep=None if run is None else run.id)
        except NotAllowed:
            continue
