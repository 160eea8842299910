"""``dicomnode run``: a pipeline on a folder, by the same code as a job."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.config import Config
    from dicomnode.local_runs.candidates import Candidate
    from dicomnode.local_runs.choosing import Choice
    from dicomnode.local_runs.saving import Forms
    from pipelines.contract import Pipeline

__all__ = ["run"]


def run(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    in_dir: Annotated[
        Path, typer.Argument(exists=True, metavar="IN", help="Folder or file: DICOM, NIfTI, or MRD for k-space.")
    ],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
    model: Annotated[str, typer.Option(metavar="NAME@VERSION", help="Instead of the pipeline's own.")] = "",
    seed: Annotated[int | None, typer.Option(help="Instead of the one derived from the input.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the pipeline.")] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", metavar="NAME=PATH", help="The files of an input of the pipeline.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave an optional input empty.")] = None,
    modality: Annotated[str, typer.Option(metavar="MR|PT|CT", help="Of NIfTI files that do not state it.")] = "",
    fact: Annotated[
        list[str] | None,
        typer.Option(metavar="[INPUT.]FACT=VALUE", help="What a NIfTI file does not state: ti_ms=2800."),
    ] = None,
    nifti: Annotated[bool, typer.Option("--nifti", help="Write results as NIfTI, too.")] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Write a page with pictures and numbers, as one HTML file.")
    ] = False,
    no_dicom: Annotated[bool, typer.Option("--no-dicom", help="Write no DICOM: with --nifti or --page.")] = False,
    as_json: context.AsJson = False,
) -> None:
    """Run a pipeline on a folder, without network and database."""
    from dicomnode.cli import run_inputs
    from dicomnode.deployment import pipeline_names
    from dicomnode.local_runs import choosing
    from dicomnode.local_runs.saving import Forms

    if no_dicom and not (nifti or page):
        raise typer.BadParameter("--no-dicom needs --nifti or --page, or nothing is written")
    config = context.config_if_any(ctx)
    options = dict(run_inputs.parse_option(text) for text in option or [])
    found = pipeline_names.resolve_pipeline(pipeline, config, model)
    facts = run_inputs.parse_facts(fact or [], modality, found)
    explicit, reports = run_inputs.parse_explicit(with_ or [], found, facts)
    choices = _choose(found, in_dir, facts, explicit, without or [], config, model)
    choosing.refuse_shared_inputs(choices, found.inputs[0], [*explicit, *reports])
    out_dir.mkdir(parents=True, exist_ok=True)
    command = _Command(found, pipeline, model, options, seed, config, Forms(not no_dicom, nifti, page))
    rows: list[dict[str, Any]] = []
    for number, choice in enumerate(choices, 1):
        rows += command.run_one(choice, in_dir, reports, _name_folder(out_dir, choice, number, len(choices)), as_json)
    if as_json:
        context.print_json(rows)


@dataclass(frozen=True)
class _Command:
    """Arguments that all runs of one command share."""

    pipeline: Pipeline
    name: str
    model: str
    options: Mapping[str, Any]
    seed: int | None
    config: Config
    forms: Forms

    def run_one(
        self, choice: Choice, source: Path, reports: Mapping[str, Sequence[Path]], folder: Path, is_quiet: bool
    ) -> list[dict[str, Any]]:
        """Run the pipeline on one choice of inputs, and return a row for each file written."""
        from dicomnode.cli import run_report
        from dicomnode.local_runs import running, saving

        with tempfile.TemporaryDirectory() as scratch:
            found = running.prepare(
                choice, self.pipeline, _find_reports(self.pipeline, choice, source, reports), Path(scratch)
            )
            if not is_quiet:
                run_report.print_inputs(found)
            with context.show_progress_bar("starting") as bar:
                produced = found.run(self.name, self.model, self.options, self.seed, self.config, bar.update)
            written = saving.save(found, produced, self.name, folder, self.forms)
        if not is_quiet:
            run_report.print_result(produced.report, written)
        return [{"kind": kind, "file": str(path), **produced.report} for kind, path in written]


def _choose(
    pipeline: Pipeline,
    source: Path,
    facts: Mapping[str, Mapping[str, Any]],
    explicit: Mapping[str, Candidate],
    without: Sequence[str],
    config: Config,
    model: str,
) -> list[Choice]:
    from dicomnode.deployment import models
    from dicomnode.local_runs import candidates, choosing
    from pipelines import quality

    rules = quality.read_input_rules(models.find_bundle(model or pipeline.bundle, config).metadata)
    taken_paths = {path for each in explicit.values() for path in each.paths}
    usable = [each for each in candidates.find_candidates(source, facts[""]) if not taken_paths & set(each.paths)]
    routes = [route for route in config.routes if route.pipeline == pipeline.name]
    choices = choosing.choose(pipeline.inputs, usable, rules, routes, explicit, without)
    return [_add_facts(each, facts) for each in choices]


def _add_facts(choice: Choice, facts: Mapping[str, Mapping[str, Any]]) -> Choice:
    """Return the choice with the facts that the user states about single inputs."""
    return replace(
        choice,
        inputs={
            name: replace(each, attributes={**each.attributes, **facts.get(name, {})}) if each.kind == "nifti" else each
            for name, each in choice.inputs.items()
        },
    )


def _find_reports(
    pipeline: Pipeline, choice: Choice, source: Path, explicit: Mapping[str, Sequence[Path]]
) -> dict[str, Sequence[Path]]:
    from dicomnode.local_runs import candidates
    from dicomnode.reading import covariates
    from pipelines.contract import Covariates

    main = choice.inputs[pipeline.inputs[0].name]
    names = [each.name for each in pipeline.inputs if each.kind is Covariates]
    return {name: explicit.get(name) or candidates.find_reports(source, main, covariates.SIDECAR) for name in names}


def _name_folder(folder: Path, choice: Choice, number: int, count: int) -> Path:
    """Return the folder of one run: a folder of its own where there are several."""
    from dicomnode.nifti.results import slug

    return folder if count == 1 else folder / f"{number:03}_{slug(next(iter(choice.inputs.values())).name)}"
