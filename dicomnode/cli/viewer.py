"""``dicomnode viewer``: OHIF, which the node serves at /viewer."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli import context

__all__ = ["app"]

app = typer.Typer()


@app.command()
def install(
    ctx: typer.Context,
    package: Annotated[
        Path | None, typer.Option("--from", help="The package as a file, instead of from npm.", show_default=False)
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--into", help="The folder to put it in.", show_default="[web] viewer_dir")
    ] = None,
) -> None:
    """Install the viewer's prebuilt files from its npm package."""
    from dicomnode.web import ohif

    where = into or ohif.viewer_folder(context.config(ctx).web)
    if package is None and ohif.find_installed(where):
        print(f"{ohif.PACKAGE} {ohif.VERSION} is in {where} already")
        return
    with tempfile.TemporaryDirectory() as temporary:
        facts = ohif.install_viewer(package or ohif.fetch_package(Path(temporary)), where)
    print(f"{facts.package} {facts.version}: {facts.files} files in {where}")


@app.command()
def show(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """Show the installed viewer and its folder."""
    from dicomnode.errors import NotFound
    from dicomnode.web import ohif

    where = ohif.viewer_folder(context.config(ctx).web)
    viewer = ohif.find_installed(where)
    if viewer is None:
        raise NotFound(f"no viewer {ohif.VERSION} in {where}: 'dicomnode viewer install'")
    context.print_rows([asdict(viewer)], ["package", "version", "files", "folder"], as_json=as_json)
