"""The images and acquisitions of a folder, each with the attributes on which it is chosen as an input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydicom.misc import is_dicom

from dicomnode.datasets import headers
from dicomnode.errors import InputRefused
from dicomnode.nifti import facts as nifti_facts
from dicomnode.nifti import images, participants

__all__ = ["MRD_SUFFIXES", "Candidate", "find_candidates", "find_reports", "list_dicom", "list_files"]

MRD_SUFFIXES = (".h5", ".mrd")
_RAW_DATA_STORAGE = "1.2.840.10008.5.1.4.1.1.66"
_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)(?=_)")


@dataclass(frozen=True)
class Candidate:
    """One series, one NIfTI file or one acquisition of k-space.

    ``group``: study (DICOM), or subject and session or folder (NIfTI); inputs of different groups are never combined by
    themselves. ``attributes``: by keyword, of the first instance or as stated about the file; ``unclear``: why others
    are not stated although a table of participants has them.
    """

    kind: Literal["series", "nifti", "k-space"]
    name: str
    paths: tuple[Path, ...]
    group: str
    attributes: Mapping[str, Any]
    unclear: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_synthetic(self) -> bool:
        """True for a result of this or of another node."""
        return self.attributes.get("SyntheticData") == "YES"

    @property
    def is_labels(self) -> bool:
        """True for a DICOM Segmentation."""
        return self.attributes.get("Modality") == "SEG"


def list_files(source: Path) -> list[Path]:
    """Return the files of a folder in the order of their names, or the file itself."""
    if source.is_dir():
        return sorted(each.resolve() for each in source.rglob("*") if each.is_file())
    return [source.resolve()] if source.is_file() else []


def list_dicom(source: Path) -> list[Path]:
    """Return the DICOM files of a folder, or the file itself."""
    return [path for path in list_files(source) if _is_dicom(path)]


def find_candidates(source: Path, facts: Mapping[str, Any]) -> list[Candidate]:
    """Return every candidate of a folder or a file.

    ``facts``: attributes that the user states about NIfTI files. Raises InputRefused for a JSON file that is none.
    """
    paths = list_files(source)
    found = [_describe_nifti(path, facts) for path in paths if images.is_nifti(path)]
    found += [Candidate("k-space", path.name, (path,), str(path), {}) for path in paths if path.suffix in MRD_SUFFIXES]
    return found + _find_series(list_dicom(source))


def find_reports(source: Path, main: Candidate, sidecar: str) -> list[Path]:
    """Return the structured reports of the study of ``main``, and the files named ``sidecar`` in its folder or above.

    Raises InputRefused for a sidecar that has images of several studies or subjects below it.
    """
    paths = list_files(source)
    facts = {path: headers.read(path) for path in paths if _is_dicom(path)}
    reports = [path for path, each in facts.items() if each.study_uid == main.group and each.modality == "SR"]
    sidecars = [path for path in paths if path.name == sidecar and _covers(path, main)]
    for path in sidecars:
        _refuse_several_groups(path)
    return reports + sidecars


def _covers(sidecar: Path, candidate: Candidate) -> bool:
    """Return whether files of the candidate lie in the folder of the sidecar, or deeper."""
    return any(sidecar.parent in path.parents for path in candidate.paths)


def _refuse_several_groups(sidecar: Path) -> None:
    measured = [each for each in find_candidates(sidecar.parent, {}) if not each.is_synthetic]
    groups = {each.group for each in measured}
    if len(groups) > 1:
        raise InputRefused(
            f"{sidecar.name} in {sidecar.parent.name}/ has images of {len(groups)} studies or subjects below it; "
            "put one into the folder of each"
        )


def _is_dicom(path: Path) -> bool:
    return path.suffix not in MRD_SUFFIXES and not images.is_nifti(path) and is_dicom(path)


def _describe_nifti(path: Path, facts: Mapping[str, Any]) -> Candidate:
    subject = _SUBJECT.search(path.name)
    group = subject[1] if subject else str(path.parent)
    own, of_subject = nifti_facts.read_stated(path, facts), participants.read_participant(path)
    differing = {
        keyword: f"{path.name}: {participants.TABLE} and its JSON file differ in {keyword}"
        for keyword, value in of_subject.values.items()
        if keyword not in facts and own.get(keyword, value) != value
    }
    values = dict(of_subject.values) | own
    attributes = {keyword: value for keyword, value in values.items() if keyword not in differing}
    unclear = {keyword: why for keyword, why in of_subject.unclear.items() if keyword not in own} | differing
    if images.is_marked(path):
        attributes["SyntheticData"] = "YES"
    return Candidate("nifti", path.name, (path,), group, attributes, unclear)


def _find_series(paths: list[Path]) -> list[Candidate]:
    """Return the series of images, and each Raw Data object; reports and presentation states are left out."""
    by_series: dict[str, list[Path]] = {}
    first: dict[str, Any] = {}
    found = []
    for path in paths:
        facts = headers.read(path)
        if facts.sop_class_uid == _RAW_DATA_STORAGE:
            found.append(Candidate("k-space", path.name, (path,), facts.study_uid, facts.attributes))
        elif "Rows" in facts.attributes:
            by_series.setdefault(facts.series_uid, []).append(path)
            first.setdefault(facts.series_uid, facts)
    return found + [
        Candidate("series", _name_series(first[uid].attributes, files), tuple(files), first[uid].study_uid,
                  first[uid].attributes)
        for uid, files in by_series.items()
    ]  # fmt: skip


def _name_series(attributes: Mapping[str, Any], paths: list[Path]) -> str:
    """Return number and description of a series, and where it lies."""
    words = [str(attributes.get(keyword) or "") for keyword in ("SeriesNumber", "SeriesDescription")]
    place = paths[0].name if len(paths) == 1 else paths[0].parent.name
    return " ".join([*filter(None, words), f"({place})"])
