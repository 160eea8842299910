"""Change decisive modules one expression at a time and check that their tests notice: ``make mutate``.

mutmut leaves tables at module level alone, and states are such tables; cosmic-ray starts an interpreter for each
change. Here each changed module runs in a fork of a process that has loaded the libraries already.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300
LIBRARIES = ("highdicom", "numpy", "pydicom", "pynetdicom", "pytest", "scipy.ndimage", "sqlalchemy", "torch")
TARGETS: dict[str, tuple[str, ...]] = {
    "db.states": ("test_state_tables.py",),
    "dicomnode.results.marking": ("test_marking_gate.py", "test_results_marking.py"),
    "pipelines.quality": ("test_quality.py",),
}
"""Tests that must notice each change of a module."""
SURVIVORS_ALLOWED = 0.05
"""Share of changes that may stay unnoticed: some change nothing that can be seen."""

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_SWAPPED_NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}


@dataclass(frozen=True)
class Mutation:
    """One change of a module."""

    line: int
    text: str
    code: CodeType


def find_mutations(path: Path) -> Iterator[Mutation]:
    """Yield every change of the file, in the order of its syntax tree."""
    tree = ast.parse(path.read_text())
    ignored = _find_ignored(tree)
    for index, node in enumerate(ast.walk(tree)):
        for number, (text, _) in enumerate(_find_changes(node) if node not in ignored else ()):
            changed = copy.deepcopy(tree)
            target = next(each for at, each in enumerate(ast.walk(changed)) if at == index)
            list(_find_changes(target))[number][1]()
            code = compile(ast.fix_missing_locations(changed), str(path), "exec")
            yield Mutation(getattr(node, "lineno", 0), text, code)


def _find_ignored(tree: ast.AST) -> set[ast.AST]:
    """Return the nodes of docstrings, messages, annotations and ``__all__``, which tests need not check."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr):
            found |= set(ast.walk(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(node.value)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            found |= set(ast.walk(node))
        elif isinstance(node, ast.AnnAssign | ast.FunctionDef):
            annotations = [node.annotation] if isinstance(node, ast.AnnAssign) else [node.returns, node.args]
            found |= {each for part in annotations if part is not None for each in ast.walk(part)}
    return found


def _find_changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each possible change of a node with the function that makes it."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        other = _COMPARISONS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {other.__name__}", lambda: node.ops.__setitem__(0, other())
    elif isinstance(node, ast.BoolOp):
        swapped = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{ast.unparse(node)}: and <-> or", lambda: setattr(node, "op", swapped)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"{ast.unparse(node)}: without not", lambda: setattr(node, "op", ast.UAdd())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        value = node.value
        changed = not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1
        yield f"{value!r} -> {changed!r}", lambda: setattr(node, "value", changed)
    elif isinstance(node, ast.Set) and len(node.elts) > 1:
        for at, each in enumerate(node.elts):
            yield f"without {ast.unparse(each)}", lambda at=at: node.elts.pop(at)  # type: ignore[misc]
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _SWAPPED_NAMES:
        name = _SWAPPED_NAMES[node.id]
        yield f"{node.id} -> {name}", lambda: setattr(node, "id", name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import one module from changed code."""

    def __init__(self, module: str, mutation: Mutation) -> None:
        self.module, self.mutation = module, mutation

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self.module else None

    def exec_module(self, module: object) -> None:
        exec(self.mutation.code, vars(module))


def is_noticed(module: str, mutation: Mutation, tests: Sequence[str]) -> bool:
    """Return whether a test fails with the change; one that takes too long counts."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT_S)
        sys.meta_path.insert(0, _Finder(module, mutation))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        import pytest

        paths = [str(ROOT / "tests" / name) for name in tests]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:xdist", *paths])))
    return os.waitpid(child, 0)[1] != 0


def main() -> int:
    """Print the changes that no test notices; return 1 with too many of them, else 0."""
    for name in LIBRARIES:
        importlib.import_module(name)
    status = 0
    for module, tests in TARGETS.items():
        changes = list(find_mutations(ROOT.joinpath(*module.split(".")).with_suffix(".py")))
        unnoticed = [each for each in changes if not is_noticed(module, each, tests)]
        print(f"{module}: {len(changes)} changes, {len(unnoticed)} unnoticed", flush=True)
        for each in unnoticed:
            print(f"  line {each.line}: {each.text}", flush=True)
        status |= len(unnoticed) > SURVIVORS_ALLOWED * len(changes)
    return status


if __name__ == "__main__":
    sys.exit(main())
