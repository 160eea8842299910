"""Imports of the four top folders and the floors of their packages.

``python -m tests.package_floors`` prints the table of ARCHITECTURE.md.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from graphlib import TopologicalSorter
from itertools import groupby
from pathlib import Path

__all__ = [
    "FOLDERS",
    "ROOT",
    "files",
    "floors_table",
    "imported_modules",
    "imported_names",
    "modules",
    "package_imports",
]

ROOT = Path(__file__).parents[1]
FOLDERS = ("dicomnode", "pipelines", "model_zoo", "db")


def files(folder: str) -> list[Path]:
    """Return every Python file below a top folder."""
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def modules() -> Mapping[str, Path]:
    """Return every module of the four folders by its dotted name."""
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for folder in FOLDERS for path in files(folder)}
    return {".".join(names[:-1] if names[-1] == "__init__" else names): path for path, names in parts.items()}


def imported_names(path: Path) -> set[str]:
    """Return the dotted names that a file imports, nested imports and type-checking ones included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the four folders that a file imports."""
    names = imported_names(path)
    return {name if name in modules() else name.rpartition(".")[0] for name in names} & set(modules())


def package(module: str) -> str:
    """Return the package of a module below its top folder; a module that lies there itself is one."""
    return ".".join(module.split(".")[:2])


@cache
def package_imports() -> Mapping[str, set[str]]:
    """Return the packages that each package imports."""
    imports: dict[str, set[str]] = {}
    for module, path in modules().items():
        others = {package(each) for each in imported_modules(path)} - {package(module)}
        imports.setdefault(package(module), set()).update(others)
    return imports


def floors(folder: str) -> Mapping[str, int]:
    """Return the floor of each package of a folder: one above the highest package of the folder that it imports."""
    imports = {
        name: {each for each in others if each.startswith(f"{folder}.")}
        for name, others in package_imports().items()
        if name.startswith(f"{folder}.")
    }
    floor_of: dict[str, int] = {}
    for name in TopologicalSorter(imports).static_order():
        floor_of[name] = 1 + max((floor_of[each] for each in imports[name]), default=0)
    return floor_of


def floors_table() -> str:
    """Return the table of ARCHITECTURE.md: the packages of dicomnode by floor, the highest first."""
    rows = []
    by_floor = sorted(floors("dicomnode").items(), key=lambda item: (-item[1], item[0]))
    for floor, group in groupby(by_floor, key=lambda item: item[1]):
        names = ", ".join(f"`{name.removeprefix('dicomnode.')}`" for name, _ in group)
        rows.append(f"| {floor} | {names} |")
    return "\n".join(["| floor | packages and modules |", "| --- | --- |", *rows])


if __name__ == "__main__":
    print(floors_table())
