"""The floors hold: who may import whom, and what ``serve`` must never load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS: dict[str, frozenset[str]] = {
    "dicomnode": frozenset({"dicomnode", "pipelines", "model_zoo", "db"}),
    "pipelines": frozenset({"pipelines", "model_zoo"}),
    "model_zoo": frozenset({"model_zoo"}),
    "db": frozenset({"db"}),
}
OWN = frozenset(FLOORS)
NO_DICOM = frozenset({"pydicom", "pynetdicom", "highdicom"})


def _imports(path: Path) -> set[str]:
    """Top-level names of every module that a file imports, nested imports and type-checking ones included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def _files(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", sorted(FLOORS))
def test_a_floor_imports_only_itself_and_what_stands_below(floor: str) -> None:
    files = _files(floor)
    assert files, f"{floor}/ holds no Python file"
    wrong = {str(f.relative_to(ROOT)): sorted((_imports(f) & OWN) - FLOORS[floor]) for f in files}
    assert {f: names for f, names in wrong.items() if names} == {}


@pytest.mark.parametrize("floor", ["pipelines", "model_zoo", "db"])
def test_only_the_node_knows_dicom(floor: str) -> None:
    wrong = {str(f.relative_to(ROOT)): sorted(_imports(f) & NO_DICOM) for f in _files(floor)}
    assert {f: names for f, names in wrong.items() if names} == {}


def _modules() -> dict[str, Path]:
    """Return every module of the four folders by its dotted name."""
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for floor in FLOORS for path in _files(floor)}
    return {".".join(names[:-1] if names[-1] == "__init__" else names): path for path, names in parts.items()}


def _package(module: str) -> str:
    """Return the package of a module below its top folder; a module that lies there itself is one."""
    return ".".join(module.split(".")[:2])


def _imported_modules(path: Path, modules: Mapping[str, Path]) -> set[str]:
    """Return the modules of ours that a file imports, nested imports and type-checking ones included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in modules else node.module for full in names.values()}
    return found & set(modules)


def _package_imports() -> dict[str, set[str]]:
    modules = _modules()
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        imported = {_package(each) for each in _imported_modules(path, modules)} - {_package(module)}
        found.setdefault(_package(module), set()).update(imported)
    return found


def test_no_package_imports_one_that_imports_it() -> None:
    """In all four folders, through any number of others."""
    try:
        order = list(TopologicalSorter(_package_imports()).static_order())
    except CycleError as error:
        pytest.fail("packages import each other: " + " <- ".join(error.args[1]))
    assert {"dicomnode.config", "dicomnode.ingest", "pipelines.contract", "model_zoo.training", "db.models"} <= set(
        order
    )


def test_inference_imports_no_simulator() -> None:
    modules = _modules()
    makers = ("model_zoo.simulate", "model_zoo.training", "model_zoo.evaluation", "dicomnode.cli", "dicomnode.demo")
    inference = {name: path for name, path in modules.items() if not name.startswith(makers)}
    wrong = {
        name: sorted(each for each in _imported_modules(path, modules) if each.startswith(makers[:3]))
        for name, path in inference.items()
    }
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_import_check_sees_nested_imports(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text("def f():\n    if True:\n        from dicomnode.config import Config\n        import db.jobs\n")
    assert _imports(sample) == {"dicomnode", "db"}


@pytest.mark.parametrize("module", ["dicomnode.node", "dicomnode.ingest.scp", "dicomnode.cli"])
def test_the_receiver_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'highdicom', 'monai', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_and_files_stay_small() -> None:
    long: list[str] = []
    for floor in FLOORS:
        for path in _files(floor):
            source = path.read_text()
            if source.count("\n") > 400:
                long.append(f"{path.relative_to(ROOT)}: {source.count(chr(10))} lines")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    size = (node.end_lineno or 0) - node.body[0].lineno + 1
                    if size > 60:
                        long.append(f"{path.relative_to(ROOT)}:{node.name}: {size} lines")
    assert long == []
