"""Who is who, for those who may know: a file of its own, apart from the node's database and its spool.

A pseudonym follows from the key, so no copy needs this file. It is for the way back, from a subject to a patient, and
lies where a backup of the node's data does not take it along (node.toml is refused otherwise).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from pydicom.dataset import Dataset

from dicomnode.deidentify.secret import Secret, Subject, identity
from dicomnode.errors import ConfigError, NotAllowed

__all__ = ["note", "patient_of"]

_TABLES = """
create table if not exists subjects (pseudonym text primary key, issuer text not null, patient_id text not null);
create table if not exists studies (study_uid text primary key, pseudonym text not null references subjects,
                                    original_study_uid text not null);
"""


def note(path: Path, ds: Dataset, subject: Subject, secret: Secret) -> None:
    """Write down the patient and the study of a data set that is about to be copied. Raises NotAllowed where two
    patients would be one subject."""
    issuer, patient_id = identity(ds)
    original = str(ds.get("StudyInstanceUID") or "")
    with closing(_open(path)) as file, file:
        file.execute("insert or ignore into subjects values (?, ?, ?)", (subject.pseudonym, issuer, patient_id))
        found = file.execute(
            "select issuer, patient_id from subjects where pseudonym = ?", (subject.pseudonym,)
        ).fetchone()
        if found != (issuer, patient_id):
            raise NotAllowed(f"pseudonym {subject.pseudonym} is already another patient's: use another key")
        file.execute(
            "insert or ignore into studies values (?, ?, ?)", (str(secret.uid(original)), subject.pseudonym, original)
        )


def patient_of(path: Path, pseudonym: str) -> tuple[str, str] | None:
    """Issuer and Patient ID of a subject."""
    with closing(_open(path)) as file:
        found = file.execute("select issuer, patient_id from subjects where pseudonym = ?", (pseudonym,)).fetchone()
    return (found[0].removeprefix("issuer "), found[1]) if found else None


def _open(path: Path) -> sqlite3.Connection:
    """Made for its owner's eyes only; refused where others may look."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        mode = path.stat().st_mode
    except OSError as exc:
        raise ConfigError(f"the map file {path} cannot be written: {exc.strerror}") from exc
    if mode & 0o077:
        raise ConfigError(f"the map file {path} can be read by others: 'chmod 600 {path}'")
    file = sqlite3.connect(path, timeout=30)
    file.executescript(_TABLES)
    return file
