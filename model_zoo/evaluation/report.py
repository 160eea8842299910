"""An evaluation as a model card in Markdown, pictures beside it, and numbers in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_zoo.bundle import SIMULATION_ONLY, BundleFacts
from model_zoo.evaluation import Evaluation, Picture, Table
from model_zoo.registry import WEIGHTS

__all__ = ["format_table", "make_card", "write_into_bundle", "write_report"]

RESEARCH = "Research use only, not for diagnosis."


def write_report(evaluation: Evaluation, facts: BundleFacts, folder: Path) -> None:
    """Write ``README.md`` (the card), ``metrics.json`` and the pictures into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(make_card(evaluation, facts))
    (folder / "metrics.json").write_text(json.dumps(evaluation.metrics, indent=2) + "\n")
    for picture in evaluation.pictures:
        picture.figure.savefig(
            folder / _picture_name(picture), dpi=90, bbox_inches="tight", metadata={"Software": None}
        )


def write_into_bundle(evaluation: Evaluation, facts: BundleFacts) -> None:
    """Write the card and its pictures into the bundle's ``docs``, the numbers into its ``metadata.json``."""
    write_report(evaluation, facts, facts.path / "docs")
    (facts.path / "docs" / "metrics.json").unlink()
    path = facts.path / "configs" / "metadata.json"
    path.write_text(json.dumps({**facts.metadata, "evaluation": evaluation.metrics}, indent=2) + "\n")


def make_card(evaluation: Evaluation, facts: BundleFacts) -> str:
    """Return the model card: use, training data, quality and for whom, failures."""
    m = facts.metadata
    simulated = "simulation only" in str(m["trained_on"])
    origin = SIMULATION_ONLY if simulated else f"These weights were trained on {m['trained_on']}."
    tables = "\n".join(f"### {table.title}\n\n{format_table(table)}" for table in evaluation.tables)
    pictures = "\n".join(
        f"![{each.caption}]({_picture_name(each)})\n\n{each.caption}\n" for each in evaluation.pictures
    )
    parts = [
        f"# {facts.name} {facts.version}",
        f"{m['task']}.",
        f"**{origin} {RESEARCH}**",
        _facts_table(facts),
        "## Evaluation",
        f"On held-out subjects that no recipe reads; `dicomnode evaluate {facts.name}` makes these tables again.",
        tables,
        "## Failure cases",
        evaluation.failures,
        pictures,
        "## Limits",
        evaluation.weaker,
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def format_table(table: Table) -> str:
    """Return a table in Markdown, its note below."""
    lines = [_format_row(table.columns), _format_row(["---"] + ["---:"] * (len(table.columns) - 1))]
    lines += [_format_row([_format_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines) + "\n" + (f"\n{table.note}\n" if table.note else "")


def _facts_table(facts: BundleFacts) -> str:
    m = facts.metadata
    rows = {
        "intended use": m["intended_use"],
        "input": m["network_input"],
        "units": m.get("units", ""),
        "trained on": m["trained_on"],
        "recipe": f"`dicomnode train {m['recipe']}`, {m['steps']} steps, seed {_find_seed(m)}",
        "commit": m.get("commit", ""),
        "data licence": m.get("data_licence", ""),
        "licence": m["licence"],
        "network": _describe_network(facts),
        "weights": f"bfloat16 safetensors, SHA-256 `{facts.digest}`",
    }
    lines = [_format_row(["", ""]), _format_row(["---", "---"])]
    return "\n".join(lines + [_format_row([name, _format_value(value)]) for name, value in rows.items() if value])


def _describe_network(facts: BundleFacts) -> str:
    """Return the network's class and size, from the bundle's own files."""
    definition = json.loads((facts.path / "configs" / "inference.json").read_text())["network_def"]
    parameters = (facts.path / WEIGHTS).stat().st_size / 2  # two bytes each, and a header of no weight here
    return f"`{definition['_target_']}`, {parameters / 1e6:.1f} M parameters"


def _find_seed(m: Mapping[str, Any]) -> Any:
    return m.get("seed", m.get("configuration", {}).get("seed", "unknown"))


def _format_value(value: Any) -> str:
    """Return a table of the metadata as one cell."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name.replace('_', ' ')}: {_format_value(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_format_value(each) for each in value)
    return str(value)


def _format_cell(cell: str | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:.4g}"


def _format_row(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _picture_name(picture: Picture) -> str:
    return f"{picture.name}.png"
