"""``dicomnode kspace``: ISMRMRD/MRD files to and from DICOM Raw Data Storage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from dicomnode.cli import context
from dicomnode.cli.raw_objects import Overrides, parse_overrides, send_objects

__all__ = ["app"]

app = typer.Typer()

_Source = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]
_HDF5 = b"\x89HDF\r\n\x1a\n"


@app.command()
def wrap(ctx: typer.Context, file: _Source, out: Path, overrides: Overrides = None) -> None:
    """Put an MRD file into a DICOM Raw Data object."""
    _wrap(ctx, file, out, overrides)
    print(out)


@app.command()
def unwrap(file: _Source, out: Path) -> None:
    """Take the MRD file out of a Raw Data object, byte for byte as it was put in."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    from dicomnode import mrd
    from pipelines.contract import Refused

    try:
        ds = pydicom.dcmread(file)
    except InvalidDicomError as error:
        raise Refused(f"{file} is not a DICOM file") from error
    out.write_bytes(mrd.unwrap(ds))
    print(out)


@app.command()
def convert(
    source: _Source,
    out: Path,
    voxel_mm: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Slice, row and column spacing in mm, which an array does not state. Default: 1 1 1 for a "
                     "plane of a 3D acquisition (.npy), 5 1 1 for slices (.mat); the file then says: assumed."),
    ] = None,
    slice_thickness_mm: Annotated[float | None, typer.Option(help="Default: the slice spacing.")] = None,
) -> None:  # fmt: skip
    """Make an MRD file of a k-space array: .npy (coil, ky, kz) or .mat 'kspace' (readout, phase, slice)."""
    from dicomnode import mrd

    converted = mrd.convert(source, voxel_mm=voxel_mm, slice_thickness_mm=slice_thickness_mm)
    mrd.write(converted, out)
    for note in converted.header.userParameters.userParameterString:
        typer.echo(f"{note.name}: {note.value}", err=True)
    print(out)


@app.command()
def show(file: _Source) -> None:
    """Print the facts of an acquisition, or the reason why it cannot be reconstructed; no patient data.

    Several contrasts or sets give a list.
    """
    import pydicom

    from dicomnode import mrd

    content = file.read_bytes() if _is_mrd(file) else mrd.unwrap(pydicom.dcmread(file))
    facts = [facts for _, facts in mrd.to_images(mrd.read(content))]
    context.print_json(facts if len(facts) > 1 else facts[0])


@app.command()
def send(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="MRD files or Raw Data objects.")],
    to: Annotated[str, typer.Option("--to", help="A configured peer's name, or HOST:PORT:AE_TITLE.")],
    overrides: Overrides = None,
) -> None:
    """Send k-space to a peer; an MRD file is put into a Raw Data object first."""
    with TemporaryDirectory() as folder:
        send_objects(ctx, _wrap_all(ctx, files, Path(folder), overrides), files, to)


def _wrap_all(ctx: typer.Context, files: Sequence[Path], folder: Path, overrides: list[str] | None) -> list[Path]:
    objects = []
    for number, file in enumerate(files):
        if _is_mrd(file):
            objects.append(folder / f"{number}.dcm")
            _wrap(ctx, file, objects[-1], overrides)
        elif overrides:
            raise typer.BadParameter(f"{file} is a DICOM object already", param_hint="--set")
        else:
            objects.append(file)
    return objects


def _wrap(ctx: typer.Context, file: Path, out: Path, overrides: list[str] | None) -> None:
    from dicomnode import mrd

    facts = parse_overrides(overrides)
    now = context.config_if_any(ctx).node.to_local_time(datetime.now(UTC))
    with file.open("rb") as stream:
        mrd.wrap(stream, now=now, facts=facts).save_as(out, enforce_file_format=True)


def _is_mrd(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_HDF5)) == _HDF5
