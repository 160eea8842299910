"""``dicomnode train RECIPE``: train a model of the zoo and write it as a bundle."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context
from dicomnode.errors import ConfigError, NodeError, NotFound
from model_zoo.bundle import BundleError
from model_zoo.data_kit import data_root

if TYPE_CHECKING:
    from torch import Tensor

    from model_zoo.training.loop import Progress
    from model_zoo.training.recipe import Recipe, Sources

__all__ = ["open_sources", "override_fields", "train"]


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="mri-prior, ct-prior, anatomy, pet-synthesis, standard-dose-pet, standard-dose-pet-semi, "
            "synthetic-dir or translation."
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="Data kit's folder; default: DICOMNODE_DATA.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="CSV of your own data, instead of simulation.")] = None,
    plan: Annotated[Path | None, typer.Option(help="plan.toml of a translation: its series and scales.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: ./out/RECIPE.")] = None,
    configuration: Annotated[str, typer.Option(help="cpu, gpu, or smoke (seconds, to see that it runs).")] = "cpu",
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1 …")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    start: Annotated[
        Path | None, typer.Option("--from", help="Folder of a bundle of this recipe whose weights to go on from.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the configuration's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw batches ahead.")] = None,
    changed: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE instead of the configuration's; may be repeated.")
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "0.0.0",
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Do not train: fit the intervals of this bundle folder to validation rows, as --version."),
    ] = None,
    columns: Annotated[bool, typer.Option("--columns", help="Only print the columns of a manifest.")] = False,
    phantom: Annotated[bool, typer.Option("--phantom", hidden=True, help="Ellipsoids instead of heads.")] = False,
) -> None:
    """Train RECIPE on simulated data, with checkpoints, and write the result as a bundle.

    Under torchrun all processes train together: torchrun --nproc-per-node 8 -m dicomnode train RECIPE --device cuda
    """
    chosen = _find_recipe(recipe, plan)
    if columns:
        _print_columns(chosen)
        return
    settings = override_fields(_find_configuration(chosen, configuration, seed=seed, workers=workers), changed or ())
    folder = out or Path("out") / recipe
    try:
        _check_device(device)
        sources = open_sources(chosen, data, manifest, phantom)
        if calibrate is not None:
            _calibrate(chosen, calibrate, sources, version)
            return
        weights = None
        if start is not None:
            origin, weights = _read_first_weights(chosen, start)
            settings = replace(settings, start=origin)
        _run(chosen, settings, folder, sources, device, resume, version, weights)
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        if isinstance(error, NodeError):
            raise
        raise NodeError(f"train {recipe}: {error}") from error


def _find_recipe(name: str, plan: Path | None) -> Recipe[Any]:
    from model_zoo import training

    if name not in training.RECIPES:
        raise typer.BadParameter(f"no recipe {name!r}; there is: {', '.join(training.RECIPES)}")
    recipe = training.load(name)
    if plan is None:
        return recipe
    if recipe.with_plan is None:
        raise typer.BadParameter(f"--plan: the recipe {name} takes no plan; translation does")
    try:
        return recipe.with_plan(plan)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plan {plan}: {error}") from error


def _print_columns(recipe: Recipe[Any]) -> None:
    own = (
        ("subject", "word", "yes", "the same for every row of one person"),
        ("split", "word", "no", "train, validation or test; by a hash of the subject where blank"),
        ("resample", "word", "no", "yes: the row's images are registered and go to the first one's grid"),
    )
    rows = [*own, *((c.name, c.kind, "yes" if c.required else "no", c.help) for c in recipe.columns)]
    names = ["column", "kind", "required", "what"]
    context.print_rows((dict(zip(names, row, strict=True)) for row in rows), names, as_json=False)


def _find_configuration(recipe: Recipe[Any], name: str, **changes: Any) -> Any:
    if name not in recipe.configurations:
        raise typer.BadParameter(f"no configuration {name!r}; there is: {', '.join(recipe.configurations)}")
    return replace(recipe.configurations[name], **{k: v for k, v in changes.items() if v is not None})


def override_fields(c: Any, fields: Sequence[str]) -> Any:
    """Return the configuration with each FIELD=VALUE in place of its own value of the same type."""
    values = json.loads(c.to_json())
    for each in fields:
        name, _, text = each.partition("=")
        if name not in values:
            raise typer.BadParameter(f"--set {each}: no field {name!r}; there is: {', '.join(values)}")
        own, value = values[name], _parse_value(text)
        kinds = (int, float) if isinstance(own, float) else (type(own),)
        if type(value) not in kinds:
            raise typer.BadParameter(f"--set {each}: {name} is {json.dumps(own)}, a {type(own).__name__}")
        values[name] = type(own)(value)
    return type(c).from_json(json.dumps(values))


def _parse_value(text: str) -> Any:
    """Return the value that is written as JSON, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"--device {device}: torch knows no such device") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise NotFound(f"--device {device}: torch finds no CUDA device on this machine")


