"""The examination of a patient as a data set states it: the patient's identity, and the date and time of the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Examination", "read_examination"]


@dataclass(frozen=True)
class Examination:
    """The patient and the moment of a study. These are the patient's data: compared, never printed."""

    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    birth_date: str = field(repr=False)
    date: str = field(repr=False)
    time: str = field(repr=False)

    def is_same_patient(self, other: Examination) -> bool:
        """Return whether both are of one patient; False without a Patient ID."""
        birth_dates = {self.birth_date, other.birth_date} - {""}
        same_id = bool(self.patient_id) and self.patient_id == other.patient_id
        return same_id and self.issuer == other.issuer and len(birth_dates) <= 1

    def precedes(self, other: Examination) -> bool:
        """Return whether this one was earlier; on the same day only the times decide, and both must be present."""
        if not self.date or not other.date or self.date != other.date:
            return "" < self.date < other.date
        return "" < self.time < other.time


def read_examination(attributes: Mapping[str, Any]) -> Examination:
    """Read an examination from the attributes of a series, or of a peer's answer."""

    def text(keyword: str) -> str:
        return str(attributes.get(keyword) or "").strip()

    date, time = (text(name).replace(":", "").replace(".", "") for name in ("StudyDate", "StudyTime"))
    is_complete_date = len(date) == 8 and date.isdigit()
    return Examination(
        text("PatientID"),
        text("IssuerOfPatientID"),
        text("PatientBirthDate"),
        date if is_complete_date else "",
        time.ljust(12, "0") if time.isdigit() else "",
    )
