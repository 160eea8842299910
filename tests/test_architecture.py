"""The floors hold: who may import whom, and what ``serve`` must never load."""

from __future__ import annotations

import ast
import subprocess
import sys
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
