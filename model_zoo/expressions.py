"""Rules for the expressions of a MONAI configuration that are evaluated: those that can reach nothing but numbers.

MONAI evaluates ``$...`` as Python. Here an expression is read as a syntax tree first, and passes when every node is
known: constants, arithmetic without powers, comparisons, choices, lists, indices, lambdas and comprehensions of one
variable each; names of ``torch`` and ``numpy`` that are listed; methods of tensors and lists that are listed; a few
builtins. No import, no name with two underscores, no file, no other call. Nothing here needs MONAI or torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from math import prod

__all__ = ["REFERENCE", "find_references", "find_violation"]

REFERENCE = re.compile(r"@(?:\w*)(?:::\w*)*")
"""MONAI's pattern of a reference to another part of the configuration."""
_RELATIVE = re.compile(r"[@%]::")
_STAND_IN = "reference_"

_NODES: tuple[type[ast.AST], ...] = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.Attribute, ast.Call, ast.keyword, ast.Lambda,
    ast.arguments, ast.arg, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Subscript, ast.Slice, ast.Starred, ast.IfExp,
    ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt,
    ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.ListComp, ast.GeneratorExp, ast.comprehension, ast.Invert,
)  # fmt: skip
_LONGEST = 4000
_LARGEST = 100_000
"""Largest integer in an expression that makes lists or texts; numbers of voxels and grey levels are below it."""
_MOST_VALUES = 10_000_000
_MAKE_ARRAYS = frozenset({"arange", "expand", "linspace", "ones", "repeat", "zeros"})
_BUILTINS = frozenset({
    "abs", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed", "round",
    "sorted", "sum", "tuple", "zip",
})  # fmt: skip
_COMMON_NAMES = frozenset({
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "where", "clip", "abs", "exp",
    "log", "sqrt", "sum", "mean", "max", "min", "argmax", "argmin", "round", "floor", "ceil", "isfinite",
    "zeros_like", "ones_like", "stack", "concatenate", "prod", "any", "all", "maximum", "minimum", "inf", "nan",
    "pi",
})  # fmt: skip
_TORCH_NAMES = frozenset({
    "bfloat16", "float", "half", "long", "bool", "device", "cuda.is_available", "cat", "sigmoid", "softmax", "clamp",
    "amax", "amin", "squeeze", "unsqueeze", "flip", "permute", "full_like", "logical_and", "logical_or",
    "logical_not",
})  # fmt: skip
_NUMPY_NAMES = frozenset({"array", "asarray", "ones", "zeros", "arange", "linspace", "expand_dims"})
_MODULES = {
    "torch": _COMMON_NAMES | _TORCH_NAMES,
    "numpy": _COMMON_NAMES | _NUMPY_NAMES,
    "np": _COMMON_NAMES | _NUMPY_NAMES,
}
_METHODS = frozenset({
    "abs", "all", "amax", "amin", "any", "argmax", "argmin", "astype", "bool", "byte", "clamp", "clip", "cpu", "dim",
    "double", "dtype", "exp", "expand", "flatten", "flip", "float", "get", "half", "int", "items", "keys", "log",
    "long", "max", "mean", "min", "ndim", "numel", "permute", "repeat", "reshape", "round", "shape", "sigmoid",
    "size", "softmax", "sqrt", "squeeze", "std", "sum", "to", "transpose", "unsqueeze", "values", "view",
})  # fmt: skip


def find_references(text: str) -> list[str]:
    """Return the ids to which a string refers: all those in an expression, or the one that the string is."""
    text = _normalise(text)
    return [match[1:] for match in REFERENCE.findall(text) if text.startswith("$") or text == match]


def find_violation(text: str) -> str:
    """Describe the reason not to evaluate a string of a configuration; empty for none, and for no expression."""
    text = _normalise(text)
    if text.startswith("%"):
        return "a macro, which brings in other parts or files"
    if _RELATIVE.search(text):
        return "a relative reference; it is written with its whole name"
    return _find_violation_of_expression(text[1:]) if text.startswith("$") else ""


def _normalise(text: str) -> str:
    """Replace MONAI's older separator, Python's sign of a comment, by its newer one, as MONAI does."""
    return text.replace("#", "::")


def _find_violation_of_expression(text: str) -> str:
    if len(text) > _LONGEST:
        return f"an expression of more than {_LONGEST} letters"
    numbers = iter(range(len(text)))
    expression = REFERENCE.sub(lambda _: f"{_STAND_IN}{next(numbers)}", text)
    if _STAND_IN in text or "@" in expression:
        return "a reference that is not understood"
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "an import or a statement" if re.match(r"\s*(import|from)\b", text) else "no Python expression"
    return next(_node_violations(tree), "") or _find_excessive_size(tree)


