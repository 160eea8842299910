"""The processes that train together: one, or as many as ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

__all__ = ["World", "join_world"]


@dataclass(frozen=True)
class World:
    """This process's ``rank`` among ``size`` processes, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True in the process that writes the files."""
        return self.rank == 0

    def make_seed_key(self, seed: int, step: int) -> tuple[int, ...]:
        """Return the seed of this process's draws at ``step``; the first process's does not depend on ``size``."""
        return (seed, step, self.rank) if self.rank else (seed, step)

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that ``torchrun`` started (gloo on CPU, nccl on CUDA), or train in this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(torch.device(device))
        return
    cuda = device.startswith("cuda")
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device(device)
    if cuda:
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if cuda else "gloo", device_id=own if cuda else None)
    try:
        yield World(own, distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
