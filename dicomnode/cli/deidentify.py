"""``dicomnode deidentify``: copies of files and folders by a profile of node.toml."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.config import Config
    from dicomnode.deidentify.copying import Deidentifier
    from dicomnode.deidentify.defacing import SeriesFaceMask

__all__ = ["deidentify"]


def deidentify(
    ctx: typer.Context,
    in_path: Annotated[Path, typer.Argument(exists=True, metavar="IN", help="Folder with DICOM files, or one file.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the copies.")],
    profile: Annotated[str, typer.Option(metavar="NAME", help="A profile of the configuration (section deidentify).")],
    as_json: context.AsJson = False,
) -> None:
    """Copy DICOM files without what identifies the patient (PS3.15 Basic Profile); the files stay as they are."""
    from dicomnode.deidentify import copying
    from dicomnode.dimse import peers

    config = context.config(ctx)
    deidentifier = copying.open_deidentifier(config, profile)
    files = list(peers.find_dicom_files([in_path]))
    if not files:
        raise typer.BadParameter(f"no DICOM file below {in_path}", param_hint="IN")
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = [row for series in _group_by_series(files) for row in _copy_series(series, out_dir, deidentifier, config)]
    refused = [row for row in rows if row["outcome"] != "copied"]
    if as_json:
        context.print_json(rows)
    else:
        print(f"{len(rows) - len(refused)} copied to {out_dir}, {len(refused)} refused")
        for row in refused:
            typer.echo(f"{row['source']}: {row['text']}", err=True)
    if refused:
        raise typer.Exit(1)


def _group_by_series(files: Sequence[Path]) -> list[list[Path]]:
    """Group the files by series; a file that cannot be read is a group of its own, to be refused."""
    from dicomnode.datasets import headers
    from dicomnode.errors import NodeError

    groups: dict[str, list[Path]] = {}
    for file in files:
        try:
            uid = headers.read(file).series_uid
        except NodeError:
            uid = ""
        groups.setdefault(uid or str(file), []).append(file)
    return list(groups.values())


def _copy_series(
    files: Sequence[Path], out_dir: Path, deidentifier: Deidentifier, config: Config
) -> Iterator[dict[str, Any]]:
    from dicomnode.errors import InputRefused, NotAllowed
    from pipelines.contract import Refused

    try:
        face = _find_face(files, deidentifier, config)
    except (InputRefused, Refused) as refusal:
        yield from ({"source": str(file), "outcome": "refused", "file": "", "text": str(refusal)} for file in files)
        return
    targets: set[Path] = set()
    for file in files:
        row = {"source": str(file), "outcome": "copied", "file": "", "text": ""}
        try:
            ds = deidentifier.read(file, face)
            target = out_dir / f"{ds.SOPInstanceUID}.dcm"
            if target in targets:
                raise InputRefused("another file of the series has the same SOP Instance UID")
            targets.add(target)
            ds.save_as(target, enforce_file_format=True)
            yield row | {"file": str(target)}
        except (InputRefused, NotAllowed) as refusal:
            yield row | {"outcome": "refused", "text": str(refusal)}


def _find_face(files: Sequence[Path], deidentifier: Deidentifier, config: Config) -> SeriesFaceMask | None:
    """Return the face region of an MR series that may show one, or None; only for a profile that removes faces."""
    from dicomnode.deidentify import faces
    from dicomnode.deployment import models
    from dicomnode.reading import frames

    if not deidentifier.profile.deface:
        return None
    header = frames.read_header(files[0])
    if header.get("Modality") != "MR" or not faces.may_show_face(header):
        return None
    from dicomnode.deidentify import defacing

    return defacing.locate_face(files, models.load_without_helpers("anatomy", config))
