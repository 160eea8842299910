"""Arguments of ``dicomnode run``: options, stated facts and the files of each input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from dicomnode.config import route_blocks
from dicomnode.local_runs import candidates
from dicomnode.local_runs.candidates import Candidate
from dicomnode.local_runs.choosing import Choice
from dicomnode.nifti import participants
from dicomnode.nifti.facts import KEYWORDS, parse_fact
from pipelines.contract import Covariates, Pipeline

__all__ = ["parse_explicit", "parse_facts", "parse_helpers", "parse_option", "refuse_misplaced_facts"]


def parse_helpers(texts: Sequence[str], pipeline: Pipeline) -> dict[str, str]:
    """Return NAME@VERSION by the name of the helper model. Raises BadParameter."""
    found = {text.partition("@")[0]: text for text in texts}
    for name, text in found.items():
        if name not in pipeline.helpers or not text.partition("@")[2]:
            names = ", ".join(pipeline.helpers) or "none"
            raise typer.BadParameter(f"--helper {text}: needs NAME@VERSION; helper models of {pipeline.name}: {names}")
    if len(found) < len(texts):
        raise typer.BadParameter("--helper names one helper model twice")
    return found


def parse_facts(texts: Sequence[str], modality: str, pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return the stated attributes by input; under "" those of every NIfTI file. Raises BadParameter."""
    found: dict[str, dict[str, Any]] = {"": {"Modality": modality} if modality else {}}
    names = [each.name for each in pipeline.inputs]
    for text in texts:
        try:
            name, keyword, value = parse_fact(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if name and name not in names:
            raise typer.BadParameter(f"{text!r}: no input {name!r}; {pipeline.name} has: {', '.join(names)}")
        found.setdefault(name or pipeline.inputs[0].name, {})[keyword] = value
    if modality not in ("", "MR", "PT", "CT"):
        raise typer.BadParameter(f"--modality is MR, PT or CT; it is {modality!r}")
    return found


def parse_explicit(
    with_: Sequence[str], pipeline: Pipeline, facts: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Candidate], dict[str, list[Path]]]:
    """Return the candidate of each NAME=PATH, and the files of covariates by name. Raises BadParameter."""
    kinds = {each.name: each.kind for each in pipeline.inputs}
    explicit: dict[str, Candidate] = {}
    reports: dict[str, list[Path]] = {}
    for text in with_:
        name, equals, path = text.partition("=")
        if not equals or name not in kinds:
            raise typer.BadParameter(f"{text!r} is not NAME=PATH with a NAME of: {', '.join(kinds)}")
        if not candidates.list_files(Path(path)):
            raise typer.BadParameter(f"{path} holds no file")
        if kinds[name] is Covariates:
            reports[name] = candidates.list_files(Path(path))
            continue
        found = candidates.find_candidates(Path(path), facts[""])
        if len(found) != 1:
            names = ", ".join(each.name for each in found) or "none"
            raise typer.BadParameter(f"{text!r} needs one series, NIfTI file or acquisition; {path} has: {names}")
        explicit[name] = found[0]
    return explicit, reports


def refuse_misplaced_facts(choices: Sequence[Choice], facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise BadParameter where a stated fact is of no NIfTI file, or is of one patient and there are several."""
    for name, values in facts.items():
        files = {each.inputs[name].group: each.inputs[name] for each in choices if name in each.inputs}
        if name and values and not any(each.kind == "nifti" for each in files.values()):
            raise typer.BadParameter(f"--fact states facts of NIfTI files; the input {name!r} has none")
        own = [fact for fact in participants.FACTS.values() if KEYWORDS[fact] in values]
        if own and len(files) > 1:
            names = ", ".join(sorted(each.name for each in files.values()))
            raise typer.BadParameter(
                f"--fact {own[0]} is of one patient, but IN has images of {len(files)}: {names}; state it for each in "
                f"{participants.TABLE} (columns participant_id, {', '.join(participants.FACTS)}), or run each by itself"
            )


def parse_option(text: str) -> tuple[str, Any]:
    """Return the key, and its TOML value or the text where it is none."""
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, route_blocks.parse_value(value)
