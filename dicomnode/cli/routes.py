"""``dicomnode routes``: how many studies a route would take, a trial of it on one study, and its way into node.toml."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.config import Config, Route

__all__ = ["app"]

app = typer.Typer()

RouteOrFile = Annotated[
    str, typer.Argument(metavar="ROUTE|FILE", help="A route of node.toml, or a file with the block of one route.")
]


@app.command()
def count(ctx: typer.Context, what: RouteOrFile, as_json: context.AsJson = False) -> None:
    """Count the held studies that a route would take, with the newest of them."""
    from db.engine import readers
    from dicomnode.routing import match_counts

    config = context.config(ctx)
    with readers(context.engine(config))() as session:
        found = match_counts.count_matches(session, _find_route(config, what))
    if as_json:
        context.print_json(asdict(found))
        return
    print(f"{found.matched} of {found.held} studies held, {found.recent_matched} of the newest {found.recent}")
    for name, number in found.further.items():
        print(f"  with a series for {name}: {number} of {found.matched}")
    rows = [asdict(each) | {"series": "\n".join(each.series)} for each in found.first]
    context.print_rows(rows, ["study_uid", "study_date", "description", "series"], as_json=False)


@app.command("try")
def start(
    ctx: typer.Context,
    what: RouteOrFile,
    uid: Annotated[str, typer.Argument(metavar="STUDY", help="The study's number, its UID, or the beginning of that.")],
    deliver: Annotated[
        bool, typer.Option("--deliver", help="Deliver the results to the route's destinations.")
    ] = False,
    reason: context.Reason = "",
    who: context.Who = "",
) -> None:
    """Run a route's pipeline on one study that is here, without delivering the results."""
    from db.engine import sessions
    from dicomnode import listings
    from dicomnode.deployment import deploying
    from dicomnode.execution import option_process
    from dicomnode.routing import trials

    config = context.config(ctx)
    route = _find_route(config, what)
    route = route if deliver else route.model_copy(update={"destinations": ()})
    option_process.check_route(route, config)
    who, reason = who or deploying.identify_user(), _require_reason(reason)
    with sessions(context.engine(config)).begin() as session:
        uid = listings.resolve_study(session, uid).study_uid
        found = trials.start_trial(session, uid, route, config, who=who, reason=reason, now=datetime.now(UTC))
    numbers = ", ".join(map(str, found.job_ids))
    begun = "started" if found.is_new else "did this before"
    print(f"job {numbers} {begun}: 'dicomnode jobs show {found.job_ids[0]}' follows it")


@app.command()
def add(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file with the block of one route.")],
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
    reason: context.Reason = "",
    who: context.Who = "",
) -> None:
    """Show the change that adds a route to node.toml, and write it; the old file stays beside it."""
    from db.engine import sessions
    from dicomnode.config import route_blocks
    from dicomnode.deployment import deploying
    from dicomnode.execution import option_process
    from dicomnode.routing import route_addition

    config = context.config(ctx)
    who, reason = who or deploying.identify_user(), _require_reason(reason)
    block, now = route_blocks.read(file), datetime.now(UTC)
    addition = route_addition.plan(config.path, block, who=who, reason=reason, now=now)
    option_process.check_route(block.route, addition.config)
    print(addition.diff)
    if not yes and not typer.confirm("Write it?"):
        print("nothing was written")
        return
    make_sessions = sessions(context.engine(config))
    kept_path = route_addition.write(make_sessions, addition, block, who=who, reason=reason, now=now)
    print(f"written; the old file is {kept_path.name}. The route works after a restart of the node")


def _require_reason(reason: str) -> str:
    reason = context.ask_reason(reason)
    if not reason:
        raise typer.BadParameter("a reason is needed, for the audit trail", param_hint="--reason")
    return reason


def _find_route(config: Config, what: str) -> Route:
    """Return the route of node.toml of that name, or the only one of that file. Raises NotFound, ConfigError."""
    from dicomnode.config import route_blocks
    from dicomnode.errors import NotFound

    found = next((route for route in config.routes if route.name == what), None)
    if found is not None:
        return found
    if Path(what).is_file():
        return route_blocks.read(Path(what)).route
    names = ", ".join(route.name for route in config.routes) or "none"
    raise NotFound(f"{what} is neither a route of {config.path.name} (there: {names}) nor a file")
