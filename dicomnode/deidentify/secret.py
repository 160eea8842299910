"""Pseudonyms, UIDs and shifts of dates, derived with a profile's key.

Without the key they can neither be derived nor led back to the patient; the same key derives the same ones again, so
studies that are sent later still belong together.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode import uids
from dicomnode.errors import ConfigError

__all__ = ["LONGEST_SHIFT_DAYS", "Secret", "Subject", "identify_patient", "load_secret"]

LONGEST_SHIFT_DAYS = 3652
"""Greatest shift: dates move back by one day to ten years, so that none lies in the future."""
_LEAST_BYTES = 16
_LETTERS = 12  # of five bits each: two of a million subjects share a pseudonym with a probability of 4e-7


@dataclass(frozen=True)
class Subject:
    """A patient as the destination knows them; ``shift_days``: days that their dates are shifted by, negative."""

    pseudonym: str
    shift_days: int


@dataclass(frozen=True)
class Secret:
    """The key of a profile."""

    key: bytes = field(repr=False)

    def digest(self, *parts: str) -> bytes:
        """Return the HMAC-SHA256 of the parts, each with its length before it."""
        content = b"".join(len(each.encode()).to_bytes(8, "big") + each.encode() for each in parts)
        return hmac.digest(self.key, content, "sha256")

    def uid(self, original: str) -> UID:
        """Derive the UID that replaces another."""
        return uids.derive("de-identified", self.digest("uid", original).hex())

    def subject(self, ds: Dataset, prefix: str = "") -> Subject:
        """Derive the subject for the patient of a data set; without a Patient ID each study is a subject of its own."""
        identity = identify_patient(ds)
        letters = base64.b32encode(self.digest("pseudonym", *identity)).decode()[:_LETTERS]
        days = 1 + int.from_bytes(self.digest("days", *identity)[:8], "big") % LONGEST_SHIFT_DAYS
        return Subject(prefix + letters, -days)


def identify_patient(ds: Dataset) -> tuple[str, str]:
    """Return issuer and Patient ID, or "study" and its UID where the data set has no Patient ID."""
    patient_id = str(ds.get("PatientID") or "").strip()
    if not patient_id:
        return "study", str(ds.get("StudyInstanceUID") or "")
    return f"issuer {str(ds.get('IssuerOfPatientID') or '').strip()}", patient_id


def load_secret(path: Path) -> Secret:
    """Read the key of a profile. Raises ConfigError for one that others can read, or that can be guessed."""
    try:
        content, mode = path.read_bytes().strip(), path.stat().st_mode
    except OSError as exc:
        raise ConfigError(f"the key file {path} cannot be read: {exc.strerror}") from exc
    if mode & 0o077:
        raise ConfigError(f"the key file {path} can be read by others: 'chmod 600 {path}'")
    if len(content) < _LEAST_BYTES:
        raise ConfigError(f"the key file {path} holds {len(content)} bytes; at least {_LEAST_BYTES} make a key")
    return Secret(content)
