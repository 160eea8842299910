"""``dicomnode evaluate NAME[@VERSION]``: the tables of a bundle's model card, computed again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context
from dicomnode.errors import ConfigError, NodeError, NotAllowed, NotFound

if TYPE_CHECKING:
    from dicomnode.config import Config
    from model_zoo.bundle import BundleFacts
    from model_zoo.evaluation import Evaluation

__all__ = ["evaluate"]

_METADATA = "configs/metadata.json"


def evaluate(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="An installed bundle, or a bundle's folder.")],
    data: Annotated[Path | None, typer.Option(help="Data kit's folder; default: DICOMNODE_DATA.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for card, numbers and pictures.")] = None,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1 …")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, few cases: to see that it runs.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put card, pictures and numbers into the bundle.")] = False,
    manifest: Annotated[Path | None, typer.Option(help="CSV of your own data: its rows of the split test.")] = None,
    against: Annotated[
        str, typer.Option(metavar="NAME[@VERSION]", help="With --manifest: another model of the same recipe beside it.")
    ] = "",
    configuration: Annotated[str, typer.Option(help="With --manifest: cpu, gpu or smoke, for the draws.")] = "cpu",
    as_json: context.AsJson = False,
) -> None:
    """Evaluate a bundle on held-out subjects and print its card's tables, or on test rows of your own table."""
    config = context.config_if_any(ctx)
    if manifest is not None:
        if quick or write:
            raise NotAllowed("--quick and --write are for the tables of the model card, not for --manifest")
        from dicomnode.cli.evaluate_manifest import evaluate_manifest

        other = _find_bundle(against, config) if against else None
        evaluate_manifest(_find_bundle(name, config), other, manifest, configuration, device, out, as_json)
        return
    if against or as_json:
        raise NotAllowed("--against and --json need --manifest: the tables of a model card have their own baselines")
    if quick and write:
        raise NotAllowed("a quick evaluation does not go into a bundle: leave out --quick or --write")
    from model_zoo.evaluation import report

    facts = _find_bundle(name, config)
    evaluation = _evaluate_bundle(facts, data, device, quick)
    for table in evaluation.tables:
        print(f"{table.title}\n\n{report.format_table(table)}")
    if out is not None:
        report.write_report(evaluation, facts, out)
    if write:
        report.write_into_bundle(evaluation, facts)
        print(facts.path)


def _find_bundle(name: str, config: Config) -> BundleFacts:
    from dicomnode.deployment import models
    from model_zoo import registry
    from model_zoo.bundle import BundleError

    if (Path(name) / _METADATA).is_file():
        return registry.read_facts(Path(name))
    try:
        return models.find_bundle(name, config)
    except BundleError:
        if not Path(name).is_dir():
            raise
    inside = [str(path.parents[1]) for path in sorted(Path(name).glob(f"*/{_METADATA}"))]
    there_is = f"; there is {', '.join(inside)}" if inside else ""
    raise NotFound(f"the folder {name} is no bundle, it has no {_METADATA}{there_is}")


def _evaluate_bundle(facts: BundleFacts, data: Path | None, device: str, quick: bool) -> Evaluation:
    import matplotlib

    from model_zoo import evaluation, registry

    matplotlib.use("Agg")  # pictures are written, not shown
    try:
        evaluate_model = evaluation.find_evaluator(facts.name)
    except LookupError as error:
        raise NotFound(str(error)) from error
    model = registry.load_from(facts, device=device)
    try:
        with context.show_progress_bar("starting") as bar:
            return evaluate_model(model, root=data, quick=quick, progress=bar.update)
    except FileNotFoundError as error:
        raise ConfigError(f"evaluate {facts.name}: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise NodeError(f"evaluate {facts.name}: {error}") from error
