"""Imports follow the layers: which folder and package imports which, and the packages that ``serve`` never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.package_floors import (
    FOLDERS,
    ROOT,
    files,
    floors_table,
    imported_modules,
    imported_names,
    modules,
    package_imports,
)

ALLOWED: dict[str, frozenset[str]] = {
    "dicomnode": frozenset({"dicomnode", "pipelines", "model_zoo", "db"}),
    "pipelines": frozenset({"pipelines", "model_zoo"}),
    "model_zoo": frozenset({"model_zoo"}),
    "db": frozenset({"db"}),
}
NO_DICOM = frozenset({"pydicom", "pynetdicom", "highdicom"})
SIMULATION = ("model_zoo.simulate", "model_zoo.training", "model_zoo.evaluation")
"""Packages that make data and models. Inference imports none of them."""


def _top_names(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_names(path)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_itself_and_those_below(folder: str) -> None:
    assert files(folder), f"{folder}/ holds no Python file"
    violations = {
        str(f.relative_to(ROOT)): sorted((_top_names(f) & set(FOLDERS)) - ALLOWED[folder]) for f in files(folder)
    }
    assert {f: names for f, names in violations.items() if names} == {}


@pytest.mark.parametrize("folder", ["pipelines", "model_zoo", "db"])
def test_only_the_node_knows_dicom(folder: str) -> None:
    violations = {str(f.relative_to(ROOT)): sorted(_top_names(f) & NO_DICOM) for f in files(folder)}
    assert {f: names for f, names in violations.items() if names} == {}


def test_no_package_imports_one_that_imports_it() -> None:
    """The check covers all four folders and cycles of any length."""
    try:
        order = list(TopologicalSorter(package_imports()).static_order())
    except CycleError as error:
        pytest.fail("packages import each other: " + " <- ".join(error.args[1]))
    assert {"dicomnode.config", "pipelines.contract", "model_zoo.training", "db.models"} <= set(order)


def test_inference_imports_no_simulator() -> None:
    makers = (*SIMULATION, "dicomnode.cli", "dicomnode.demo")
    violations = {
        name: sorted(each for each in imported_modules(path) if each.startswith(SIMULATION))
        for name, path in modules().items()
        if not name.startswith(makers)
    }
    assert {name: imports for name, imports in violations.items() if imports} == {}


def test_the_document_states_the_floors_as_they_are() -> None:
    """``python -m tests.package_floors`` prints the table."""
    assert floors_table() in (ROOT / "ARCHITECTURE.md").read_text()


def test_the_import_check_sees_nested_imports(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text("def f():\n    if True:\n        from dicomnode.config import Config\n        import db.jobs\n")
    assert imported_names(sample) == {"dicomnode.config.Config", "db.jobs"}
    assert imported_modules(sample) == {"dicomnode.config", "db.jobs"}


@pytest.mark.parametrize("module", ["dicomnode.node", "dicomnode.ingest.scp", "dicomnode.cli"])
def test_the_receiver_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'highdicom', 'monai', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_and_files_stay_small() -> None:
    too_long: list[str] = []
    for path in modules().values():
        source = path.read_text()
        if source.count("\n") > 400:
            too_long.append(f"{path.relative_to(ROOT)}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.body[0].lineno + 1
                if size > 60:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.name}: {size} lines")
    assert too_long == []
