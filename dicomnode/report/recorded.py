"""Measurements as a job's row records them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.contract import Interval, Measurement

__all__ = ["read_measurements"]


def read_measurements(report: Mapping[str, Any]) -> list[Measurement]:
    """Return the measurements of a job's report; a value that was no number is NaN."""
    return [_read_measurement(each) for each in report.get("measurements", ())]


def _read_measurement(each: Mapping[str, Any]) -> Measurement:
    intervals = tuple(
        Interval(float(i["level"]), float(i["low"]), float(i["high"]))
        for i in each.get("intervals", ())
        if None not in (i["low"], i["high"])
    )
    value = float("nan") if each["value"] is None else float(each["value"])
    return Measurement(
        each["name"], value, each["unit"], each.get("description", ""), each.get("group", ""), intervals=intervals
    )
