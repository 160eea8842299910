"""``dicomnode studies``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.config import Config

__all__ = ["app"]

app = typer.Typer()

StudyUid = Annotated[
    str, typer.Argument(metavar="STUDY", help="The study's number, its Study Instance UID, or the beginning of that.")
]


@app.command("list")
def list_studies(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """List every study, the newest last."""
    from db.engine import readers
    from dicomnode import listings
    from dicomnode.cli import tables

    config = context.config(ctx)
    with readers(context.engine(config))() as session:
        if as_json:
            context.print_json(listings.list_studies(session))
            return
        rows = tables.list_study_rows(session, mask=config.web.mask_names)
    context.print_rows(rows, tables.STUDY_COLUMNS, as_json=False, nothing="no study")


@app.command()
def show(ctx: typer.Context, uid: StudyUid, as_json: context.AsJson = False) -> None:
    """Show one study: its series, its jobs and their results."""
    from db import overview
    from db.engine import readers
    from dicomnode import listings
    from dicomnode.web import template_filters

    with readers(context.engine(context.config(ctx)))() as session:
        facts = listings.describe_study(session, listings.resolve_study(session, uid))
    if as_json:
        context.print_json(facts)
        return
    state = {"state": overview.describe_study_state(facts["state"], len(facts["jobs"]))}
    lines = [{"what": name, "value": value} for name, value in (facts | state).items() if not isinstance(value, list)]
    context.print_rows(lines, ["what", "value"], as_json=False)
    context.print_title("Series")
    series = [row | {"series": template_filters.shorten_uid(row["series_uid"])} for row in facts["series"]]
    context.print_rows(series, ["modality", "description", "instances", "series"], as_json=False, nothing="no series")
    if facts["workitems"]:
        context.print_title("Open workitems, for which retention keeps the study")
        context.print_rows(facts["workitems"], ["uid", "state"], as_json=False)
    context.print_title("Jobs")
    columns = ["id", "route", "state", "results", "delivered", "reason"]
    none = "no job: 'dicomnode studies explain' says which routes match and why not"
    context.print_rows(facts["jobs"], columns, as_json=False, nothing=none)


@app.command()
def explain(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(metavar="STUDY|FILE", help="A study, by number or UID, or a DICOM file.")],
    as_json: context.AsJson = False,
) -> None:
    """Explain which routes match, on which attributes, or why none does, with the state of the jobs."""
    from dicomnode.web import template_filters

    rows = _explain(context.config(ctx), what)
    if as_json:
        context.print_json(rows)
        return
    cells = [
        row
        | {
            "series": "\n".join(map(template_filters.shorten_uid, row["matched"])),
            "jobs": "\n".join(f"job {job['id']} {job['state']}: {job['reason']}".rstrip(": ") for job in row["jobs"]),
        }
        for row in rows
    ]
    columns = [name for name in ("route", "pipeline", "series", "why", "jobs") if any(row[name] for row in cells)]
    context.print_rows(cells, columns, as_json=False, nothing="node.toml has no route")


@app.command()
def ledger(ctx: typer.Context, uid: StudyUid, as_json: context.AsJson = False) -> None:
    """Show what became of a study: job, model with digest, each result, its destination, and the proof it is there."""
    from db.engine import readers
    from dicomnode import listings

    with readers(context.engine(context.config(ctx)))() as session:
        rows = listings.list_ledger(session, listings.resolve_study(session, uid))
    if as_json:
        context.print_json(rows)
        return
    cells = [
        row
        | {"instances": len(row["instances"]), "digest": row["digest"][:12], "at": row["proven_at"] or row["sent_at"]}
        for row in rows
    ]
    columns = ["instances", "job", "model", "digest", "result", "kind", "destination", "proof", "at", "reason"]
    context.print_rows(cells, columns, as_json=False)


@app.command()
def prove(ctx: typer.Context, uid: StudyUid) -> None:
    """Ask the destinations again for proof of the study's results that stayed unproven."""
    from db.engine import sessions
    from dicomnode import listings
    from dicomnode.commitment import proving
    from dicomnode.deployment import deploying

    config = context.config(ctx)
    reason = f"asked again by {deploying.identify_user()}"
    with sessions(context.engine(config)).begin() as session:
        study = listings.resolve_study(session, uid)
        count = proving.ask_again(session, config, study.id, reason=reason, now=datetime.now(UTC))
    print(f"{count} results are asked about again; a running node does so now")


