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
    """Receive, route, run and deliver, until stopped."""
    from dicomnode import node
    from dicomnode.errors import NodeError
    from dicomnode.execution import launch
    from dicomnode.installation import has_torch

    config = context.config(ctx)
    context.log_to_stderr(config)
    size = launch.count_local_processes(config, config.worker.concurrency if workers is None else workers)
    if size and not has_torch():
        raise NodeError("torch is not installed on this host, and local workers need it: 'dicomnode serve --workers 0'")
    with node.stop_on_signals() as stop:
        node.serve(config, workers=size, ready=lambda line: print(line, flush=True), stop=stop)


def work(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="End when no job is waiting.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run jobs until stopped; with [worker] engine = "ray", supervise its actors."""
    from dicomnode import node
    from dicomnode.errors import NodeError
    from dicomnode.execution import launch
    from dicomnode.installation import has_torch

    config = context.config(ctx)
    if config.worker.engine == "processes" and not has_torch():
        raise NodeError("'dicomnode work' needs torch, which is not installed on this host: docs/deploying.md")
    context.log_to_stderr(config)
    node.prepare(config)
    with node.stop_on_signals() as stop:
        jobs = launch.run_workers(config, once=once, parent=parent, stop=stop)
    if once:
        print(f"{jobs} jobs taken")
