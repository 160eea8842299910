"""De-identified copies of files and data sets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.deidentify import burned_in, method, own_results, pseudonyms, secret
from dicomnode.deidentify.cleaning import Cleaner, collect_identifiers
from dicomnode.deidentify.faces import check_face
from dicomnode.deidentify.secret import Secret
from dicomnode.errors import InputRefused, NodeError
from dicomnode.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from dicomnode.config import Config
    from dicomnode.deidentify.defacing import SeriesFaceMask

__all__ = ["Deidentifier", "open_deidentifier"]


@dataclass(frozen=True)
class Deidentifier:
    """A profile with its key and its file of pseudonyms, None where none is kept."""

    profile: DeidentifyConfig
    secret: Secret
    map_file: Path | None = None

    def read(self, path: Path, face: SeriesFaceMask | None = None) -> Dataset:
        """Return the de-identified data set of a file, without the face where a mask of it is given.

        Raises InputRefused where the file cannot be read or cannot be made safe.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would quote the patient's values
            try:
                ds = dcmread(path)
            except (InvalidDicomError, OSError, ValueError, TypeError, NotImplementedError, EOFError) as error:
                raise InputRefused(f"an instance cannot be read as DICOM ({type(error).__name__})") from None
            if face is not None:
                face.remove(path, ds)
        return self.deidentify(ds)

    def deidentify(self, ds: Dataset) -> Dataset:
        """De-identify a data set in place and return it. Raises InputRefused."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._deidentify(ds)
            except NodeError:
                raise
            except Exception as error:  # whatever broken values make a decoder raise; its words may quote them
                raise InputRefused(f"an instance cannot be de-identified ({type(error).__name__})") from None

    def _deidentify(self, ds: Dataset) -> Dataset:
        profile, is_own = self.profile, own_results.is_own_result(ds)
        burned_in.check_burned_in(ds, profile, is_own=is_own)
        check_face(ds, profile)
        subject = self.secret.subject(ds, profile.pseudonym_prefix)
        if self.map_file is not None:
            pseudonyms.record_subject(self.map_file, ds, subject, self.secret)
        identifiers = collect_identifiers(ds, profile)
        Cleaner(profile, self.secret, subject, identifiers, is_own).clean(ds)
        ds.PatientName = ds.PatientID = subject.pseudonym
        if is_own:
            own_results.clean_record(ds, profile, identifiers)
        method.record_method(ds, profile, is_own=is_own)
        _set_file_meta(ds)
        return ds


def open_deidentifier(config: Config, name: str) -> Deidentifier:
    """Return a deidentifier with the profile of that name and its key. Raises ConfigError."""
    profile = config.find_profile(name)
    return Deidentifier(profile, secret.load_secret(profile.key_file), profile.map_file)


def _set_file_meta(ds: Dataset) -> None:
    """Write new file meta information, which names no sender, and an empty preamble (PS3.10 7.1)."""
    syntax = ds.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian) if hasattr(ds, "file_meta") else None
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.preamble = bytes(128)
