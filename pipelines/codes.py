"""Coded concepts that several pipelines speak of."""

from __future__ import annotations

from pipelines.contract import Code

__all__ = ["LOW_CONFIDENCE", "SPATIAL", "STANDARD_DEVIATION", "VOLUME"]

STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")
VOLUME = Code("118565006", "SCT", "Volume")
SPATIAL = Code("309825002", "SCT", "Spatial and Relational Concept")
LOW_CONFIDENCE = Code("LOWCONF", "99DICOMNODE", "Low-confidence region of a result")
