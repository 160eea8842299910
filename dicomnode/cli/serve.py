"""``dicomnode serve`` and ``dicomnode work``."""

from __future__ import annotations

from typing import Annotated

import typer

from dicomnode.cli import context

__all__ = ["serve", "work"]


def serve(
    ctx: typer.Context,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Local workers; 0: none.", show_default="worker.concurrency")
    ] = None,
) -> None:
    """Receive, route, run and deliver, until told to stop."""
    from dicomnode import node
    from dicomnode.execution import launch

    config = context.config(ctx)
    context.log_to_stderr(config)
    size = launch.count_local_processes(config, config.worker.concurrency if workers is None else workers)
    with node.stop_on_signals() as stop:
        node.serve(config, workers=size, ready=lambda line: print(line, flush=True), stop=stop)


def work(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="End when no job is waiting.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Take jobs until told to stop; with [worker] engine = "ray", see to it that its actors do."""
    from dicomnode import node
    from dicomnode.execution import launch

    config = context.config(ctx)
    context.log_to_stderr(config)
    node.prepare(config)
    with node.stop_on_signals() as stop:
        taken = launch.run_workers(config, once=once, parent=parent, stop=stop)
    if once:
        print(f"{taken} jobs taken")
