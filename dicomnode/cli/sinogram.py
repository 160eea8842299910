"""``dicomnode sinogram``: projections of computed tomography to and from DICOM Raw Data Storage."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from dicomnode.cli import context
from dicomnode.cli.raw_objects import Overrides, parse_overrides, send_objects

__all__ = ["app"]

app = typer.Typer()

_Array = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="Array .npy: (view, bin), or (slice, view, bin).")
]
_Geometry = Annotated[
    Path, typer.Option("--geometry", exists=True, dir_okay=False, help="JSON file with the geometry of the scan.")
]


@app.command()
def wrap(ctx: typer.Context, array: _Array, out: Path, geometry: _Geometry, overrides: Overrides = None) -> None:
    """Put an array of projections with its geometry into a DICOM Raw Data object."""
    _wrap(ctx, array, geometry, out, overrides)
    print(out)


@app.command()
def unwrap(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], out: Path) -> None:
    """Take array and geometry out of a Raw Data object: one .npz file, as it was put in."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    from dicomnode import sinogram
    from pipelines.contract import Refused

    try:
        ds = pydicom.dcmread(file)
    except InvalidDicomError as error:
        raise Refused(f"{file} is not a DICOM file") from error
    out.write_bytes(sinogram.unwrap(ds))
    print(out)


@app.command()
def show(
    source: Annotated[Path, typer.Argument(exists=True, help="Raw Data object, or folder of DICOM-CT-PD.")],
) -> None:
    """Print the geometry of a scan, or the reason why it cannot be reconstructed; no patient data."""
    from dicomnode.execution.projections import describe_projections, load_projections
    from dicomnode.local_runs.candidates import list_dicom

    projections, _, _ = load_projections(list_dicom(source))
    context.print_json(describe_projections(projections))


@app.command()
def send(
    ctx: typer.Context,
    array: _Array,
    geometry: _Geometry,
    to: Annotated[str, typer.Option("--to", help="A configured peer's name, or HOST:PORT:AE_TITLE.")],
    overrides: Overrides = None,
) -> None:
    """Send projections to a peer, in a Raw Data object."""
    with TemporaryDirectory() as folder:
        wrapped = Path(folder) / "0.dcm"
        _wrap(ctx, array, geometry, wrapped, overrides)
        send_objects(ctx, [wrapped], [array], to)


def _wrap(ctx: typer.Context, array: Path, geometry: Path, out: Path, overrides: list[str] | None) -> None:
    from dicomnode import sinogram
    from pipelines.contract import Refused

    now = context.config_if_any(ctx).node.to_local_time(datetime.now(UTC))
    try:
        text = geometry.read_text()
    except UnicodeDecodeError as error:
        raise Refused(f"sinogram geometry: {geometry} is not text") from error
    packed = sinogram.pack(array.read_bytes(), text)
    sinogram.wrap(packed, now=now, facts=parse_overrides(overrides)).save_as(out, enforce_file_format=True)
