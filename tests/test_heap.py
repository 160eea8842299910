"""Freed memory stays with the process while it computes, and goes back to the system at the end."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource
import torch
from model_zoo.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * resource.getpagesize() // 2**20

alone = faults()
with keep_freed_memory() as is_set:
    faults(), faults()
    within = faults()
    during = resident_mb()
print(is_set, alone, within, during, resident_mb())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is set")
def test_volumes_one_after_the_other_ask_for_no_new_pages() -> None:
    """Each volume has 64 MiB."""
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, timeout=120)
    is_set, alone, within, during_mb, after_mb = done.stdout.split()
    assert is_set == "True"
    assert int(within) < int(alone) / 10
    assert int(after_mb) < int(during_mb) - 60
