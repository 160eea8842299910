"""``dicomnode run``: a pipeline on a folder, by the same code as a job."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context, explain_error

if TYPE_CHECKING:
    from dicomnode.config import Config
    from dicomnode.local_runs.candidates import Candidate
    from dicomnode.local_runs.choosing import Choice
    from dicomnode.local_runs.saving import Forms
    from pipelines.contract import Pipeline
    from pipelines.quality import InputRule

__all__ = ["run"]

_log = logging.getLogger(__name__)

_NOTHING_FITS = "no image of it fits the first input of the pipeline"
_STOPPED = ("refuse", "failed")


def run(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    in_dir: Annotated[
        Path, typer.Argument(exists=True, metavar="IN", help="Folder or file: DICOM, NIfTI, or MRD for k-space.")
    ],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
    model: Annotated[str, typer.Option(metavar="NAME@VERSION", help="Instead of the pipeline's own.")] = "",
    helper: Annotated[
        list[str] | None, typer.Option(metavar="NAME@VERSION", help="Instead of the helper model of this name.")
    ] = None,
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
    from dicomnode.cli import run_inputs, run_report
    from dicomnode.deployment import pipeline_names
    from dicomnode.local_runs import choosing
    from dicomnode.local_runs.saving import Forms

    if no_dicom and not (nifti or page):
        raise typer.BadParameter("--no-dicom needs --nifti or --page, or nothing is written")
    config = context.config_if_any(ctx)
    options = dict(run_inputs.parse_option(text) for text in option or [])
    found = pipeline_names.resolve_pipeline(pipeline, config, model)
    helpers = run_inputs.parse_helpers(helper or [], found)
    facts = run_inputs.parse_facts(fact or [], modality, found)
    explicit, reports = run_inputs.parse_explicit(with_ or [], found, facts)
    rules = _read_rules(found, config, model)
    choices, left_out = _choose(found, in_dir, facts, explicit, without or [], config, rules)
    choosing.refuse_shared_inputs(choices, found.inputs[0], [*explicit, *reports])
    run_inputs.refuse_misplaced_facts(choices, facts)
    _log_unclear_facts(choices)
    out_dir.mkdir(parents=True, exist_ok=True)
    command = _Command(
        found, pipeline, model, helpers, options, seed, config, rules, Forms(not no_dicom, nifti, page), as_json
    )
    outcomes = command.run_all(choices, in_dir, reports, out_dir, is_alone=len(choices) + len(left_out) == 1)
    outcomes += [_Outcome(each, {"verdict": "left out", "reasons": [_NOTHING_FITS]}) for each in left_out]
    if as_json:
        context.print_json([row for each in outcomes for row in each.list_rows()])
    elif len(outcomes) > 1:
        run_report.print_subjects([(each.subject, each.report) for each in outcomes])
    if any(each.report["verdict"] in _STOPPED for each in outcomes):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one subject: its report, or verdict and reasons only, and kind and path of each file."""

    subject: str
    report: Mapping[str, Any]
    written: Sequence[tuple[str, Path]] = ()

    def list_rows(self) -> list[dict[str, Any]]:
        """Return a row for each file, or one without a file."""
        files: list[tuple[str, str | None]] = [(kind, str(path)) for kind, path in self.written]
        return [
            {"subject": self.subject, "kind": kind, "file": path, **self.report} for kind, path in files or [("", None)]
        ]


