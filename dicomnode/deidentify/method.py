"""Attributes that record how a copy was de-identified (PS3.15 E.1.1 and E.3, codes of PS3.16 CID 7050)."""

from __future__ import annotations

from pydicom.dataset import Dataset

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.deidentify.table import EDITION
from dicomnode.installation import read_version

__all__ = ["is_deidentified_by", "record_method"]

_BASIC = ("113100", "Basic Application Confidentiality Profile")
_FACES = ("113102", "Clean Recognizable Visual Features Option")
_STRUCTURED = ("113104", "Clean Structured Content Option")
_DESCRIPTORS = ("113105", "Clean Descriptors Option")
_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_PATIENT = ("113108", "Retain Patient Characteristics Option")
_DEVICE = ("113109", "Retain Device Identity Option")
_UIDS = ("113110", "Retain UIDs Option")
_PRIVATE = ("113111", "Retain Safe Private Option")
_INSTITUTION = ("113112", "Retain Institution Identity Option")


def record_method(ds: Dataset, profile: DeidentifyConfig, *, is_own: bool) -> None:
    """Record the method in a cleaned data set; codes of an earlier de-identification stay in front."""
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = [_program_line(), _profile_line(profile.name), f"PS3.15 Table E.1-1 of {EDITION}"]
    ds.LongitudinalTemporalInformationModified = "MODIFIED" if profile.dates == "shift" else "REMOVED"
    earlier = list(ds.get("DeidentificationMethodCodeSequence") or [])
    present = {str(item.get("CodeValue")) for item in earlier}
    codes = [_code_item(*each) for each in _method_codes(ds, profile, is_own=is_own) if each[0] not in present]
    ds.DeidentificationMethodCodeSequence = [*earlier, *codes]


def is_deidentified_by(ds: Dataset, profile_name: str) -> bool:
    """Return whether the data set states that it was de-identified by that profile."""
    methods = ds.get("DeidentificationMethod") or []
    methods = [methods] if isinstance(methods, str) else methods
    return bool(ds.get("PatientIdentityRemoved") == "YES" and _profile_line(profile_name) in list(methods))


def _method_codes(ds: Dataset, profile: DeidentifyConfig, *, is_own: bool) -> list[tuple[str, str]]:
    chosen = {
        _BASIC: True,
        _FACES: ds.get("RecognizableVisualFeatures") == "NO" and profile.deface,
        _STRUCTURED: "ContentSequence" in ds,
        _DESCRIPTORS: profile.clean_descriptors or is_own,
        _DATES: profile.dates == "shift",
        _PATIENT: profile.patient_characteristics,
        _DEVICE: profile.device,
        _UIDS: profile.retain_uids,
        _PRIVATE: profile.private == "safe" or is_own,
        _INSTITUTION: profile.institution,
    }
    return [code for code, on in chosen.items() if on]


def _code_item(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _profile_line(profile_name: str) -> str:
    return f"profile {profile_name}"


def _program_line() -> str:
    return f"dicomnode {read_version()}"[:64]
