"""Imports follow the layers: which folder and package imports which, and the packages that ``serve`` never loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
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
USERS = ("tests", "benchmarks", "examples")
"""Folders that use public names of the packages only."""
ALLOWED_PRIVATE: dict[str, str] = {
    "tests/enhanced_pet.py: _18Fluorine": "keyword of a code in pydicom, which begins with a digit without the line",
    "tests/mutation.py: _exit": "public function of os",
    "tests/simulation/machine.py: _exit": "public function of os",
    "tests/simulation/trial.py: _exit": "public function of os",
} | {
    f"tests/test_adapters.py: {name}": "private name of pynetdicom, whose existence the test asserts"
    for name in ("_dul_ready", "_gc", "_is_paused", "_reactor_checkpoint", "_recv_pdu", "_serve_request")
}
"""Uses of private names that are right, with the reason."""


def _top_names(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_names(path)}


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_package_imports_one_that_imports_it() -> None:
    """The check covers all four folders and cycles of any length."""
    try:
        order = list(TopologicalSorter(package_imports()).static_order())
    except CycleError as error:
        pytest.fail("packages import each other: " + " <- ".join(error.args[1]))
    assert {"dicomnode.config", "pipelines.contract", "model_zoo.training", "db.models"} <= set(order)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("module", ["dicomnode.node", "dicomnode.ingest.scp", "dicomnode.cli"])
def test_the_receiver_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'highdicom', 'monai', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_jobs_with_the_shipped_models_do_not_import_monai() -> None:
    """It takes 3 s of CPU time and 180 MB in every process of a job."""
    code = (
        "import sys, torch; from model_zoo import anatomy, registry; from model_zoo.networks import volume_unet; "
        "facts = registry.list_bundles(); [registry.load_from(each) for each in facts]; "
        "anatomy.keep_largest_component(torch.rand(2, 4, 4, 4)); "
        "volume_unet.depth_to_space(volume_unet.space_to_depth(torch.rand(1, 1, 4, 4, 4), 2), 2); "
        "print(len(facts), 'monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    count, is_imported = done.stdout.split()
    assert int(count) > 3
    assert is_imported == "False"


@pytest.mark.slow
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


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _private_uses(source: str) -> Iterator[str]:
    """Yield the private names that a source text uses: imports from the packages, attributes, and names in strings.

    An object's class is not known here, so an attribute of any object except ``self`` and ``cls`` counts.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOLDERS:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from filter(_is_private, names)
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(rf"\b(?:{'|'.join(FOLDERS)})(?:\.\w+)*\.(_(?!_)\w+)", node.value)
        elif isinstance(node, ast.Call) and re.search(r"\b[gs]etattr$|\bdelattr$", ast.unparse(node.func)):
            second = node.args[1] if len(node.args) > 1 else None
            if isinstance(second, ast.Constant) and _is_private(str(second.value)):
                yield str(second.value)


@pytest.mark.slow
def test_tests_benchmarks_and_examples_use_public_names() -> None:
    paths = {path for folder in USERS for path in (ROOT / folder).rglob("*.py")} - {Path(__file__)}
    found = {f"{path.relative_to(ROOT)}: {name}" for path in paths for name in _private_uses(path.read_text())}
    assert found - set(ALLOWED_PRIVATE) == set()
    assert set(ALLOWED_PRIVATE) - found == set(), "what is allowed and no longer occurs"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from db.jobs import _claim", "_claim"),
        ("def f():\n    from dicomnode._inner import run", "_inner"),
        ("from dicomnode.decoding import pool\nassert pool._WAIT_S", "_WAIT_S"),
        ("pool = Pool()\npool._idle.clear()", "_idle"),
        ('monkeypatch.setattr(pool, "_WAIT_S", 1)', "_WAIT_S"),
        ('monkeypatch.setattr("dicomnode.web.api._MOST_ROWS", 2)', "_MOST_ROWS"),
        ('code = "from pipelines import x; pipelines.x._run()"', "_run"),
    ],
)
def test_the_check_of_private_names_sees_each_use(source: str, name: str) -> None:
    assert list(_private_uses(source)) == [name]


def test_the_check_of_private_names_passes_own_and_public_ones() -> None:
    source = "class A:\n    def f(self):\n        return self._own, cls._own, type(self).__name__, pool.run\n_mine = 1"
    assert list(_private_uses(source)) == []
