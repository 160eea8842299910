"""What is derived with a profile's key: pseudonyms, UIDs and shifts of dates. Nobody without the key can derive them,
nor lead them back; the same key makes the same ones again, so that what is sent later still belongs together.
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

__all__ = ["LONGEST_SHIFT_DAYS", "Secret", "Subject", "identity", "load"]

LONGEST_SHIFT_DAYS = 3652
"""Dates move back by one day to ten years, so that none lies in the future."""
_LEAST_BYTES = 16
_LETTERS = 12  # of five bits each: two of a million subjects share a pseudonym with a probability of 4e-7


@dataclass(frozen=True)
class Subject:
    """A patient as the destination knows them; ``shift_days`` is what their dates move by, negative."""

    pseudonym: str
    shift_days: int


@dataclass(frozen=True)
class Secret:
    """The key of a profile."""

    key: bytes = field(repr=False)

    def digest(self, *parts: str) -> bytes:
        """HMAC-SHA256 of the parts, each with its length before it."""
        content = b"".join(len(each.encode()).to_bytes(8, "big") + each.encode() for each in parts)
        return hmac.digest(self.key, content, "sha256")

    def uid(self, original: str) -> UID:
        """The UID that stands for another."""
        return uids.derive("de-identified", self.digest("uid", original).hex())

    def subject(self, ds: Dataset, prefix: str = "") -> Subject:
        """Of the patient of a data set. Without a Patient ID nobody knows which studies are of one patient: then each
        study is a subject of its own."""
        named = identity(ds)
        letters = base64.b32encode(self.digest("pseudonym", *named)).decode()[:_LETTERS]
        days = 1 + int.from_bytes(self.digest("days", *named)[:8], "big") % LONGEST_SHIFT_DAYS
        return Subject(prefix + letters, -days)


def identity(ds: Dataset) -> tuple[str, str]:
    """Issuer and Patient ID, or the study where there is no ID."""
    patient_id = str(ds.get("PatientID") or "").strip()
    if not patient_id:
        return "study", str(ds.get("StudyInstanceUID") or "")
    return f"issuer {str(ds.get('IssuerOfPatientID') or '').strip()}", patient_id


def load(path: Path) -> Secret:
    """Raises ConfigError for a key that others can read, or that can be guessed."""
    try:
        content, mode = path.read_bytes().strip(), path.stat().st_mode
    except OSError as exc:
        raise ConfigError(f"the key file {path} cannot be read: {exc.strerror}") from exc
    if mode & 0o077:
        raise ConfigError(f"the key file {path} can be read by others: 'chmod 600 {path}'")
    if len(content) < _LEAST_BYTES:
        raise ConfigError(f"the key file {path} holds {len(content)} bytes; at least {_LEAST_BYTES} make a key")
    return Secret(content)
