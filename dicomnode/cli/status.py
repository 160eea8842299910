"""``dicomnode status``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import typer

from dicomnode.cli import context

__all__ = ["status"]


def status(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """Show studies, jobs and deliveries by state, the oldest waiting, the disk and the last errors."""
    from db.engine import readers
    from dicomnode.monitoring.status import collect_status as measure

    config = context.config(ctx)
    with readers(context.engine(config))() as session:
        facts = measure(session, config, now=datetime.now(UTC))
    if as_json:
        context.print_json(facts)
        return
    context.print_rows(_format_lines(facts), ["what", "state"], as_json=False)


def _format_lines(facts: dict[str, Any]) -> list[dict[str, str]]:
    from dicomnode.monitoring.status import NO_WORKER, count_shown_states, group_errors

    waiting = facts["oldest_waiting_s"]
    lines = [
        ("studies", _format_counts(count_shown_states(facts))),
        ("instances", f"{facts['instances']}, {facts['quarantined']} quarantined"),
        ("jobs", _format_counts(facts["jobs"])),
        ("workers", f"{facts['workers']} reported in the last minute" if facts["workers"] else NO_WORKER),
    ]
    lines += [(f"to {name}", _format_counts(states)) for name, states in facts["deliveries"].items()]
    lines += [(f"notifications to {name}", _format_counts(states)) for name, states in facts["notifications"].items()]
    lines += [(f"oldest waiting {what}", f"{age_s:.0f} s") for what, age_s in waiting.items() if age_s is not None]
    lines += [("disk", f"{facts['disk']['free_gb']} GB free, {facts['disk']['used_percent']} % used")]
    lines += group_errors(facts["last_errors"])
    return [{"what": what, "state": state} for what, state in lines]


def _format_counts(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
