"""``dicomnode evaluate NAME[@VERSION]``: the tables of a bundle's model card, computed again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context
from dicomnode.errors import ConfigError, NodeError, NotAllowed, NotFound

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts
    from model_zoo.evaluation import Evaluation

__all__ = ["evaluate"]


def evaluate(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="An installed bundle, or a bundle's folder.")],
    data: Annotated[Path | None, typer.Option(help="Data kit's folder; default: DICOMNODE_DATA.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for card, numbers and pictures.")] = None,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1 …")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, few cases: to see that it runs.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put card, pictures and numbers into the bundle.")] = False,
) -> None:
    """Evaluate a bundle on held-out subjects and print its model card's tables."""
    if quick and write:
        raise NotAllowed("a quick evaluation does not go into a bundle: leave out --quick or --write")
    from model_zoo.evaluation import report

    facts = _find_bundle(name)
    evaluation = _evaluate_bundle(facts, data, device, quick)
    for table in evaluation.tables:
        print(f"{table.title}\n\n{report.format_table(table)}")
    if out is not None:
        report.write_report(evaluation, facts, out)
    if write:
        report.write_into_bundle(evaluation, facts)
        print(facts.path)


def _find_bundle(name: str) -> BundleFacts:
    from model_zoo import registry

    if (Path(name) / "configs" / "metadata.json").is_file():
        return registry.read_facts(Path(name))
    bundle, _, version = name.partition("@")
    return registry.find(bundle, version or None)


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
