"""Checks for faults that would stop the node from working, before it starts."""

from dicomnode.checks.check import Check
from dicomnode.checks.running import run

__all__ = ["Check", "run"]
