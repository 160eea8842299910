"""``dicomnode export --bids``: a study and its results in the layout of BIDS."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.bids.study_files import StudyFiles
    from dicomnode.config import Config

__all__ = ["export"]


def export(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="STUDY|FOLDER", help="A study of this node (number or UID), or files.")
    ],
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
    from dicomnode.bids.study_files import StudyFiles
    from dicomnode.local_runs.candidates import list_dicom

    if not bids:
        raise typer.BadParameter("say in which layout: --bids")
    suffixes = dict(_parse_suffix(text) for text in suffix or [])
    is_folder = Path(source).exists()
    found = StudyFiles(list_dicom(Path(source)), [], {}) if is_folder else _find_study(source, context.config(ctx))
    rows = exporting.export(found.paths, out_dir, Labels(subject, session), suffixes, found.verdicts) + found.left_out
    context.print_rows([asdict(row) for row in rows], ["series", "file", "left_out"], as_json=as_json)


def _find_study(uid: str, config: Config) -> StudyFiles:
    from db.engine import readers
    from dicomnode.bids import study_files

    with readers(context.engine(config))() as session:
        return study_files.find_study_files(session, uid, config.spool_dir)


def _parse_suffix(text: str) -> tuple[str, str]:
    from dicomnode.bids.dataset import SUFFIXES

    number, _, name = text.partition("=")
    if not number.isdigit() or name not in SUFFIXES:
        raise typer.BadParameter(f"{text!r} is not NUMBER=SUFFIX with a SUFFIX of: {', '.join(SUFFIXES)}")
    return number, name
