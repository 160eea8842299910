"""``dicomnode run``: a pipeline on a folder, by the same code as a job."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.config import Config
    from pipelines.contract import Input

__all__ = ["run"]

Inputs = dict[str, list[Path]]
"""Files by the name of their input."""

_MRD_SUFFIXES = (".h5", ".mrd")


def run(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    in_dir: Annotated[Path, typer.Argument(exists=True, help="Folder with DICOM or MRD files, or one file.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder for the results.")],
    model: Annotated[str, typer.Option(metavar="NAME@VERSION", help="Instead of the pipeline's own.")] = "",
    seed: Annotated[int | None, typer.Option(help="Instead of the one derived from the input.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the pipeline.")] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", metavar="NAME=PATH", help="Files of a further input of the pipeline.")
    ] = None,
    as_json: context.AsJson = False,
) -> None:
    """Run a pipeline on a folder, without network and database."""
    from dicomnode.deployment import pipeline_names

    config = context.config_if_any(ctx)
    options = dict(_parse_option(text) for text in option or [])
    out_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        expected = pipeline_names.resolve_pipeline(pipeline, config, model).inputs
        for inputs in _group_inputs(in_dir, Path(folder), expected, with_ or []):
            rows += _run_one(inputs, out_dir, pipeline, model, seed, options, config)
    context.print_rows(rows, ["kind", "file", "seconds"], as_json=as_json)


def _run_one(
    inputs: Inputs,
    out_dir: Path,
    pipeline: str,
    model: str,
    seed: int | None,
    options: dict[str, Any],
    config: Config,
) -> list[dict[str, Any]]:
    from dicomnode.datasets import objects
    from dicomnode.execution import processing

    content = [(name, *sorted(map(_digest, paths))) for name, paths in sorted(inputs.items())]
    key = hashlib.sha256(repr([content, pipeline, model, sorted(options.items())]).encode()).hexdigest()
    task = processing.Task(
        key=key,
        pipeline=pipeline,
        model=model,
        options=options,
        inputs=inputs,
        seed=processing.derive_seed(key) if seed is None else seed,
        created_at=datetime.now(UTC),
    )
    with context.show_progress_bar("starting") as bar:
        produced = processing.run_task(task, config, progress=bar.update)
    rows = []
    for ds in produced.objects:
        target = out_dir / f"{ds.SOPInstanceUID}.dcm"
        ds.save_as(target, enforce_file_format=True)
        rows.append({"kind": objects.kind_of(ds), "file": str(target), **produced.report})
    return rows


def _group_inputs(source: Path, folder: Path, expected: Sequence[Input], with_: list[str]) -> list[Inputs]:
    """Return the inputs of each task: one acquisition of k-space, or one series of images, with its further inputs."""
    from dicomnode.errors import NotFound
    from dicomnode.routing.routing import MAIN_INPUT
    from pipelines.contract import Covariates, KSpace

    further = _parse_further_inputs(with_, [each.name for each in expected[1:]])
    paths = [path for path in _list_files(source) if not any(path in files for files in further.values())]
    dicom = [path for path in paths if _is_dicom(path)]
    if expected[0].kind is not KSpace:
        found, missing = _group_series(dicom), "no DICOM series of images"
    else:
        found = [[_wrap_mrd(path, folder)] for path in paths if path.suffix in _MRD_SUFFIXES] + _find_raw_data(dicom)
        missing = "no Raw Data object and no MRD file (.h5, .mrd)"
    if not found:
        raise NotFound(f"{source} holds {missing}")
    reports = [each.name for each in expected if each.kind is Covariates and each.name not in further]
    return [
        {MAIN_INPUT: series} | further | {name: _find_covariates(paths, dicom, series) for name in reports}
        for series in found
    ]


def _parse_further_inputs(with_: list[str], names: list[str]) -> Inputs:
    """Return the files of each NAME=PATH. Raises BadParameter."""
    found: Inputs = {}
    for text in with_:
        name, equals, path = text.partition("=")
        if not equals or name not in names:
            raise typer.BadParameter(f"{text!r} is not NAME=PATH with a NAME of: {', '.join(names) or 'none here'}")
        found[name] = _list_files(Path(path))
        if not found[name]:
            raise typer.BadParameter(f"{path} holds no file")
    return found


def _list_files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(each.resolve() for each in source.rglob("*") if each.is_file())
    return [source.resolve()] if source.is_file() else []


def _is_dicom(path: Path) -> bool:
    from pydicom.misc import is_dicom

    return path.suffix not in _MRD_SUFFIXES and is_dicom(path)


def _find_covariates(paths: list[Path], dicom: list[Path], series: list[Path]) -> list[Path]:
    """Return the reports of the series' study, and the sidecar files."""
    from dicomnode.datasets import headers
    from dicomnode.reading import covariates

    study = headers.read(series[0]).study_uid
    facts = {path: headers.read(path) for path in dicom}
    reports = [
        path for path, each in facts.items() if each.study_uid == study and each.attributes.get("Modality") == "SR"
    ]
    return reports + [path for path in paths if path.name == covariates.SIDECAR]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _find_raw_data(paths: list[Path]) -> list[list[Path]]:
    from dicomnode.datasets import headers

    return [[path] for path in paths if headers.read(path).sop_class_uid == "1.2.840.10008.5.1.4.1.1.66"]


def _group_series(paths: list[Path]) -> list[list[Path]]:
    """Group the files by series, without reports, presentation states and other files that are no images."""
    from dicomnode.datasets import headers

    found: dict[str, list[Path]] = {}
    for path in paths:
        facts = headers.read(path)
        if "Rows" in facts.attributes:
            found.setdefault(facts.series_uid, []).append(path)
    return list(found.values())


def _wrap_mrd(path: Path, folder: Path) -> Path:
    from dicomnode import mrd

    target = folder / f"{len(list(folder.iterdir()))}.dcm"
    with path.open("rb") as file:
        mrd.wrap(file, now=datetime.now(UTC)).save_as(target, enforce_file_format=True)
    return target


def _parse_option(text: str) -> tuple[str, Any]:
    """Return the key, and its TOML value or the text where it is none."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
