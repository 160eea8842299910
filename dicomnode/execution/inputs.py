"""The inputs of a pipeline, read from files: a case without identity for the pipeline, headers for the writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from dicomnode import mrd, sinogram
from dicomnode.errors import InputRefused
from dicomnode.execution.projections import load_projections
from dicomnode.reading import covariates, segmentations, unreadable, volumes
from dicomnode.routing.routing import MAIN_INPUT
from pipelines.contract import Case, Covariates, KSpace, Labels, Pipeline, Projections, Volume

__all__ = ["LoadedInputs", "load_inputs"]


@dataclass(frozen=True)
class LoadedInputs:
    """The case for the pipeline, and the headers without bulk data for the writer; ``priors``: of earlier studies."""

    case: Case
    sources: list[Dataset]
    priors: list[Dataset]


def load_inputs(pipeline: Pipeline, inputs: Mapping[str, Sequence[Path]]) -> LoadedInputs:
    """Load all inputs. The first input's facts are at the top level, those of each further input under its name.

    Further images (contrasts, sets) of one acquisition follow as "kspace 2", "kspace 3".
    """
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    sources: list[Dataset] = []
    priors: list[Dataset] = []
    for number, input in enumerate(pipeline.inputs):
        paths = inputs.get(MAIN_INPUT if number == 0 else input.name, ())
        if input.kind is Covariates:
            arrays[input.name], found = _load_covariates(sources, paths)
            facts = found | facts
            continue
        if not paths and input.required:
            raise InputRefused(f"{pipeline.name} needs the input {input.name!r}; no series of the study matches it")
        if not paths:
            continue
        loaded, headers = _load_volume(paths, allow_gaps=True) if input.allows_gaps else _LOADERS[input.kind](paths)
        for place, (array, found) in enumerate(loaded):
            name = f"{input.name} {place + 1}" if place else input.name
            arrays[name] = array
            frame = {"same_frame": _shares_frame(headers, sources)} if number and not input.is_prior else {}
            facts |= {name: found | frame} if number or place else found
        (priors if input.is_prior else sources).extend(headers)
    return LoadedInputs(Case(arrays, facts), sources, priors)


def _shares_frame(headers: Sequence[Dataset], sources: Sequence[Dataset]) -> bool | None:
    """Return whether a further input has the frame of reference of the first; None where one of them states none."""
    frame_uids = [{str(ds.get("FrameOfReferenceUID") or "") for ds in each} - {""} for each in (headers, sources[:1])]
    return frame_uids[0] == frame_uids[1] if all(frame_uids) else None


def _load_volume(
    paths: Sequence[Path], *, allow_gaps: bool = False
) -> tuple[list[tuple[Volume, dict[str, Any]]], list[Dataset]]:
    series = volumes.read(paths, allow_gaps=allow_gaps)
    return [(series.volume, series.facts)], series.headers


def _load_labels(paths: Sequence[Path]) -> tuple[list[tuple[Labels, dict[str, Any]]], list[Dataset]]:
    labels, facts, header = segmentations.read(paths)
    return [(labels, facts)], [header]


def _load_covariates(headers: Sequence[Dataset], paths: Sequence[Path]) -> tuple[Covariates, dict[str, Any]]:
    """Load the covariates of the patient whose images were loaded before; the age is a fact of the case as well."""
    found = covariates.resolve(headers, paths)
    age = found.age_years.value
    return found, {"covariates": covariates.describe(found)} | ({} if age is None else {"age_years": age})


def _load_kspace(paths: Sequence[Path]) -> tuple[list[tuple[KSpace, dict[str, Any]]], list[Dataset]]:
    if len(paths) != 1:
        raise InputRefused(f"one acquisition is one Raw Data object; {len(paths)} instances were given")
    ds = dcmread(paths[0])
    unreadable.decode(ds)
    if sinogram.is_sinogram(ds):
        raise InputRefused("the instance holds projections of CT, not k-space; ct_reconstruction takes it")
    if not mrd.is_mrd(ds):
        raise InputRefused("the instance is no ISMRMRD/MRD in Raw Data Storage; 'dicomnode kspace wrap' makes one")
    return mrd.to_images(mrd.read(mrd.unwrap(ds))), [_remove_payload(ds)]


def _load_projections(paths: Sequence[Path]) -> tuple[list[tuple[Projections, dict[str, Any]]], list[Dataset]]:
    projections, facts, headers = load_projections(paths)
    return [(projections, facts)], headers


_LOADERS: dict[Any, Callable[[Sequence[Path]], tuple[list[Any], list[Dataset]]]] = {
    Volume: _load_volume,
    KSpace: _load_kspace,
    Projections: _load_projections,
    Labels: _load_labels,
}


def _remove_payload(ds: Dataset) -> Dataset:
    """Return the data set without private elements: the payload is large, and no result repeats it."""
    ds.remove_private_tags()
    return ds
