"""The node's modules as the simulator runs them: with its threads, and with a planted fault if there is one.

``install`` must be called before the modules are imported.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["install", "plant"]

_SCHEDULED = frozenset({
    "db.clock_jumps",
    "dicomnode.commitment.requesting",
    "dicomnode.execution.job_run",
    "dicomnode.execution.lease",
    "dicomnode.execution.worker",
    "dicomnode.ingest.group_commit",
    "dicomnode.ingest.ingest",
    "dicomnode.storage.high_water",
})  # fmt: skip
"""Modules whose threads, locks and events are those of the simulator."""
_SUBSTITUTES = (
    (re.compile(r"^import threading$", re.MULTILINE), "from tests.simulation import scheduling as threading"),
    (re.compile(r"^import time$", re.MULTILINE), "from tests.simulation import machine as time"),
)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        text = self.get_data(self.path).decode()
        for pattern, replacement in _SUBSTITUTES:
            text = pattern.sub(replacement, text)
        return compile(text, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _SCHEDULED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _CachedProperty(functools.cached_property[Any]):
    """functools.cached_property as of Python 3.12: without a lock, in which two tasks would wait for each other."""

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        assert self.attrname is not None
        values = instance.__dict__
        if self.attrname not in values:
            values[self.attrname] = self.func(instance)
        return values[self.attrname]


def install() -> None:
    """Let the modules of ``_SCHEDULED`` be imported with the simulator's threads."""
    functools.cached_property = _CachedProperty  # type: ignore[misc]
    early = _SCHEDULED & sys.modules.keys()
    assert not early, f"imported before the simulator: {sorted(early)}"
    sys.meta_path.insert(0, _Finder())


def plant(module: str, old: str, new: str) -> None:
    """Replace a text of a module that is imported already, in this process: its functions get the new code."""
    target = sys.modules[module]
    assert target.__file__ is not None
    with open(target.__file__, encoding="utf-8") as file:
        text = file.read()
    assert text.count(old) == 1, f"{module} has {text.count(old)} times {old!r}"
    scratch: dict[str, Any] = {"__name__": module, "__file__": target.__file__}
    exec(compile(_substitute(module, text.replace(old, new)), target.__file__, "exec", dont_inherit=True), scratch)
    changed = dict(_functions(scratch, module))
    for name, function in _functions(vars(target), module):
        if name in changed:
            function.__code__ = changed[name].__code__
            function.__defaults__ = changed[name].__defaults__
    for name, value in scratch.items():
        if isinstance(value, int | float | str | tuple | frozenset) and not name.startswith("__"):
            setattr(target, name, value)


def _substitute(module: str, text: str) -> str:
    for pattern, replacement in _SUBSTITUTES if module in _SCHEDULED else ():
        text = pattern.sub(replacement, text)
    return text


def _functions(names: dict[str, Any], module: str, prefix: str = "") -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions of a module and of its classes with their qualified names."""
    for name, value in list(names.items()):
        value = value.fget if isinstance(value, property) else value
        value = getattr(value, "__wrapped__", getattr(value, "__func__", value))
        if getattr(value, "__module__", "") != module:
            continue
        if isinstance(value, FunctionType):
            yield prefix + name, value
        elif isinstance(value, type):
            yield from _functions(dict(vars(value)), module, f"{prefix}{name}.")
