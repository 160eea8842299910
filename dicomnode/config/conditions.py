"""The conditions of a route: pure, without database or data set.

    "MR"  5  true          equal (one of several values of an attribute is enough)
    ["MR", "PT"]           any of
    "~(?i)flair"           a regular expression, found anywhere in the value
    "< 3.5"  ">= 1"        a number comparison
    "exists"  "absent"     the attribute has a value, or not

An attribute without value satisfies nothing but "absent".
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Condition", "matches", "parse"]

Scalar = str | int | float | bool

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Condition:
    """A condition on one attribute; ``text`` is its spelling in the file."""

    kind: Literal["any", "regex", "<", "<=", ">", ">=", "exists", "absent"]
    operands: tuple[Scalar, ...]
    text: str

    @property
    def raw(self) -> Scalar | list[Scalar]:
        """The condition as node.toml writes it, which ``parse`` reads back."""
        if self.kind != "any":
            return self.text
        is_single = len(self.operands) == 1 and self.text == str(self.operands[0])  # a list of one stays a list
        return self.operands[0] if is_single else list(self.operands)

    def holds(self, value: Any) -> bool:
        """Return whether the value of an attribute (None: the data set has none) satisfies the condition."""
        values = _list_values(value)
        match self.kind:
            case "exists":
                return bool(values)
            case "absent":
                return not values
            case "any":
                return any(_is_equal(one, operand) for one in values for operand in self.operands)
            case "regex":
                return any(re.search(str(self.operands[0]), str(one)) for one in values)
            case comparison:
                return any(_compare(comparison, one, self.operands[0]) for one in values)


def matches(match: Mapping[str, Condition], attributes: Mapping[str, Any]) -> bool:
    """Return whether all conditions hold on the attributes of one series."""
    return all(condition.holds(attributes.get(keyword)) for keyword, condition in match.items())


def parse(raw: Any) -> Condition:
    """Return the condition that node.toml writes so. Raises ValueError with the reason."""
    if isinstance(raw, Condition):
        return raw
    if isinstance(raw, list):
        return _parse_list(raw)
    if not isinstance(raw, str | int | float):
        raise ValueError("a condition is a value, a list of values or a string")
    if not isinstance(raw, str):
        return Condition("any", (raw,), str(raw))
    if raw in ("exists", "absent"):
        return Condition("exists" if raw == "exists" else "absent", (), raw)
    if raw.startswith("~"):
        return _parse_regex(raw)
    for sign in _COMPARISONS:
        if raw.startswith(sign):
            return _parse_comparison(sign, raw)
    return Condition("any", (raw,), raw)


def _parse_list(raw: list[Any]) -> Condition:
    if not raw or not all(isinstance(one, str | int | float) for one in raw):
        raise ValueError("a list of a condition holds values, at least one")
    return Condition("any", tuple(raw), "any of " + ", ".join(map(str, raw)))


def _parse_regex(raw: str) -> Condition:
    try:
        re.compile(raw[1:])
    except (re.error, OverflowError) as error:
        raise ValueError(f"{raw!r} is no regular expression: {error}") from None
    except RecursionError:
        raise ValueError(f"the regular expression {raw[:20]!r}... has too many nested groups") from None
    return Condition("regex", (raw[1:],), raw)


def _parse_comparison(sign: str, raw: str) -> Condition:
    try:
        bound = float(raw[len(sign) :])
    except ValueError:
        raise ValueError(f"{raw!r} compares with something that is no number") from None
    return Condition(sign, (bound,), raw)  # type: ignore[arg-type]


def _list_values(value: Any) -> list[Any]:
    several: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return [one for one in several if one is not None and one != ""]


def _is_equal(value: Any, operand: Scalar) -> bool:
    if isinstance(operand, bool) or isinstance(value, bool):
        return str(value).lower() == str(operand).lower()
    if isinstance(operand, int | float):
        return _compare("==", value, operand)
    return str(value).strip() == operand


def _compare(sign: str, value: Any, bound: Scalar) -> bool:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return number == float(bound) if sign == "==" else _COMPARISONS[sign](number, float(bound))
