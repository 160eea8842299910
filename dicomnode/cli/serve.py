"""``dicomnode serve`` and ``dicomnode work``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.config import Config

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
    has_nights = bool(config.learning) and parent is None and not once
    with node.stop_on_signals() as stop, _run_nights(config) if has_nights else nullcontext():
        jobs = launch.run_workers(config, once=once, parent=parent, stop=stop)
    if once:
        print(f"{jobs} jobs taken")


@contextmanager
def _run_nights(config: Config) -> Iterator[None]:
    """Start and end the nights of learning meanwhile."""
    from db import clock as clocks
    from db import engine as engines
    from dicomnode.learning.supervising import LearningSupervisor
    from dicomnode.monitoring.sweep_health import SweepHealth
    from dicomnode.sweeps import Sweeps

    engine = engines.connect(config.database_url)
    supervisor = LearningSupervisor(engines.sessions(engine), config, clocks.make_clock(engine))
    sweeps = Sweeps({"learning": supervisor.step}, sweep_health=SweepHealth(), before=lambda: None)
    sweeps.start()
    try:
        yield
    finally:
        sweeps.stop()
        supervisor.stop()
