"""Result files with names that a person reads: DICOM, NIfTI, and one HTML page."""

from __future__ import annotations

import filecmp
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset, dcmread

from dicomnode.datasets import objects
from dicomnode.errors import NotAllowed
from dicomnode.execution.basis import Basis
from dicomnode.execution.processing import TaskResult
from dicomnode.local_runs.running import LocalRun
from dicomnode.nifti import results
from dicomnode.results.inherited import inherit

__all__ = ["Forms", "save"]


@dataclass(frozen=True)
class Forms:
    """Forms in which results are written."""

    dicom: bool = True
    nifti: bool = False
    page: bool = False


def save(run: LocalRun, produced: TaskResult, pipeline: str, folder: Path, forms: Forms) -> list[tuple[str, Path]]:
    """Write the result in all forms; return kind and path of each file.

    The series that was made of a NIfTI input is written beside, because the DICOM results refer to it.
    Raises NotAllowed where the folder holds results of another run under the same names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{results.slug(pipeline)}_page.html"
    for path in _find_other_runs(run, produced, page, folder, forms):
        raise NotAllowed(f"{path} is of another run: choose another folder for the results")
    written = _save_objects(produced.objects, folder) if forms.dicom else []
    for name, converted in run.converted.items() if forms.dicom else ():
        shutil.copytree(converted, folder / f"source-{name}", dirs_exist_ok=True)
    if produced.basis is None:
        return written
    if forms.nifti:
        basis = produced.basis
        written += results.write_findings(
            basis.findings, folder, basis.made_by, sources=run.sources, verdict=basis.verdict, like=run.like
        )
    if forms.page:
        written.append(("page (HTML)", _save_page(produced.basis, page)))
    return written


def _save_objects(result_objects: Sequence[Dataset], folder: Path) -> list[tuple[str, Path]]:
    """Write each object under number and description of its series, and its own number where the series has several."""
    targets = _name_objects(result_objects, folder)
    for ds, target in targets:
        ds.save_as(target, enforce_file_format=True)
    return [(objects.kind_of(ds), target) for ds, target in targets]


def _name_objects(result_objects: Sequence[Dataset], folder: Path) -> list[tuple[Dataset, Path]]:
    counts = Counter(ds.SeriesInstanceUID for ds in result_objects)
    return [(ds, folder / _name_object(ds, is_single=counts[ds.SeriesInstanceUID] == 1)) for ds in result_objects]


def _find_other_runs(run: LocalRun, produced: TaskResult, page: Path, folder: Path, forms: Forms) -> Iterator[Path]:
    """Yield the files that would be written over, and that are not of the same run."""
    if forms.dicom:
        for ds, target in _name_objects(produced.objects, folder):
            if target.exists() and _read_uid(target) != ds.SOPInstanceUID:
                yield target
        for name, converted in run.converted.items():
            if not _is_same_series(converted, folder / f"source-{name}"):
                yield folder / f"source-{name}"
    if produced.basis is None:
        return
    made_by = produced.basis.made_by
    if forms.nifti:
        yield from results.find_other_runs(produced.basis.findings, folder, made_by)
    if forms.page and page.exists() and made_by.run_id not in page.read_text(errors="replace"):
        yield page


def _is_same_series(converted: Path, target: Path) -> bool:
    """Return whether the folder is missing, or has the same files."""
    if not target.exists():
        return True
    names = [path.name for path in converted.iterdir()]
    same, _, _ = filecmp.cmpfiles(converted, target, names, shallow=False)
    return set(same) == set(names) == {path.name for path in target.iterdir()}


def _name_object(ds: Dataset, *, is_single: bool) -> str:
    number = "" if is_single else f"_{int(ds.get('InstanceNumber') or 0):04}"
    return f"{int(ds.get('SeriesNumber') or 0)}_{results.slug(str(ds.get('SeriesDescription', '')))}{number}.dcm"


def _read_uid(path: Path) -> str:
    return str(dcmread(path, specific_tags=["SOPInstanceUID"], force=True).get("SOPInstanceUID", ""))


def _save_page(basis: Basis, path: Path) -> Path:
    from dicomnode.report import content, html

    at = inherit(basis.sources).moment(datetime.now(UTC))
    page = content.compose_page(
        basis.findings, basis.case, basis.sources, basis.made_by, at, basis.verdict, basis.doubts,
        priors=basis.priors,
    )  # fmt: skip
    path.write_text(html.render_html(page))
    return path
