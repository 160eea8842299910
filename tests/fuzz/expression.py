"""Expressions of MONAI configurations: what passes the rules is evaluated here, and reaches nothing but numbers."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from model_zoo.expressions import find_references, find_violation
from tests.fuzz.changes import change

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS: tuple[type[Exception], ...] = ()
_EVENTS = ("open", "os.", "subprocess.", "socket.", "import", "ctypes.", "shutil.", "pickle.")
_watched: list[str] = []
_is_watching = False


def _watch(event: str, _: Any) -> None:
    if _is_watching and event.startswith(_EVENTS):
        _watched.append(event)


sys.addaudithook(_watch)


def target(data: bytes) -> None:
    """``data``: the expression with its sign, in UTF-8."""
    text = data.decode("utf-8", "replace")
    find_references(text)
    if not text.startswith("$") or find_violation(text):
        return
    before = len(os.listdir("."))
    _evaluate(text[1:])
    assert not _watched, _watched
    assert len(os.listdir(".")) == before


def _evaluate(text: str) -> None:
    """Evaluate as MONAI does, where no reference has to be looked up; only lack of memory counts as a fault."""
    global _is_watching
    try:
        code = compile(text.strip(), "expression", "eval")
    except SyntaxError:
        return  # a reference in it
    _watched.clear()
    _is_watching = True
    try:
        eval(code, {"torch": torch, "np": np, "numpy": np})
    except MemoryError:
        raise
    except Exception:  # a mistake of the bundle's author, which the loader reports
        return
    finally:
        _is_watching = False


def examples() -> SearchStrategy[bytes]:
    """Expressions by the grammar of the rules, with what is not allowed among it, changed at their bytes."""
    return _terms().map(lambda text: b"$" + text.encode()).flatmap(change)


_ATOMS = (
    "0", "1", "2", "-1", "0.5", "1e9", "100000", "99999999999", "'a'", "b'a'", "None", "[]", "[0]", "(0, 1)", "{}",
    "torch", "np", "np.ones(3)", "np.zeros((2, 3))", "x", "@a", "@a::b", "__import__", "().__class__", "torch.inf",
)  # fmt: skip
_CALLS = (
    "abs", "len", "list", "max", "min", "range", "sum", "tuple", "zip", "enumerate", "float", "int", "dict", "sorted",
    "np.array", "np.arange", "np.linspace", "np.ones", "np.zeros", "np.stack", "np.where", "torch.cat", "torch.stack",
    "torch.where", "torch.device", "torch.full_like", "eval", "open", "getattr", "torch.load", "np.load",
)  # fmt: skip
_METHODS = (
    "sum", "expand", "repeat", "reshape", "view", "astype", "get", "items", "shape", "to", "size", "max", "format",
    "__class__", "tofile", "T",
)  # fmt: skip
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "<<", "and", "or", "in", "is", "<", "==", "&", "|", "@", "if 1 else")


@st.composite
def _terms(draw: DrawFn, depth: int = 0) -> str:
    kind = draw(st.integers(0, 7)) if depth < 4 else 0
    inner = _terms(depth + 1)
    if kind <= 1:
        return draw(st.sampled_from(_ATOMS))
    if kind == 2:
        return f"({draw(inner)} {draw(st.sampled_from(_OPERATORS))} {draw(inner)})"
    if kind == 3:
        return f"{draw(st.sampled_from(_CALLS))}({', '.join(draw(st.lists(inner, max_size=3)))})"
    if kind == 4:
        return f"{draw(inner)}.{draw(st.sampled_from(_METHODS))}({', '.join(draw(st.lists(inner, max_size=2)))})"
    if kind == 5:
        return f"[{draw(inner)} for x in {draw(inner)}]"
    if kind == 6:
        return f"{draw(inner)}[{draw(inner)}]"
    return f"(lambda x: {draw(inner)})"
