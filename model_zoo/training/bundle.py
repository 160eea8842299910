"""Write a trained network as a MONAI bundle: bfloat16 safetensors, metadata with digest and origin, card, licence."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model_zoo import registry
from model_zoo.bundle import SIMULATION_ONLY, weights_digest
from model_zoo.registry import BUNDLES, WEIGHTS
from model_zoo.training import checkpoint
from model_zoo.training.checkpoint import Checkpoint
from model_zoo.training.recipe import PHANTOM, Recipe, Source

__all__ = ["LARGEST_BYTES", "calibrate", "describe_origin", "find_source_commit", "write"]

LARGEST_BYTES = 16_000_000
"""Largest size of a bundle's weights, which are kept with the source."""

CARD = """# {name} {version}

{task}. {steps} steps, {made_on}.

**{origin} Research use only, not for diagnosis.**

Recipe, configuration, data, metrics and digest: `configs/metadata.json`. `dicomnode evaluate` writes the full card.
"""


def write(
    recipe: Recipe[Any],
    run: Path,
    bundle: Path,
    *,
    version: str,
    made_on: date,
    commit: str | None = None,
    validation: Source | None = None,
) -> None:
    """Turn the averaged weights of the checkpoint ``run`` into the bundle folder ``bundle``, replacing what is there.

    ``commit``: of the source that trained them, by default ``find_source_commit()``. ``validation``: source by which a
    recipe calibrates its settings; None leaves them out. Raises ValueError where the checkpoint is of another recipe or
    the weights take more than ``LARGEST_BYTES``.
    """
    state = checkpoint.read(run)
    if state.recipe != recipe.name:
        raise ValueError(f"{run} is a run of the recipe {state.recipe}, not of {recipe.name}")
    for folder in ("configs", "models", "docs"):
        (bundle / folder).mkdir(parents=True, exist_ok=True)
    _write_weights(state.merge_average(), bundle / WEIGHTS)
    configuration = type(next(iter(recipe.configurations.values()))).from_json(state.configuration)
    facts = _make_metadata(recipe, state, version, made_on, commit or find_source_commit())
    facts["weights_sha256"] = weights_digest(bundle / WEIGHTS)
    _write_json(bundle / "configs" / "inference.json", recipe.describe_inference(configuration))
    _write_json(bundle / "configs" / "metadata.json", facts)
    if validation is not None:
        _add_settings(bundle, _fit_settings(recipe, bundle, validation))
    origin = SIMULATION_ONLY if _is_simulated(facts["trained_on"]) else f"Trained on {facts['trained_on']}."
    (bundle / "docs" / "README.md").write_text(CARD.format_map(facts | {"origin": origin}))
    shutil.copyfile(_find_licence(), bundle / "LICENSE")


def calibrate(recipe: Recipe[Any], bundle: Path, validation: Source, *, version: str, made_on: date) -> None:
    """Replace the calibrated settings of the bundle folder by those from ``validation``, which makes it ``version``.

    Settings for which there are too few subjects stay. Raises ValueError, and changes nothing, where the recipe has
    none, all have too few subjects, or the version is the bundle's own: results name their version.
    """
    if recipe.calibrate is None:
        raise ValueError(f"the recipe {recipe.name} has nothing to calibrate")
    if version == registry.read_facts(bundle).version:
        raise ValueError(f"{version} is the version of the bundle as it is: another --version is needed")
    found = _fit_settings(recipe, bundle, validation)
    if not any(found.values()):
        raise ValueError("too few validation subjects to calibrate anything: 19 of a tracer are needed")
    _add_settings(bundle, found)
    metadata = bundle / "configs" / "metadata.json"
    changed = {"version": version, "calibrated_on": f"{validation.data}, {made_on.isoformat()}"}
    _write_json(metadata, json.loads(metadata.read_text()) | changed)


def _fit_settings(recipe: Recipe[Any], bundle: Path, validation: Source) -> dict[str, Any]:
    if recipe.calibrate is None:
        return {}
    model = registry.load_from(registry.read_facts(bundle))
    own = type(next(iter(recipe.configurations.values())))
    with torch.no_grad():
        return recipe.calibrate(model.network, own.from_json(json.dumps(model.metadata["configuration"])), validation)


def _add_settings(bundle: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the calibrated settings, each a mapping whose other keys stay."""
    path = bundle / "configs" / "inference.json"
    content = json.loads(path.read_text())
    _write_json(path, content | {name: content.get(name, {}) | dict(found) for name, found in settings.items()})


def find_source_commit() -> str:
    """Return the source tree's commit, marked where files differ, or without a tree the installed package's version."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return f"dicomnode {metadata.version('dicomnode')}"
    try:
        commit = _run_git(root, "rev-parse", "HEAD")
        changed = _run_git(root, "status", "--porcelain", "--untracked-files=no", "--", "model_zoo")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with changes" if changed else commit


def _run_git(root: Path, *arguments: str) -> str:
    process = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return process.stdout.strip()


def _write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    halved = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in weights.items()}
    size = sum(v.numel() * v.element_size() for v in halved.values())
    if size > LARGEST_BYTES:
        raise ValueError(f"the weights take {size / 1e6:.1f} MB; a bundle's may take {LARGEST_BYTES / 1e6:.0f} MB")
    save_file({k: v.contiguous() for k, v in halved.items()}, path)
    path.chmod(0o644)  # safetensors makes it for its owner only


def _make_metadata(recipe: Recipe[Any], state: Checkpoint, version: str, made_on: date, commit: str) -> dict[str, Any]:
    configuration = json.loads(state.configuration)
    return {
        "name": recipe.bundle,
        "version": version,
        **recipe.facts,
        **describe_origin(state.data, recipe.facts["trained_on"], configuration.get("start", "")),
        "recipe": recipe.name,
        "configuration": configuration,
        "seed": configuration["seed"],
        "commit": commit,
        "steps": state.step,
        "processes": state.world,
        "made_on": made_on.isoformat(),
        "metrics": {name: round(value, 4) for name, value in state.metrics.items()},
        "licence": "Apache-2.0",
    }


def describe_origin(data: str, simulation: str, start: str) -> dict[str, str]:
    """Return the metadata on the training data; they replace the recipe's ``simulation`` where other data were used.

    ``data``: ``Source.data`` of the run; ``start``: the configuration's, on the first weights, whose training data
    count as well.
    """
    phantom = "simulation only (a phantom of ellipsoids: to see that the recipe runs)"
    trained_on = {"simulation": simulation, PHANTOM: phantom}.get(data, f"a user's data set ({data})")
    earlier = start.partition(", trained on ")[2]
    if start and not (_is_simulated(trained_on) and _is_simulated(earlier)):
        trained_on = f"{start}; then {trained_on}"
    if _is_simulated(trained_on):
        return {"trained_on": trained_on}
    return {
        "trained_on": trained_on,
        "data_licence": "that of the user's data set; weights may carry traces of it",
    }


def _is_simulated(trained_on: str) -> bool:
    return trained_on.startswith("simulation only")


def _find_licence() -> Path:
    """Return the source tree's licence, or, where only the package is installed, that of a shipped bundle."""
    own = Path(__file__).parents[2] / "LICENSE"
    return own if own.is_file() else next(BUNDLES.glob("*/LICENSE"))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
