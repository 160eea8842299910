"""The files of a study as a BIDS dataset; what BIDS has no place for is listed and left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RawDataStorage

from dicomnode.bids.dataset import (
    Labels,
    add_participant,
    find_suffix,
    open_derivative,
    open_raw,
    write_json,
    write_lookup,
)
from dicomnode.datasets import headers, objects
from dicomnode.deidentify.own_results import remove_characteristics
from dicomnode.errors import InputRefused, NodeError
from dicomnode.execution.stored import read_image, read_segmentation
from dicomnode.nifti import images
from dicomnode.nifti.results import describe_provenance
from dicomnode.reading import volumes
from dicomnode.results.provenance import Provenance, read_provenance, read_record
from pipelines.contract import Grid, Image, ParametricMap, Segmentation

__all__ = ["Exported", "export"]

_RESULTS = ("image", "parametric map", "segmentation", "report")
_SECONDS = {"RepetitionTime": "tr_ms", "EchoTime": "te_ms", "InversionTime": "ti_ms"}
_FACTS = {
    "FlipAngle": "flip_angle_deg", "MagneticFieldStrength": "field_strength_t", "Manufacturer": "manufacturer",
    "ManufacturersModelName": "model", "MRAcquisitionType": "acquisition_type", "BodyPart": "body_part",
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """One series: the file that was written, or the reason why there is none."""

    series: str
    file: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class _Series:
    """Files of one series with the attributes of the first; ``instance_uids``: of all."""

    paths: list[Path] = field(default_factory=list)
    instance_uids: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    is_raw_data: bool = False

    @property
    def name(self) -> str:
        words = [str(self.attributes.get(key) or "") for key in ("SeriesNumber", "SeriesDescription")]
        return " ".join(filter(None, words)) or self.paths[0].name


def export(
    files: Sequence[Path],
    root: Path,
    labels: Labels,
    suffixes: Mapping[str, str],
    verdicts: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[Exported]:
    """Write the dataset, or add a subject or session to it; return a row for each series.

    ``suffixes``: BIDS suffix by series number, for series whose description names none; ``verdicts``: what the JSON
    file of a result states beside its provenance, by the UID of an instance.
    Raises NotAllowed where the subject is there already, InputRefused for files of several studies or without one.
    """
    series = _group(files)
    raw = [each for each in series if each.attributes.get("SyntheticData") != "YES"]
    results = [each for each in series if each.attributes.get("SyntheticData") == "YES"]
    if not raw:
        raise InputRefused("there is no DICOM series of images to export")
    if len({str(each.attributes.get("StudyInstanceUID")) for each in series}) > 1:
        raise InputRefused("the files are of several studies: export one at a time, each with a --session of its own")
    open_raw(root, labels)
    written = _Raw(root, labels)
    rows = [written.add(each, suffixes) for each in sorted(raw, key=lambda each: each.name)]
    if written.by_instance:
        add_participant(root, labels)
    derived = _Results(root, written, verdicts)
    return rows + [derived.add(each) for each in results]


class _Raw:
    """The raw images that were written: BIDS path and grid by the UID of each of their instances."""

    def __init__(self, root: Path, labels: Labels) -> None:
        self.root, self.labels = root, labels
        self.by_instance: dict[str, tuple[str, Grid]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, series: _Series, suffixes: Mapping[str, str]) -> Exported:
        """Write one series of MR."""
        modality = str(series.attributes.get("Modality") or "")
        if series.is_raw_data:
            kind = "projections" if modality == "CT" else "k-space"
            return Exported(series.name, left_out=f"{kind}: BIDS has no place for it; its results are exported")
        if modality != "MR":
            return Exported(series.name, left_out=f"modality {modality}: only MR is exported as raw data")
        suffix = suffixes.get(str(series.attributes.get("SeriesNumber"))) or find_suffix(series.attributes)
        if not suffix:
            number = series.attributes.get("SeriesNumber", "NUMBER")
            return Exported(series.name, left_out=f"no BIDS suffix is known: state it by --suffix {number}=T2w")
        try:
            read = volumes.read(series.paths)
        except NodeError as error:
            return Exported(series.name, left_out=str(error))
        self._counts[suffix] += 1
        run = f"_run-{self._counts[suffix]}" if self._counts[suffix] > 1 else ""
        path = self.labels.folder(self.root) / f"{self.labels.prefix}{run}_{suffix}.nii.gz"
        images.write(path, read.volume.data, read.volume.grid, description="")
        write_json(_replace_suffix(path, ".json"), _describe_raw(read.facts))
        name = path.relative_to(self.root).as_posix()
        self.by_instance |= dict.fromkeys(series.instance_uids, (name, read.volume.grid))
        return Exported(series.name, name)


class _Results:
    """The results that are written: the runs of each derivative, in the order of their first file."""

    def __init__(self, root: Path, raw: _Raw, verdicts: Mapping[str, Mapping[str, Any]]) -> None:
        self.root, self.raw, self.verdicts = root, raw, verdicts
        self._runs: dict[Path, list[str]] = {}

    def add(self, series: _Series) -> Exported:
        """Write one series; those of one job have one number, and no file is written twice."""
        ds = dcmread(series.paths[0], stop_before_pixels=False)
        kind = objects.kind_of(ds)
        if kind not in _RESULTS:
            return Exported(series.name, left_out=f"{kind}: another form of what is exported")
        try:
            made_by, record = read_provenance(ds, ""), read_record(ds)
        except KeyError:
            return Exported(series.name, left_out="it records no provenance")
        found = None if kind == "report" else _read_finding(series, kind)
        folder = self.raw.labels.folder(open_derivative(self.root, made_by))
        path = folder / f"{self.raw.labels.prefix}{self._number(folder, record)}_{_name_result(found)}"
        if path.exists():
            return Exported(series.name, left_out="its provenance and name are those of another result")
        origins = [self.raw.by_instance[uid] for uid in _list_sources(ds) if uid in self.raw.by_instance]
        described = _describe_result(made_by, [name for name, _ in origins]) | self._find_verdicts(series)
        if found is None:
            write_json(path, {"Measurements": _list_measurements(record)} | described)
        else:
            _write_image(found, path, described, [grid for _, grid in origins])
        return Exported(series.name, path.relative_to(self.root).as_posix())

    def _number(self, folder: Path, record: Mapping[str, Any]) -> str:
        """Return ``_run-N`` for the results of the N-th job of a derivative, "" for those of the first."""
        run = json.dumps({key: value for key, value in record.items() if key != "measurements"}, sort_keys=True)
        runs = self._runs.setdefault(folder, [])
        if run not in runs:
            runs.append(run)
        return f"_run-{runs.index(run) + 1}" if runs.index(run) else ""

    def _find_verdicts(self, series: _Series) -> dict[str, Any]:
        return dict(next((self.verdicts[uid] for uid in series.instance_uids if uid in self.verdicts), {}))


def _read_finding(series: _Series, kind: str) -> Segmentation | Image | ParametricMap:
    return read_segmentation(series.paths[0]) if kind == "segmentation" else read_image(series.paths)


def _name_result(found: Segmentation | Image | ParametricMap | None) -> str:
    """Return description and suffix of a file; None: of the measurements of a report."""
    if found is None:
        return "desc-measurements_synthetic.json"
    words = re.findall(r"[A-Za-z0-9]+", found.description)
    name = "".join(each[0].upper() + each[1:] for each in words) or "Result"
    return f"desc-{name}_{'dseg' if isinstance(found, Segmentation) else 'synthetic'}.nii.gz"


def _describe_result(made_by: Provenance, sources: Sequence[str]) -> dict[str, Any]:
    """Return the provenance without the patient's characteristics."""
    anonymous = replace(made_by, parameters=remove_characteristics(made_by.parameters))
    return describe_provenance(anonymous, [f"bids:raw:{name}" for name in dict.fromkeys(sources)])