def open_sources(recipe: Recipe[Any], data: Path | None, table: Path | None, phantom: bool) -> Sources:
    from model_zoo.training import manifest
    from model_zoo.training.images import SeriesReader
    from model_zoo.training.recipe import make_simulated_sources

    if table is None:
        return make_simulated_sources(None if phantom else data or data_root(), phantom=phantom)
    from dicomnode.reading import folders

    series = SeriesReader(folders.read_grid, folders.read_values)
    try:
        return manifest.make_sources(manifest.read(table, recipe.columns, series, check_row=recipe.check_row))
    except FileNotFoundError as error:
        raise ConfigError(f"--manifest {table}: there is no such file") from error
    except manifest.ManifestError as error:
        for problem in error.problems:
            print(f"{table}: {problem}", file=sys.stderr)
        raise ConfigError(f"{table}: {len(error.problems)} thing(s) to put right, nothing was trained") from error


def _calibrate(recipe: Recipe[Any], folder: Path, sources: Sources, version: str) -> None:
    from model_zoo.training import bundle

    try:
        today = datetime.now(UTC).date()
        bundle.calibrate(recipe, folder, sources.validation, version=version, made_on=today)
    except (BundleError, ValueError) as error:
        raise ConfigError(f"--calibrate {folder}: {error}") from error
    print(folder)


def _read_first_weights(recipe: Recipe[Any], folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the weights of the bundle in ``folder``, after a sentence on their origin for a bundle made from them."""
    from model_zoo import registry

    try:
        facts = registry.read_facts(folder)
        if facts.metadata.get("recipe") != recipe.name:
            raise ConfigError(f"--from {folder}: made by the recipe {facts.metadata.get('recipe')}, not {recipe.name}")
        weights = registry.load_from(facts).network.state_dict()
    except BundleError as error:
        raise ConfigError(f"--from {folder}: {error}") from error
    trained_on = facts.metadata.get("trained_on", "unknown data")
    return f"{facts.name} {facts.version} ({facts.digest}), trained on {trained_on}", weights


def _run(
    recipe: Recipe[Any],
    c: Any,
    folder: Path,
    sources: Sources,
    device: str,
    resume: bool,
    version: str,
    weights: dict[str, Tensor] | None,
) -> None:
    from model_zoo.training import bundle, loop

    first = int(os.environ.get("RANK", "0")) == 0  # set by torchrun: only the first process prints and writes
    with _show_progress(first) as (report, progress):
        run = loop.train(
            recipe,
            c,
            folder,
            sources=sources,
            device=device,
            resume=resume,
            weights=weights,
            report=report,
            progress=progress,
        )
    if first:
        bundle.write(
            recipe,
            run,
            folder / "bundle",
            version=version,
            made_on=datetime.now(UTC).date(),
            validation=sources.validation,
        )
        print(folder / "bundle")


@contextmanager
def _show_progress(enabled: bool) -> Iterator[tuple[Callable[[dict[str, float]], None], Callable[[Progress], None]]]:
    """Print a line per checkpoint on stderr, and show a bar on a terminal."""
    if not enabled:
        yield (lambda line: None), (lambda at: None)
        return
    with context.show_progress_bar("starting", None) as bar:

        def progress(at: Progress) -> None:
            left = _format_duration(at.left_s)
            bar.update(at.step, f"step {at.step}/{at.steps}, loss {at.loss:.4g}, {left} left", at.steps)

        yield (lambda line: bar.print_line(_format_line(line))), progress


def _format_line(line: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" if name != "step" else f"step {value:.0f}" for name, value in line.items())


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
