"""The GPUs of this machine and their use, as nvidia-smi reports them; torch is not loaded for it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

__all__ = ["parse_gpus", "read_gpus"]

_FIELDS = "index,name,utilization.gpu,memory.used,memory.total"
_MIB = 1 << 20
_TIMEOUT_S = 5.0


def read_gpus() -> dict[str, dict[str, Any]]:
    """Return the GPUs of this machine by index, as ``parse_gpus`` does; {} without any, or where nvidia-smi fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_gpus(done.stdout)


def parse_gpus(lines: str) -> dict[str, dict[str, Any]]:
    """Return by index the name, use as a fraction, and memory used and in all in bytes.

    ``lines``: index, name, per cent in use, MiB used, MiB in all. A value that is not a number is left out: some
    drivers do not report the use.
    """
    gpus: dict[str, dict[str, Any]] = {}
    for line in lines.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 5 or not fields[0].isdigit():
            continue
        numbers = {"use": (fields[2], 0.01), "memory_used": (fields[3], _MIB), "memory_total": (fields[4], _MIB)}
        values = {name: float(text) * unit for name, (text, unit) in numbers.items() if text.isdigit()}
        gpus[fields[0]] = {"name": fields[1]} | values
    return gpus
