"""The result of ``dicomnode run`` on a terminal: inputs, verdict, measurements by group, notes, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dicomnode.local_runs.running import LocalRun

__all__ = ["print_inputs", "print_result", "print_subjects"]

_MOST_COLUMNS = 4
_VERDICTS = {"accept": "accepted", "hold": "HELD for a person", "refuse": "REFUSED", "failed": "FAILED"}


def print_inputs(run: LocalRun) -> None:
    """Print which file is which input, and what nobody stated about NIfTI files."""
    first, *others = run.sources
    print("\n".join([f"{first} ({run.choice.why})", *others]))
    for name, facts in run.unknown.items():
        if facts:
            example = f"--fact {name}.{facts[0]}=VALUE"
            print(f"{name}: not stated, so not checked: {', '.join(facts)}; state it by {example}")


def print_result(report: Mapping[str, Any], written: Sequence[tuple[str, Path]]) -> None:
    """Print verdict, measurements, notes and files."""
    from rich.console import Console

    console = Console(highlight=False)
    verdict = _VERDICTS.get(str(report["verdict"]), str(report["verdict"]))
    console.print(f"[bold]{verdict}[/bold] by the output gate; {report['model']}, {report['seconds']:.1f} s")
    for reason in report["reasons"]:
        console.print(f"- {reason}", markup=False)
    _print_measurements(console, report["measurements"])
    _print_table(console, ["note", "text"], [[each["name"], each["text"]] for each in report["notes"]])
    _print_table(console, ["kind", "file"], [[kind, str(path)] for kind, path in written])


def print_subjects(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Print the result of each subject, with the reason."""
    from rich.console import Console

    rows = [
        [subject, _VERDICTS.get(str(each["verdict"]), str(each["verdict"])), "; ".join(each["reasons"])]
        for subject, each in reports
    ]
    _print_table(Console(highlight=False), ["subject", "result", "reason"], rows)


def _print_measurements(console: Console, measurements: Sequence[Mapping[str, Any]]) -> None:
    """Print those of the whole result, then those of the groups; the pipeline's order within both."""
    overall = [each for each in measurements if not each["group"]]
    _print_table(console, ["measurement", "value", "unit", "interval"], [_describe(each) for each in overall], "value")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for each in measurements:
        if each["group"]:
            groups.setdefault(str(each["group"]), []).append(each)
    if not groups:
        return
    heads = {tuple(_head(each) for each in members) for members in groups.values()}
    columns = list(next(iter(heads)))
    if len(heads) == 1 and len(columns) <= _MOST_COLUMNS and not any("with interval" in each for each in columns):
        rows = [[group, *(_format(each["value"]) for each in members)] for group, members in groups.items()]
        _print_table(console, ["of", *columns], rows, *columns)
        return
    lines = [
        [group if at == 0 else "", *_describe(each)]
        for group, members in groups.items()
        for at, each in enumerate(members)
    ]
    _print_table(console, ["of", "measurement", "value", "unit", "interval"], lines, "value")


def _describe(measurement: Mapping[str, Any]) -> list[str]:
    return [_name(measurement), _format(measurement["value"]), _unit(measurement), _format_interval(measurement)]


def _head(measurement: Mapping[str, Any]) -> str:
    """Return the column for a measurement that every group has; one with intervals has lines of its own."""
    words = [_name(measurement), _unit(measurement), "with interval" if measurement.get("intervals") else ""]
    return " ".join(filter(None, words))


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *right: str) -> None:
    from rich import box
    from rich.table import Table

    filled = [at for at, _ in enumerate(columns) if any(row[at] for row in rows)]
    if not rows:
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for at in filled:
        table.add_column(columns[at], overflow="fold", justify="right" if columns[at] in right else "left")
    for row in rows:
        table.add_row(*(_escape(row[at]) for at in filled))
    console.print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _name(measurement: Mapping[str, Any]) -> str:
    """Return the name without that of its group."""
    name, group = str(measurement["name"]), str(measurement["group"])
    return name.replace(f" of {group}", "").replace(f"{group} ", "") if group else name


def _format(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _unit(measurement: Mapping[str, Any]) -> str:
    unit = str(measurement["unit"])
    return "" if unit == "1" else unit.replace("{", "").replace("}", "")


def _format_interval(measurement: Mapping[str, Any]) -> str:
    """Return the widest interval."""
    widest = max(measurement.get("intervals", ()), key=lambda each: each["level"], default=None)
    if widest is None:
        return ""
    return f"{_format(widest['low'])} to {_format(widest['high'])} ({100 * widest['level']:g} %)"
