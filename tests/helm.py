"""The chart deploy/helm/dicomnode, rendered by the helm program or by Helm's own engine in Python."""

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

__all__ = ["CHART", "Refused", "lint", "merge", "render"]

CHART = Path(__file__).parent.parent / "deploy" / "helm" / "dicomnode"

Values = Mapping[str, Any]


class Refused(Exception):
    """Error of values that the chart does not accept."""


def merge(values: Values, more: Values) -> dict[str, Any]:
    """Return ``values`` overridden by ``more``, section by section."""
    result = dict(values)
    for key, value in more.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def render(values: Values, folder: Path) -> list[dict[str, Any]]:
    """Return every object of the release ``site``; skip the test without any form of Helm.

    Raises Refused.
    """
    text = _render_by_program(values, folder) if shutil.which("helm") else _render_by_engine(values)
    return [each for each in yaml.safe_load_all(text) if each]


def lint(values: Values, folder: Path) -> list[str]:
    """Return the errors that Helm finds in the chart."""
    if shutil.which("helm"):
        command = ["helm", "lint", "--quiet", str(CHART), "--values", str(_write_values(values, folder))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [] if done.returncode == 0 else [done.stdout + done.stderr]
    return list(_import_engine().lint(str(CHART), values=dict(values))["errors"])


def _write_values(values: Values, folder: Path) -> Path:
    path = folder / "values.json"
    path.write_text(json.dumps(values))
    return path


def _render_by_program(values: Values, folder: Path) -> str:
    command = ["helm", "template", "site", str(CHART), "--values", str(_write_values(values, folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def _render_by_engine(values: Values) -> str:
    engine = _import_engine()
    try:
        with engine.Chart.load(str(CHART)) as chart:
            chart.validate_schema(dict(values))
            files: dict[str, str] = chart.render(dict(values), name="site", namespace="imaging")
    except engine.HelmError as error:
        raise Refused(str(error)) from None
    return "\n---\n".join(text for path, text in sorted(files.items()) if path.endswith(".yaml"))


def _import_engine() -> Any:
    try:
        return importlib.import_module("helm_python")
    except ImportError:
        pytest.skip("helm is not installed (or: pip install helm-python-sdk)")
