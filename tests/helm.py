"""deploy/helm/dicomnode as Kubernetes would get it: rendered by the helm program, or by Helm's own engine in Python."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = ["CHART", "Refused", "lint", "merged", "rendered"]

CHART = Path(__file__).parent.parent / "deploy" / "helm" / "dicomnode"

Values = Mapping[str, Any]


class Refused(Exception):
    """The chart does not take these values."""


def merged(values: Values, more: Values) -> dict[str, Any]:
    """``values`` with those of ``more`` in their place, section by section."""
    out = dict(values)
    for key, value in more.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def rendered(values: Values, folder: Path) -> list[dict[str, Any]]:
    """Every object, as the release ``site``. Raises Refused; skips where Helm is in no form."""
    text = _by_program(values, folder) if shutil.which("helm") else _by_engine(values)
    return [each for each in yaml.safe_load_all(text) if each]


def lint(values: Values, folder: Path) -> list[str]:
    """What Helm finds wrong with the chart."""
    if shutil.which("helm"):
        command = ["helm", "lint", "--quiet", str(CHART), "--values", str(_written(values, folder))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [] if done.returncode == 0 else [done.stdout + done.stderr]
    return list(_engine().lint(str(CHART), values=dict(values))["errors"])


def _written(values: Values, folder: Path) -> Path:
    path = folder / "values.json"
    path.write_text(json.dumps(values))
    return path


def _by_program(values: Values, folder: Path) -> str:
    command = ["helm", "template", "site", str(CHART), "--values", str(_written(values, folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def _by_engine(values: Values) -> str:
    engine = _engine()
    try:
        with engine.Chart.load(str(CHART)) as chart:
            chart.validate_schema(dict(values))
            files: dict[str, str] = chart.render(dict(values), name="site", namespace="imaging")
    except engine.HelmError as error:
        raise Refused(str(error)) from None
    return "\n---\n".join(text for path, text in sorted(files.items()) if path.endswith(".yaml"))


def _engine() -> Any:
    try:
        return importlib.import_module("helm_python")
    except ImportError:
        pytest.skip("helm is not installed (or: pip install helm-python-sdk)")
