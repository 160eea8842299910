"""Evaluation of bundles on held-out subjects: one module per bundle, whose ``evaluate`` makes the card's tables.

``evaluate(model, *, root, quick, progress) -> Evaluation``: ``root`` is the data kit's folder (None: its usual place),
``quick`` takes seconds and only shows that it runs, ``progress`` gets a fraction and a word. It reads the subjects of
``anatomy.TEST`` and no other, and draws all randomness from fixed seeds, so that it reproduces its own tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["Evaluate", "Evaluation", "Picture", "Progress", "Table", "find_evaluator"]

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Table:
    """A table of the model card: ``columns`` head the cells of every row; the first one names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r}: every row needs {len(self.columns)} cells")


@dataclass(frozen=True)
class Picture:
    """A matplotlib ``figure`` and its caption; ``name`` becomes the file's ("worst-case")."""

    name: str
    caption: str
    figure: Any


@dataclass(frozen=True)
class Evaluation:
    """Content of a model card beyond its metadata.

    ``tables``: against named baselines, then by subgroup. ``metrics``: numbers that go into ``metadata.json``.
    ``failures``: cases in which it fails, in Markdown; ``weaker``: its limits, in Markdown.
    """

    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    metrics: dict[str, float]
    failures: str
    weaker: str


class Evaluate(Protocol):
    """Signature of ``evaluate`` in a module of this package."""

    def __call__(self, model: Model, *, root: Path | None, quick: bool = False, progress: Progress) -> Evaluation: ...


def find_evaluator(bundle: str) -> Evaluate:
    """Return the evaluation of a bundle by the bundle's name. Raises LookupError for bundles without one."""
    module = f"{__name__}.{bundle}"
    known = bundle.isidentifier() and find_spec(module) is not None
    found: Evaluate | None = getattr(import_module(module), "evaluate", None) if known else None
    if found is None:
        raise LookupError(f"there is no evaluation of {bundle}")
    return found
