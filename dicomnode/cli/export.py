"""``dicomnode export --bids``: a study and its results in the layout of BIDS."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context
from dicomnode.errors import NotFound

if TYPE_CHECKING:
    from dicomnode.config import Config

__all__ = ["export"]


def export(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="STUDY_UID|FOLDER", help="A study of this node, or DICOM files.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the dataset, new or existing.")],
    bids: Annotated[bool, typer.Option("--bids", help="In the layout of BIDS.")] = False,
    subject: Annotated[str, typer.Option(metavar="LABEL", help="Subject in the dataset; never the Patient ID.")] = "01",
    session: Annotated[str, typer.Option(metavar="LABEL", help="Session, where a subject has several studies.")] = "",
    suffix: Annotated[
        list[str] | None, typer.Option(metavar="NUMBER=SUFFIX", help="BIDS suffix of a series number: 5=T2w.")
    ] = None,
    as_json: context.AsJson = False,
) -> None:
    """Write a study and its delivered results as a dataset for research tools."""
    from dicomnode.bids import exporting
    from dicomnode.bids.dataset import Labels
    from dicomnode.local_runs.candidates import list_dicom

    if not bids:
        raise typer.BadParameter("say in which layout: --bids")
    suffixes = dict(_parse_suffix(text) for text in suffix or [])
    files = list_dicom(Path(source)) if Path(source).exists() else _list_study(source, context.config(ctx))
    rows = [asdict(row) for row in exporting.export(files, out_dir, Labels(subject, session), suffixes)]
    context.print_rows(rows, ["series", "file", "left_out"], as_json=as_json)


def _list_study(uid: str, config: Config) -> list[Path]:
    """Return the files of a study's instances, and of the results of its jobs that the output gate did not hold."""
    from db.engine import readers
    from db.states import JobState
    from dicomnode import listings
    from dicomnode.storage import spool

    with readers(context.engine(config))() as session:
        study = listings.find_study(session, uid)
        stored = [each for series in study.series for each in series.instances if each.expired_at is None]
        done = [job for job in study.jobs if job.state is JobState.DONE and job.shadow_of_id is None]
        outputs = [each for job in done for each in job.outputs if each.expired_at is None and not each.rendition]
        uids = {each.sop_instance_uid for each in outputs}
        digests = [each.sha256 for each in stored if each.sop_instance_uid not in uids] + [o.sha256 for o in outputs]
    if not digests:
        raise NotFound(f"study {uid}: its files were deleted by [retention]")
    return [spool.path(config.spool_dir, digest) for digest in digests]


def _parse_suffix(text: str) -> tuple[str, str]:
    from dicomnode.bids.dataset import SUFFIXES

    number, _, name = text.partition("=")
    if not number.isdigit() or name not in SUFFIXES:
        raise typer.BadParameter(f"{text!r} is not NUMBER=SUFFIX with a SUFFIX of: {', '.join(SUFFIXES)}")
    return number, name