def _list_measurements(record: Mapping[str, Any]) -> list[Any]:
    """Return the measurements of a report without those that repeat a characteristic of the patient."""
    return [each for each in record["measurements"] if remove_characteristics({each["name"]: each})]


def _write_image(
    found: Segmentation | Image | ParametricMap, path: Path, provenance: dict[str, Any], grids: Sequence[Grid]
) -> None:
    described: dict[str, Any] = {"Description": found.description, "Sources": provenance["SourceFiles"]}
    if isinstance(found, Segmentation):
        found = _extend(found, grids)
        images.write(path, found.labels, found.grid)
        write_lookup(_replace_suffix(path, ".tsv"), [(each.number, each.label) for each in found.segments])
    else:
        images.write(path, found.volume.data, found.volume.grid)
        described["Units"] = found.volume.unit
    write_json(_replace_suffix(path, ".json"), described | provenance)


def _extend(found: Segmentation, grids: Sequence[Grid]) -> Segmentation:
    """Return the segmentation on all voxels of its source; the object holds only the slices with a segment."""
    for grid in grids[:1]:
        steps = np.linalg.solve(grid.affine_mm, found.grid.affine_mm)
        signs = np.sign(np.diagonal(steps)[:3])
        if not np.allclose(steps[:3, :3], np.diag(signs), atol=1e-3) or not signs.all():
            return found
        counts = found.grid.shape[::-1]
        places = [
            np.round(start + sign * np.arange(count)).astype(int)
            for start, sign, count in zip(steps[:3, 3], signs, counts, strict=True)
        ]
        if any(each.min() < 0 or each.max() >= n for each, n in zip(places, grid.shape[::-1], strict=True)):
            return found
        labels = np.zeros(grid.shape, np.uint8)
        labels[np.ix_(*places[::-1])] = found.labels
        return replace(found, labels=labels, grid=grid)
    return found


def _group(files: Sequence[Path]) -> list[_Series]:
    """Return the series of images, of k-space and of reports; files of other kinds are left out."""
    found: dict[str, _Series] = {}
    for path in files:
        facts = headers.read(path)
        is_raw_data = facts.sop_class_uid == RawDataStorage
        if not is_raw_data and "Rows" not in facts.attributes and facts.attributes.get("SyntheticData") != "YES":
            continue
        series = found.setdefault(facts.series_uid, _Series(attributes=dict(facts.attributes), is_raw_data=is_raw_data))
        series.paths.append(path)
        series.instance_uids.append(facts.sop_instance_uid)
    return list(found.values())


def _list_sources(ds: Dataset) -> list[str]:
    """Return the UIDs of the instances that a result refers to as its sources, or as its evidence."""
    items = [*(ds.get("SourceImageSequence") or []), *(ds.get("SourceInstanceSequence") or [])]
    for study in ds.get("CurrentRequestedProcedureEvidenceSequence") or []:
        for series in study.get("ReferencedSeriesSequence") or []:
            items += series.get("ReferencedSOPSequence") or []
    return [str(item.ReferencedSOPInstanceUID) for item in items]


def _describe_raw(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an acquisition under BIDS' names; times in seconds. Nothing of the patient is among them."""
    found: dict[str, Any] = {name: facts[fact] / 1000 for name, fact in _SECONDS.items() if fact in facts}
    if "image_type" in facts:
        found["ImageType"] = list(np.atleast_1d(facts["image_type"]).tolist())
    return {"Modality": "MR"} | found | {name: facts[fact] for name, fact in _FACTS.items() if fact in facts}


def _replace_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(images.strip_suffix(path) + suffix)