@app.command()
def close(ctx: typer.Context, uid: StudyUid) -> None:
    """Take a study as complete now, without waiting."""
    from db.engine import sessions
    from dicomnode import listings
    from dicomnode.routing import completion

    with sessions(context.engine(context.config(ctx))).begin() as session:
        uid = listings.resolve_study(session, uid).study_uid
        study = completion.close_study(session, uid, now=datetime.now(UTC))
    print(f"study {uid} is {study.state}, revision {study.revision}")


@app.command()
def route(ctx: typer.Context, uid: StudyUid) -> None:
    """Offer a study to the routes again, for instance one that no route took; work that was done is not repeated."""
    from db.engine import sessions
    from dicomnode import listings
    from dicomnode.deployment import deploying
    from dicomnode.routing import rerouting

    config = context.config(ctx)
    reason = f"routed again by {deploying.identify_user()}"
    with sessions(context.engine(config)).begin() as session:
        uid = listings.resolve_study(session, uid).study_uid
        study = rerouting.route_again(session, uid, config, reason=reason, now=datetime.now(UTC))
        number, explained = study.id, listings.explain_routes(session, study, config)
    matching = ", ".join(row["route"] for row in explained if row["matched"])
    print(f"study {number} is offered to the routes again; of node.toml these match: {matching}")
    print(
        "A running node routes it within seconds, with the routes that it read at its start; without one, "
        f"'dicomnode serve' does. 'dicomnode studies show {number}' lists its jobs."
    )


@app.command()
def replay(
    ctx: typer.Context,
    uid: StudyUid,
    model: Annotated[str, typer.Option(metavar="NAME@VERSION", help="Another model than the job's.")] = "",
    as_json: context.AsJson = False,
) -> None:
    """Run the study's finished jobs again, deliver nothing, and list the differences."""
    from db.engine import readers
    from dicomnode import listings
    from dicomnode.execution import replaying

    config = context.config(ctx)
    context.log_to_stderr(config)
    with readers(context.engine(config))() as session:
        tasks = replaying.list_replays(session, config, listings.resolve_study(session, uid), model)
    differences = [row for done in tasks for row in replaying.run_and_compare(done, config)]
    context.print_rows(differences, replaying.COLUMNS, as_json=as_json)


@app.command()
def report(
    ctx: typer.Context,
    uid: StudyUid,
    out: Annotated[Path, typer.Option(help="The page to write: FILE.pdf or FILE.png.")],
    job: Annotated[int | None, typer.Option(help="The job; default: the newest with a result.")] = None,
    identify: Annotated[bool, typer.Option("--identify", help="Name the patient on the page.")] = False,
) -> None:
    """Write the page on a study's result: pictures, numbers with intervals, verdict, model."""
    from db.engine import readers
    from dicomnode import listings
    from dicomnode.execution import stored

    kind = out.suffix.lower().removeprefix(".")
    if kind not in ("pdf", "png"):
        raise typer.BadParameter(f"{out}: the page is written as .pdf or .png", param_hint="--out")
    config = context.config(ctx)
    context.log_to_stderr(config)
    with readers(context.engine(config))() as session:
        page = stored.load_page(
            stored.choose_job(listings.resolve_study(session, uid), job), config, kind, identify=identify
        )
    out.write_bytes(page)
    print(out)


def _explain(config: Config, what: str) -> list[dict[str, Any]]:
    from db.engine import readers
    from dicomnode import listings
    from dicomnode.datasets import headers
    from dicomnode.routing import routing

    if Path(what).is_file():
        verdicts = routing.explain_file(headers.read(Path(what)), config.routes)
        return [asdict(verdict) | {"jobs": []} for verdict in verdicts]
    with readers(context.engine(config))() as session:
        return listings.explain_routes(session, listings.resolve_study(session, what), config)
