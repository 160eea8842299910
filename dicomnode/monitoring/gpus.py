"""The GPUs of this machine and how much of them is in use, as NVIDIA's own program says; no torch is loaded for it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

__all__ = ["parsed", "seen"]

_FIELDS = "index,name,utilization.gpu,memory.used,memory.total"
_MIB = 1 << 20
_PATIENCE_S = 5.0


def seen() -> dict[str, dict[str, Any]]:
    """By index: name, use as a fraction (absent where the driver does not tell), memory in bytes; {} without any."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parsed(done.stdout)


def parsed(lines: str) -> dict[str, dict[str, Any]]:
    """Lines of index, name, per cent in use, MiB used, MiB in all; what is no number is left out."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != 5 or not words[0].isdigit():
            continue
        numbers = {"use": (words[2], 0.01), "memory_used": (words[3], _MIB), "memory_total": (words[4], _MIB)}
        told = {name: float(word) * unit for name, (word, unit) in numbers.items() if word.isdigit()}
        found[words[0]] = {"name": words[1]} | told
    return found
