"""Files in, de-identified data sets out."""

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
from dicomnode.deidentify import burned_in, method, ours, pseudonyms, secret
from dicomnode.deidentify.cleaning import Cleaner, identifying
from dicomnode.deidentify.faces import check as check_face
from dicomnode.deidentify.secret import Secret
from dicomnode.errors import InputRefused, NodeError
from dicomnode.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from dicomnode.config import Config
    from dicomnode.deidentify.defacing import FaceOfSeries

__all__ = ["Deidentifier", "opened"]


@dataclass(frozen=True)
class Deidentifier:
    """A profile with its key, and where it is written down who is who."""

    profile: DeidentifyConfig
    secret: Secret
    map_file: Path | None = None

    def read(self, path: Path, face: FaceOfSeries | None = None) -> Dataset:
        """The copy of a file's data set, without the face where that is known. Raises InputRefused where it cannot be
        made safe, or cannot be read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would quote the patient's values
            try:
                ds = dcmread(path)
            except (InvalidDicomError, OSError, ValueError, TypeError, NotImplementedError, EOFError) as error:
                raise InputRefused(f"an instance cannot be read as DICOM ({type(error).__name__})") from None
            if face is not None:
                face.remove(path, ds)
        return self.copy(ds)

    def copy(self, ds: Dataset) -> Dataset:
        """The data set itself, changed; it has to be one of the caller's own."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._copy(ds)
            except NodeError:
                raise
            except Exception as error:  # whatever broken values make a decoder raise; its words may quote them
                raise InputRefused(f"an instance cannot be de-identified ({type(error).__name__})") from None

    def _copy(self, ds: Dataset) -> Dataset:
        profile, own = self.profile, ours.is_ours(ds)
        burned_in.check(ds, profile, ours=own)
        check_face(ds, profile)
        subject = self.secret.subject(ds, profile.pseudonym_prefix)
        if self.map_file is not None:
            pseudonyms.note(self.map_file, ds, subject, self.secret)
        words = identifying(ds, profile)
        Cleaner(profile, self.secret, subject, words, own).clean(ds)
        ds.PatientName = ds.PatientID = subject.pseudonym
        if own:
            ours.clean_record(ds, profile, words)
        method.state(ds, profile, ours=own)
        _describe(ds)
        return ds


def opened(config: Config, name: str) -> Deidentifier:
    """The profile of that name, ready. Raises ConfigError."""
    profile = config.find_profile(name)
    return Deidentifier(profile, secret.load(profile.key_file), profile.map_file)


def _describe(ds: Dataset) -> None:
    """New meta information, which names no sender, and an empty preamble (PS3.10 7.1)."""
    syntax = ds.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian) if hasattr(ds, "file_meta") else None
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.preamble = bytes(128)
