"""``dicomnode models``: the bundles on this node, and which of them the pipelines use."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context, model_doubts
from dicomnode.errors import NotAllowed, NotFound, StorageDamaged
from model_zoo.bundle import BundleError, weights_digest

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from dicomnode.config import Config
    from model_zoo.bundle import BundleFacts
    from model_zoo.installing import StagedBundle

__all__ = ["app"]

app = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME[@VERSION]")]
Version = Annotated[str, typer.Argument(metavar="NAME@VERSION")]
PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE")]
Who = Annotated[str, typer.Option(help="Who decided it.", show_default="the user of this machine")]
Why = Annotated[str, typer.Option(help="Why, for the history.")]


@app.command("list")
def list_models(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """List every bundle on this node: version, digest, licence, training data, intended use."""
    from dicomnode import listings

    columns = ["name", "version", "digest", "licence", "intended_use"]
    context.print_rows(listings.list_models(_config_or_none(ctx)), columns, as_json=as_json)


@app.command()
def show(ctx: typer.Context, name: Name, as_json: context.AsJson = False) -> None:
    """Show the whole metadata of one bundle."""
    from dicomnode import listings

    rows = listings.describe_model(name, _config_or_none(ctx))
    if as_json:
        context.print_json(rows)
        return
    context.print_rows(
        ({"what": k, "value": _format_metadata(v)} for k, v in rows.items()), ["what", "value"], as_json=False
    )


@app.command()
def verify(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[NAME[@VERSION]]", show_default="every bundle")] = "",
    as_json: context.AsJson = False,
) -> None:
    """Compare every file's SHA-256 with what was installed, the weights' with their metadata; exit 1 if one differs."""
    from dicomnode.deployment import models
    from model_zoo import registry

    config = _config_or_none(ctx)
    bundle, _, version = name.partition("@")
    installed = registry.list_bundles() if config is None else models.list_bundles(config)
    chosen = [f for f in installed if bundle in ("", f.name) and version in ("", f.version)]
    unreadable = [] if config is None or name else registry.list_damaged(config.models_dir)
    if not chosen and not unreadable:
        raise NotFound(f"no bundle {name or 'at all'} on this node: 'dicomnode models list' shows what there is")
    rows = [_verify_bundle(facts) for facts in chosen]
    rows += [{"name": "", "version": "", "state": "damaged", "reason": str(error)} for error in unreadable]
    context.print_rows(rows, ["name", "version", "state", "reason"], as_json=as_json)
    if damaged := [row["name"] or row["reason"] for row in rows if row["state"] != "ok"]:
        raise StorageDamaged(f"not as it was installed: {', '.join(damaged)}; remove the bundle and install it again")


@app.command()
def install(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder or a zip, of ours or of MONAI's Model Zoo.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    who: Who = "",
) -> None:
    """Check a bundle, try it, and put it in its place. No pipeline uses it before it is deployed."""
    from dicomnode.deployment import deploying, models
    from model_zoo import installing, smoke

    config = context.config(ctx)
    with installing.stage_bundle(path, config.models_dir, deploying.build_policy(config.models)) as staged:
        _print_bundle(staged)
        if not yes and sys.stdin.isatty():
            typer.confirm("Install it?", abort=True)
        for device in smoke.available_devices():
            ran = smoke.run(staged.facts, device, trusted_code=staged.trusted_code)
            print(f"ran on {ran.device} in {ran.seconds:.1f} s: {' x '.join(map(str, ran.shape))} zeros, finite output")
        facts = staged.commit()
    _record_installation(config, staged, facts, who or deploying.identify_user())
    called = f"{facts.name}@{facts.version}"
    default = models.find_bundle(facts.name, config)
    if default.version == facts.version:
        print(f"installed {called}, the first version of {facts.name}: routes that name it use it")
        return
    print(f"installed {called}; nothing uses it before 'dicomnode models deploy {called} --pipeline P'")
    _print_warning(model_doubts.doubt_metrics(facts, default))


@app.command()
def remove(ctx: typer.Context, name: Version, who: Who = "") -> None:
    """Take away an installed version that nothing uses, and that no rollback goes back to."""
    from db.engine import sessions
    from dicomnode.deployment import deploying

    config = context.config(ctx)
    _check_version(name)
    with sessions(context.engine(config)).begin() as session:
        deploying.remove(session, config, model=name, who=who or deploying.identify_user(), now=datetime.now(UTC))
    print(f"removed {name}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN.pt", exists=True, dir_okay=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors")],
) -> None:
    """Write a state dict as safetensors. Whatever would run code when it is read is refused, and not read."""
    from model_zoo import state_dicts

    if target.exists():
        raise NotAllowed(f"{target} is there already")
    count = state_dicts.convert_to_safetensors(source, target)
    print(f"{count} tensors in {target}, SHA-256 {weights_digest(target)}")


@app.command()
def deploy(
    ctx: typer.Context,
    name: Version,
    pipeline: Annotated[str, typer.Option(metavar="P", help="The pipeline that uses it.")],
    shadow: Annotated[bool, typer.Option("--shadow", help="Run it beside the current one; deliver nothing.")] = False,
    share: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Of the studies, the same ones always.")
    ] = None,
    who: Who = "",
    why: Why = "",
) -> None:
    """Use this version from the next study on: for all studies of the pipeline, for a share, or as a shadow."""
    from db.engine import sessions
    from db.states import DeploymentMode
    from dicomnode import listings
    from dicomnode.deployment import deploying

    if shadow and share is not None:
        raise typer.BadParameter("a version is deployed as --shadow or with --share, not both")
    mode = DeploymentMode.SHADOW if shadow else DeploymentMode.CURRENT if share is None else DeploymentMode.SHARE
    config = context.config(ctx)
    _check_version(name)
    with sessions(_open_database(config)).begin() as session:
        is_new = _find_model_in_use(session, pipeline, config) != name
        row = deploying.deploy(
            session, config, model=name, pipeline=pipeline, mode=mode, percent=share,
            who=who or deploying.identify_user(), why=why, now=datetime.now(UTC),
        )  # fmt: skip
        digest = row.digest
        compared = [each for each in listings.list_comparisons(session, pipeline) if each["after"] == name]
    part = f" for {share:g} % of the studies" if share is not None else ""
    print(f"{pipeline}: {name} is the {mode} version{part}, weights SHA-256 {digest}")
    for route in (route for route in config.routes if route.pipeline == pipeline and route.model):
        print(f"note: route {route.name!r} names {route.model} in node.toml and keeps to it")
    if mode is not DeploymentMode.SHADOW:
        summary = _summarize_comparisons(compared) if compared else "it never ran as one"
        print(f"note: as a shadow of the current version: {summary}")
        _print_warning(model_doubts.doubt_comparisons(compared, pipeline, config) if is_new else "")


@app.command()
def rollback(ctx: typer.Context, pipeline: PipelineName, who: Who = "", why: Why = "") -> None:
    """Take back the last step, at once: the share, or else the current version; waiting jobs go back with it."""
    from db.engine import sessions
    from dicomnode.deployment import deploying

    config = context.config(ctx)
    with sessions(_open_database(config)).begin() as session:
        facts = deploying.rollback(
            session, config, pipeline=pipeline, who=who or deploying.identify_user(), why=why, now=datetime.now(UTC)
        )
    print(f"{pipeline}: {facts.name}@{facts.version} is the current version, weights SHA-256 {facts.digest}")


@app.command("end-shadow")
def end_shadow(ctx: typer.Context, pipeline: PipelineName, who: Who = "") -> None:
    """End the shadow version of a pipeline; its waiting comparisons are cancelled."""
    from db import deployments
    from db.engine import sessions
    from dicomnode.deployment import deploying

    config = context.config(ctx)
    with sessions(_open_database(config)).begin() as session:
        row = deploying.end_shadow(
            session, config, pipeline=pipeline, who=who or deploying.identify_user(), now=datetime.now(UTC)
        )
        model = deployments.format_model(row)
    print(f"{pipeline}: {model} is no shadow version any more")


@app.command()
def history(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(metavar="[PIPELINE]", show_default="every pipeline")] = "",
    as_json: context.AsJson = False,
) -> None:
    """List the deployments with person and time; one without an end is in force."""
    from db.engine import readers
    from dicomnode import listings

    with readers(context.engine(context.config(ctx)))() as session:
        rows = listings.list_deployments(session, pipeline)
    columns = ["pipeline", "model", "mode", "who", "why", "started_at", "ended_at", "ended_by"]
    context.print_rows(rows, columns, as_json=as_json, nothing="no deployment: every pipeline uses its default version")


@app.command()
def compare(ctx: typer.Context, pipeline: PipelineName, as_json: context.AsJson = False) -> None:
    """Compare, study by study, the results of a shadow version with those delivered."""
    from db.engine import readers
    from dicomnode import listings

    with readers(context.engine(context.config(ctx)))() as session:
        rows = listings.list_comparisons(session, pipeline)
    columns = ["study_uid", "after", "state", "verdicts", "psnr_db", "dice", "number"]
    none = "no comparison: no version ran as a shadow of this pipeline ('dicomnode models deploy ... --shadow')"
    context.print_rows(rows, columns, as_json=as_json, nothing=none)
    if not as_json and rows:
        print(_summarize_comparisons(rows))


def _find_model_in_use(session: Session, pipeline: str, config: Config) -> str:
    """Return NAME@VERSION that the pipeline uses now, or "" where none is known."""
    from dicomnode.deployment import pipeline_facts, pipeline_names
    from dicomnode.errors import NodeError

    try:
        facts = pipeline_facts.find_model_in_force(
            pipeline, pipeline_names.find_default_bundle(pipeline, config), config, session
        )
    except (NodeError, BundleError):
        return ""
    return f"{facts.name}@{facts.version}"


def _print_warning(doubt: str) -> None:
    if doubt:
        typer.echo(f"warning: {doubt}", err=True)


def _summarize_comparisons(rows: list[dict[str, Any]]) -> str:
    psnr = [row["psnr_db"] for row in rows if row["psnr_db"] is not None]
    times = [row["after_s"] / row["before_s"] for row in rows if row["after_s"] and row["before_s"]]
    studies = "1 study" if len(rows) == 1 else f"{len(rows)} studies"
    parts = [f"{studies}, {sum(row['state'] == 'done' for row in rows)} compared"]
    parts += [f"worst PSNR of an image {min(psnr):.1f} dB, median {median(psnr):.1f} dB"] if psnr else []
    parts += [f"median time {median(times):.2f} of the current one's"] if times else []
    return "; ".join(parts)


def _config_or_none(ctx: typer.Context) -> Config | None:
    """Load the configuration, or return None where none exists: the shipped bundles need none."""
    path: Path = ctx.find_root().obj
    return context.config(ctx) if path.exists() or path != Path("node.toml") else None


def _open_database(config: Config) -> Any:
    """Connect to the database; make it first where the node was never started."""
    from dicomnode import node

    if not (config.database.url or config.database.url_file) and not (config.data_dir / "node.sqlite").exists():
        node.prepare(config)
    return context.engine(config)


def _check_version(name: str) -> None:
    if not all(name.partition("@")):
        raise typer.BadParameter(f"{name!r} names no version: NAME@VERSION, as 'dicomnode models list' shows them")


def _print_bundle(staged: StagedBundle) -> None:
    metadata = staged.facts.metadata
    task = metadata.get("task", metadata.get("description", ""))
    print(f"{staged.facts.name}@{staged.facts.version}: {_format_metadata(task)}")
    for name in ("intended_use", "licence", "trained_on"):
        print(f"  {name.replace('_', ' ')}: {_format_metadata(metadata.get(name, '')) or 'not stated'}")
    print(f"  weights SHA-256: {staged.facts.digest}")
    print(f"  signed by: {staged.signed_by or 'nobody whose signature was checked'}")
    if staged.trusted_code:
        print("  code of its configuration: allowed by this site in [models] trusted_code")
    if staged.converted_from:
        print(f"  weights converted from {staged.converted_from}")


def _record_installation(config: Config, staged: StagedBundle, facts: BundleFacts, who: str) -> None:
    """Record the installation in the audit trail, which does not exist before the node's first start."""
    from db.engine import sessions
    from dicomnode.deployment import deploying
    from dicomnode.errors import NodeError

    try:
        engine = context.engine(config)
    except NodeError:
        return
    with sessions(engine).begin() as session:
        deploying.record_installation(session, facts, signed_by=staged.signed_by, who=who, now=datetime.now(UTC))


def _verify_bundle(facts: BundleFacts) -> dict[str, Any]:
    from model_zoo import registry

    try:
        registry.verify(facts)
    except BundleError as error:
        return {"name": facts.name, "version": facts.version, "state": "damaged", "reason": str(error)}
    return {"name": facts.name, "version": facts.version, "state": "ok", "reason": ""}


def _format_metadata(value: Any) -> str:
    """Return nested metadata on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_format_metadata(each)}" for name, each in value.items())
    return ", ".join(_format_metadata(each) for each in value) if isinstance(value, list) else str(value)
