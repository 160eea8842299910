"""The map file of pseudonyms and patients, apart from the node's database and its spool.

A pseudonym is derived from the key, so no copy needs this file. It leads from a subject back to the patient, and lies
where a backup of the node's data does not include it (node.toml is refused otherwise).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from pydicom.dataset import Dataset

from dicomnode.deidentify.secret import Secret, Subject, identify_patient
from dicomnode.errors import ConfigError, NotAllowed

__all__ = ["find_patient", "record_subject"]

_TABLES = """
create table if not exists subjects (pseudonym text primary key, issuer text not null, patient_id text not null);
create table if not exists studies (study_uid text primary key, pseudonym text not null references subjects,
                                    original_study_uid text not null);
"""


def record_subject(path: Path, ds: Dataset, subject: Subject, secret: Secret) -> None:
    """Record the patient and the study of a data set that is about to be copied.

    Raises NotAllowed where two patients would be one subject.
    """
    issuer, patient_id = identify_patient(ds)
    original = str(ds.get("StudyInstanceUID") or "")
    with closing(_open_map_file(path)) as file, file:
        file.execute("insert or ignore into subjects values (?, ?, ?)", (subject.pseudonym, issuer, patient_id))
        found = file.execute(
            "select issuer, patient_id from subjects where pseudonym = ?", (subject.pseudonym,)
        ).fetchone()
        if found != (issuer, patient_id):
            raise NotAllowed(f"pseudonym {subject.pseudonym} is already another patient's: use another key")
        file.execute(
            "insert or ignore into studies values (?, ?, ?)", (str(secret.uid(original)), subject.pseudonym, original)
        )


def find_patient(path: Path, pseudonym: str) -> tuple[str, str] | None:
    """Return issuer and Patient ID of a subject, or None."""
    with closing(_open_map_file(path)) as file:
        found = file.execute("select issuer, patient_id from subjects where pseudonym = ?", (pseudonym,)).fetchone()
    return (found[0].removeprefix("issuer "), found[1]) if found else None


def _open_map_file(path: Path) -> sqlite3.Connection:
    """Open the map file, made readable for its owner only. Raises ConfigError where others can read it."""
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