@dataclass(frozen=True)
class _Command:
    """Arguments that all runs of one command share."""

    pipeline: Pipeline
    name: str
    model: str
    helpers: Mapping[str, str]
    options: Mapping[str, Any]
    seed: int | None
    config: Config
    rules: Mapping[str, Sequence[InputRule]]
    forms: Forms
    is_quiet: bool

    def run_all(
        self,
        choices: Sequence[Choice],
        source: Path,
        reports: Mapping[str, Sequence[Path]],
        folder: Path,
        *,
        is_alone: bool,
    ) -> list[_Outcome]:
        """Run the pipeline on each choice. A refusal or failure ends its own run; a single run raises it."""
        outcomes = []
        for number, choice in enumerate(choices, 1):
            subject = _name_subject(choice, source)
            try:
                own = _name_folder(folder, choice, number, len(choices))
                outcomes.append(self.run_one(choice, subject, source, reports, own))
            except Exception as error:
                if is_alone:
                    raise
                outcomes.append(_describe_fault(subject, error))
        return outcomes

    def run_one(
        self, choice: Choice, subject: str, source: Path, reports: Mapping[str, Sequence[Path]], folder: Path
    ) -> _Outcome:
        """Run the pipeline on one choice of inputs, and write its results."""
        from dicomnode.cli import run_report
        from dicomnode.local_runs import choosing, running, saving

        site_rules = self.config.quality.input_rules
        choosing.refuse_unclear_facts(
            choice, {name: [*self.rules.get(name, ()), *site_rules] for name in choice.inputs}
        )
        with tempfile.TemporaryDirectory() as scratch:
            found = running.prepare(
                choice, self.pipeline, _find_reports(self.pipeline, choice, source, reports), Path(scratch)
            )
            if not self.is_quiet:
                run_report.print_inputs(found)
            with context.show_progress_bar("starting") as bar:
                produced = found.run(
                    self.name, self.model, self.helpers, self.options, self.seed, self.config, bar.update
                )
            written = saving.save(found, produced, self.name, folder, self.forms)
        if not self.is_quiet:
            run_report.print_result(produced.report, written)
        return _Outcome(subject, produced.report, written)


def _describe_fault(subject: str, error: Exception) -> _Outcome:
    """Return a refusal, or a failure, as the outcome of the subject, and name it on stderr."""
    from dicomnode.errors import InputRefused
    from pipelines.contract import Refused

    reason = explain_error(error, "run")
    print(f"dicomnode: {subject}: {reason}", file=sys.stderr)
    return _Outcome(
        subject,
        {"verdict": "refuse" if isinstance(error, Refused | InputRefused) else "failed", "reasons": [reason]},
    )


def _read_rules(pipeline: Pipeline, config: Config, model: str) -> dict[str, list[InputRule]]:
    """Return the input contract of the model by input."""
    from dicomnode.deployment import models
    from pipelines import quality

    return quality.read_input_rules(models.find_bundle(model or pipeline.bundle, config).metadata)


def _log_unclear_facts(choices: Sequence[Choice]) -> None:
    """Log once each reason for which a fact of a table is not stated about an input."""
    reasons = (why for choice in choices for each in choice.inputs.values() for why in each.unclear.values())
    for why in dict.fromkeys(reasons):
        _log.warning("not stated, because %s", why)


def _choose(
    pipeline: Pipeline,
    source: Path,
    facts: Mapping[str, Mapping[str, Any]],
    explicit: Mapping[str, Candidate],
    without: Sequence[str],
    config: Config,
    rules: Mapping[str, Sequence[InputRule]],
) -> tuple[list[Choice], list[str]]:
    """Return the inputs of each run, and the studies and subjects of which nothing is in a run."""
    from dicomnode.local_runs import candidates, choosing

    taken_paths = {path for each in explicit.values() for path in each.paths}
    usable = [each for each in candidates.find_candidates(source, facts[""]) if not taken_paths & set(each.paths)]
    routes = [route for route in config.routes if route.pipeline == pipeline.name]
    choices = choosing.choose(pipeline.inputs, usable, rules, routes, explicit, without)
    left_out = [] if pipeline.inputs[0].name in explicit else choosing.find_left_out(choices, usable)
    return [_add_facts(each, facts) for each in choices], [_name(each, source) for each in left_out]


def _add_facts(choice: Choice, facts: Mapping[str, Mapping[str, Any]]) -> Choice:
    """Return the choice with the facts that the user states about single inputs."""
    return replace(
        choice,
        inputs={
            name: _state_facts(each, facts.get(name, {})) if each.kind == "nifti" else each
            for name, each in choice.inputs.items()
        },
    )


def _state_facts(candidate: Candidate, facts: Mapping[str, Any]) -> Candidate:
    """Return the candidate with what the user states, which holds above all that files state."""
    unclear = {keyword: why for keyword, why in candidate.unclear.items() if keyword not in facts}
    return replace(candidate, attributes={**candidate.attributes, **facts}, unclear=unclear)


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


def _name_subject(choice: Choice, source: Path) -> str:
    return _name(next(iter(choice.inputs.values())), source)


def _name(candidate: Candidate, source: Path) -> str:
    """Return the name of a series, or where a file lies below the source."""
    path, root = candidate.paths[0], source.resolve()
    return str(path.relative_to(root)) if len(candidate.paths) == 1 and path.is_relative_to(root) else candidate.name
