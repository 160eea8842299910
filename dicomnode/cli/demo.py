"""``dicomnode demo``, which ``make demo`` runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.demo import Demo, Node, ProgressCallback

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("out/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the node and its PACS running.")] = False,
) -> None:
    """Send k-space to a node on loopback and get the reconstructed MR image back in a PACS.

    The k-space is real where the data kit is on this machine, else that of a simulated head.
    """
    from dicomnode.demo import Demo
    from dicomnode.node import stop_on_signals

    began = time.monotonic()
    with stop_on_signals() as stop:
        run = Demo(out.resolve() / time.strftime("%Y%m%d-%H%M%S"), stop)
        kspace, description = run.make_kspace()
        print(description)
        raw_data = run.write_raw_data(kspace)
        with run.run_nodes(keep=keep) as (node, pacs):
            _send_and_show(run, raw_data, description, node, pacs, began)
            _print_next_steps(run.folder, node, pacs, keep)


def _send_and_show(run: Demo, raw_data: Path, description: str, node: Node, pacs: Node, began: float) -> None:
    """Send the k-space, follow its study, and print and draw the results."""
    from dicomnode import picture

    print(f"node {node.ae_title} on port {node.port}, PACS {pacs.ae_title} on port {pacs.port} (loopback)")
    run.send(raw_data, node)
    with _show_progress() as report_progress:
        results = run.wait_for_results(node, pacs, report_progress)
    print(f"in the PACS after {time.monotonic() - began:.0f} s:")
    for result in results:
        print(f"  {result.series_description}: {result.path}")
    panels = run.folder / "demo.png"
    picture.draw(run.folder / "kspace.h5", results, panels, title=description)
    print(f"picture: {panels}")


def _print_next_steps(folder: Path, node: Node, pacs: Node, keep: bool) -> None:
    print(f"the study in the node: dicomnode --config {node.config_file} studies list")
    if keep:
        print(f"pages and viewer: {node.web}")
        print(f"running: node (process {node.process.pid}), PACS (process {pacs.process.pid}); stop them with")
        print(f"  kill {node.process.pid} {pacs.process.pid}")
        print(f"send more: dicomnode send FILES --to 127.0.0.1:{node.port}:{node.ae_title}")
    else:
        print("nothing is left running (make demo KEEP=1 leaves it)")


@contextmanager
def _show_progress() -> Iterator[ProgressCallback]:
    """Show a bar on a terminal; elsewhere print a line whenever the step changes."""
    last = [""]

    def print_step(done: float, step: str) -> None:
        if step != last[0]:
            last[0] = step
            print(f"  {100 * done:3.0f} %  {step}", flush=True)

    with context.show_progress_bar("sending") as bar:
        yield bar.update if bar.is_drawn else print_step
