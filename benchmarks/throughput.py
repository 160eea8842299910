"""Studies per minute with so many workers: one PostgreSQL, one spool, each worker with a data folder of its own.

    python -m benchmarks.throughput [--workers 1 2 4] [--studies 100] [--steps 2]

Small studies of k-space (one slice of 48 x 64) wait in the queue; workers of one thread each take them, on this
machine. Each worker has run one job before, alone, so that the start of Python and torch is not in it; the clock runs
from the moment when all may go to the end of the last study. With ``--steps 2`` a job is mostly reading, rows, writing
and fsync; with more steps it is mostly arithmetic. Processor seconds are the workers' own, without PostgreSQL's and the
receiver's. Workers beyond the number of cores cannot bring more; pin the whole (``taskset``) to learn what so many
cores bring.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests import fleet, postgresql
from tests.peers import Node, wait_for

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 3600.0


@dataclass(frozen=True)
class Run:
    """``studies`` were worked on by ``workers`` after all had begun; ``processor_s``: of the workers together."""

    workers: int
    studies: int
    seconds: float
    processor_s: float

    @property
    def per_minute(self) -> float:
        return 60 * self.studies / self.seconds


def main() -> None:
    """Measure and print the table of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    runs = [measure(count, args.studies, args.steps) for count in args.workers]
    print(f"{args.studies} studies of {args.steps} steps; {cores} cores, load before it {load:.1f}\n")
    print(table(runs))


def measure(count: int, studies: int, steps: int) -> Run:
    """Measure ``count`` workers on a queue that is full before they start."""
    options = {"steps": steps, "mean_steps": steps}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throughput-")))
        url = stack.enter_context(stack.enter_context(postgresql.run_server()).database())
        site = fleet.Site(root, url, options=options)
        receiver = stack.enter_context(site.receiver())
        files = fleet.write_small_studies(root / "send", count + studies, datetime.now(UTC))
        workers = [_warm_worker(stack, site, receiver, files[: n + 1]) for n in range(count)]
        fleet.send_studies(receiver, files)
        begin, processor_s = time.monotonic(), _processor_s(workers)
        for worker in workers:
            os.kill(worker.program.pid, signal.SIGCONT)
        wait_for(lambda: fleet.count_ended_jobs(receiver) == len(files), "the end", within_s=_PATIENCE_S)
        return Run(count, studies, time.monotonic() - begin, _processor_s(workers) - processor_s)


def _warm_worker(stack: ExitStack, site: fleet.Site, receiver: Node, files: list[Path]) -> Node:
    """Start a worker that has run one job and waits for the signal to go on."""
    fleet.send_studies(receiver, files)
    worker = stack.enter_context(Node(site.host(f"host{len(files)}", lease_s=600), "work"))
    wait_for(lambda: fleet.count_ended_jobs(receiver) == len(files), "the first job", within_s=_PATIENCE_S)
    os.kill(worker.program.pid, signal.SIGSTOP)
    return worker


def table(runs: list[Run]) -> str:
    """Return the table in Markdown; the gain is over the first row."""
    lines = ["| workers | studies/min | gain | processor s per study |", "| ---: | ---: | ---: | ---: |"]
    for run in runs:
        gain = run.per_minute / runs[0].per_minute
        lines.append(f"| {run.workers} | {run.per_minute:.0f} | {gain:.2f} | {run.processor_s / run.studies:.3f} |")
    return "\n".join(lines)


def _processor_s(workers: list[Node]) -> float:
    """Return the processor time that these processes have used so far (proc(5), utime and stime)."""
    fields = [Path(f"/proc/{node.program.pid}/stat").read_text().rpartition(")")[2].split() for node in workers]
    return sum(int(each[11]) + int(each[12]) for each in fields) / _TICKS_PER_S


if __name__ == "__main__":
    main()
