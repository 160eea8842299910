"""``dicomnode status``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import typer

from dicomnode.cli import context

__all__ = ["status"]


def status(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """Studies, jobs and deliveries by state; the oldest waiting; the disk; the last errors."""
    from db.engine import readers
    from dicomnode.monitoring.status import collect_status as measure

    config = context.config(ctx)
    with readers(context.engine(config))() as session:
        found = measure(session, config, now=datetime.now(UTC))
    if as_json:
        context.print_json(found)
        return
    context.print_rows(_lines(found), ["what", "state"], as_json=False)


def _lines(found: dict[str, Any]) -> list[dict[str, str]]:
    waiting = found["oldest_waiting_s"]
    lines = [
        ("studies", _counts(found["studies"])),
        ("instances", f"{found['instances']}, {found['quarantined']} quarantined"),
        ("jobs", _counts(found["jobs"])),
    ]
    lines += [(f"to {name}", _counts(states)) for name, states in found["deliveries"].items()]
    lines += [(f"notifications to {name}", _counts(states)) for name, states in found["notifications"].items()]
    lines += [(f"oldest waiting {what}", f"{age_s:.0f} s") for what, age_s in waiting.items() if age_s is not None]
    lines += [("disk", f"{found['disk']['free_gb']} GB free, {found['disk']['used_percent']} % used")]
    lines += [(error["what"], error["reason"]) for error in found["last_errors"]]
    return [{"what": what, "state": state} for what, state in lines]


def _counts(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
