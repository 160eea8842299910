"""``dicomnode demo``: what ``make demo`` runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dicomnode.demo import Demo, Node, Watch

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("out/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the node and its PACS running.")] = False,
) -> None:
    """Send real k-space to a node on loopback and get the reconstructed MR image back in a PACS."""
    from dicomnode.demo import Demo
    from dicomnode.node import stop_on_signals

    began = time.monotonic()
    with stop_on_signals() as stop:
        run = Demo(out.resolve() / time.strftime("%Y%m%d-%H%M%S"), stop)
        kspace, description = run.kspace()
        print(description)
        wrapped = run.raw_data(kspace)
        with run.site(keep=keep) as (node, pacs):
            _show(run, wrapped, node, pacs, began)
            _go_on(run.folder, node, pacs, keep)


def _show(run: Demo, wrapped: Path, node: Node, pacs: Node, began: float) -> None:
    """Send, follow, and tell what came back."""
    from dicomnode import picture

    print(f"node {node.ae_title} on port {node.port}, PACS {pacs.ae_title} on port {pacs.port} (loopback)")
    run.send(wrapped, node)
    with _progress() as watch:
        received = run.wait_for_results(node, pacs, watch)
    print(f"in the PACS after {time.monotonic() - began:.0f} s:")
    for result in received:
        print(f"  {result.series_description}: {result.path}")
    panels = run.folder / "demo.png"
    picture.draw(run.folder / "kspace.h5", received, panels)
    print(f"picture: {panels}")


def _go_on(folder: Path, node: Node, pacs: Node, keep: bool) -> None:
    """What to do next."""
    print(f"what the node knows of it: dicomnode --config {node.config_file} studies list")
    if keep:
        print(f"pages and viewer: {node.web}")
        print(f"running: node (process {node.process.pid}), PACS (process {pacs.process.pid}); stop them with")
        print(f"  kill {node.process.pid} {pacs.process.pid}")
        print(f"send more: dicomnode send FILES --to 127.0.0.1:{node.port}:{node.ae_title}")
    else:
        print("nothing is left running (make demo KEEP=1 leaves it)")


@contextmanager
def _progress() -> Iterator[Watch]:
    """A bar on a terminal; elsewhere a line whenever the step changes."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console) as bar:
            task = bar.add_task("sending", total=1.0)
            yield lambda done, step: bar.update(task, completed=done, description=step)
        return
    last = [""]

    def line(done: float, step: str) -> None:
        if step != last[0]:
            last[0] = step
            print(f"  {100 * done:3.0f} %  {step}", flush=True)

    yield line
