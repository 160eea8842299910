"""The kinds of input, and the module of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy

__all__ = ["CORPUS", "TARGETS", "Target", "load", "read_corpus"]

CORPUS = Path(__file__).parent / "corpus"
TARGETS = (
    "associate",
    "p_data",
    "command_set",
    "data_set",
    "file_meta",
    "deflate",
    "dicom_json",
    "pixels",
    "multipart",
    "http",
    "mrd_file",
    "sinogram_file",
    "nifti",
    "safetensors_header",
    "bundle_zip",
    "expression",
    "node_toml",
)


@dataclass(frozen=True)
class Target:
    """One kind of input: ``run`` gives bytes to the program and may raise ``refusals`` only."""

    name: str
    run: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    examples: SearchStrategy[bytes]


def load(name: str) -> Target:
    """Import the module of a target."""
    module = importlib.import_module(f"tests.fuzz.{name}")
    return Target(name, module.target, module.REFUSALS, module.examples())


def read_corpus(name: str) -> list[Path]:
    """Return the kept inputs of a target."""
    return sorted((CORPUS / name).glob("*"))