def _node_violations(tree: ast.Expression) -> Iterator[str]:
    """Describe every node that is not allowed."""
    variables = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    variables |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if reserved := sorted(
        variables & (_BUILTINS | _MODULES.keys()) | {name for name in variables if name.startswith("_")}
    ):
        yield f"the variable {reserved[0]!r}"
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            yield f"{type(node).__name__}, which is not evaluated here"
        elif isinstance(node, ast.Constant) and _STAND_IN in str(node.value):
            yield "a reference within quotation marks"
        elif isinstance(node, ast.Name):
            yield from _name_violations(node, parents.get(node), variables)
        elif isinstance(node, ast.Attribute):
            yield from _attribute_violations(node, parents.get(node))
        elif isinstance(node, ast.Call):
            yield from _call_violations(node)


def _find_excessive_size(tree: ast.Expression) -> str:
    """Describe the first sign of more values than a machine holds: repetitions of repetitions, and large numbers."""
    nodes = list(ast.walk(tree))
    loops = sum(isinstance(node, ast.comprehension) for node in nodes)
    ranges = sum(isinstance(node, ast.Name) and node.id == "range" for node in nodes)
    repeats = sum(isinstance(node, ast.BinOp) and _repeats_sequence(node) for node in nodes)
    if any(isinstance(node, ast.BinOp) and _formats_text(node) for node in nodes):
        return "a text with % after it"
    if max(loops, ranges, repeats) > 1 or (repeats and loops + ranges):
        return "more than one repetition"
    if any(isinstance(node, ast.Call) and _makes_large_array(node) for node in nodes):
        return f"an array of more than {_MOST_VALUES} values"
    if any(isinstance(node, ast.Call) and _counts_by_reference(node) for node in nodes):
        return "a range whose length is a reference"
    large = any(isinstance(node, ast.Constant) and type(node.value) is int and node.value > _LARGEST for node in nodes)
    return f"a repetition with a number above {_LARGEST}" if large and loops + ranges + repeats else ""


def _makes_large_array(node: ast.Call) -> bool:
    """Return whether a call makes an array of too many values, by the product of the numbers in its arguments."""
    if not (isinstance(node.func, ast.Attribute) and node.func.attr in _MAKE_ARRAYS):
        return False
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    constants = [part.value for each in arguments for part in ast.walk(each) if isinstance(part, ast.Constant)]
    return prod(max(1.0, each) for each in constants if isinstance(each, int | float)) > _MOST_VALUES


def _counts_by_reference(node: ast.Call) -> bool:
    """Return whether a call of range takes a reference itself, not its length."""
    return (
        isinstance(node.func, ast.Name)
        and node.func.id == "range"
        and any(isinstance(each, ast.Name) and each.id.startswith(_STAND_IN) for each in node.args)
    )


def _formats_text(node: ast.BinOp) -> bool:
    """Return whether an operation may write a number into a text, of the width given in the text."""
    return isinstance(node.op, ast.Mod) and any(
        isinstance(part, ast.Constant) and isinstance(part.value, str | bytes) for part in ast.walk(node.left)
    )


def _repeats_sequence(node: ast.BinOp) -> bool:
    """Return whether an operation multiplies a list or a text."""
    return isinstance(node.op, ast.Mult) and any(
        isinstance(part, ast.List | ast.Tuple | ast.ListComp)
        or (isinstance(part, ast.Constant) and isinstance(part.value, str | bytes))
        for part in ast.walk(node)
    )


def _name_violations(node: ast.Name, parent: ast.AST | None, variables: set[str]) -> Iterator[str]:
    if node.id in variables or node.id.startswith(_STAND_IN):
        return
    if node.id in _BUILTINS and isinstance(parent, ast.Call | ast.keyword):
        return
    if not (node.id in _MODULES and isinstance(parent, ast.Attribute)):
        yield f"the name {node.id!r}"


def _attribute_violations(node: ast.Attribute, parent: ast.AST | None) -> Iterator[str]:
    """Describe an attribute that is not allowed.

    A chain that begins with a module is checked as one name only: torch.cuda.is_available, not torch.cuda.
    """
    root, inner = _split_chain(node)
    if root not in _MODULES:
        if node.attr not in _METHODS:
            yield f"the attribute {node.attr!r}"
    elif inner not in _MODULES[root]:
        longer = any(name.startswith(f"{inner}.") for name in _MODULES[root])
        if not (longer and isinstance(parent, ast.Attribute)):
            yield f"{root}.{inner}"


def _call_violations(node: ast.Call) -> Iterator[str]:
    """Describe a call that is not allowed.

    Builtins, listed functions and listed methods may be called, but not the result of another call, nor a reference.
    """
    if not isinstance(node.func, ast.Name | ast.Attribute):
        yield "a call of what an expression gives"
    elif isinstance(node.func, ast.Name) and node.func.id not in _BUILTINS:
        yield f"a call of {'a reference' if node.func.id.startswith(_STAND_IN) else node.func.id}"


def _split_chain(node: ast.Attribute) -> tuple[str, str]:
    """Return the name at the start of a chain of attributes, empty where the start is a value, and the rest."""
    names, value = [node.attr], node.value
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    return (value.id if isinstance(value, ast.Name) else ""), ".".join(reversed(names))
