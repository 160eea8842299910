"""Modality values of a result: its quantity times a power of 1000, so that a viewer's window steps are usable.

Viewers show windows in modality values, and many round them to whole numbers: SUVR from 0 to 2 would be "W:2 L:1".
Rescale Type (PS3.3 C.11.1.1.2) then states the unit of the modality values, as HU or in UCUM, ``10*-3.{SUVr}``; the
Real World Value Mapping (C.7.6.16.2.11) states unit and slope of the quantity itself.
"""

from __future__ import annotations

import math

from pydicom.dataset import Dataset

from dicomnode.reading.lookup import name_rescale_type

__all__ = ["choose_factor", "scale_window", "set_mapping", "set_rescale"]

_LEAST_WIDTH = 100
_STEP = 1000
_KEPT_UNITS = frozenset({"Bq/ml", "[hnsf'U]"})
"""Units in which viewers show windows and values as they are; one factor for all patients."""
_SMALL_UNITS = "{SUV"
"""Part of the units of SUV and SUVR: a few units wide in every patient, so always times 1000."""


def choose_factor(unit: str, window: tuple[float, float]) -> int:
    """Return the factor from the quantity to modality values: the same for every image of a unit that has a meaning.

    Images in arbitrary units get the smallest power of 1000 that makes the window at least 100 wide.
    """
    width = window[1] - window[0]
    if unit in _KEPT_UNITS or width <= 0:
        return 1
    if _SMALL_UNITS in unit:
        return _STEP
    steps = max(0, math.ceil(math.log(_LEAST_WIDTH / width, _STEP)))
    return int(_STEP**steps)


def scale_window(window: tuple[float, float], factor: int) -> tuple[float, float]:
    """Return the window in modality values; a wide one so that its centre and width are whole numbers."""
    low, high = factor * window[0], factor * window[1]
    if high - low < _LEAST_WIDTH:
        return low, high
    low, high = math.floor(low), math.floor(high)  # not above the brightest value: the label is as bright as that
    return low, high - (low + high + 1) % 2  # centre + 0.5 (``image.set_window``)


def set_rescale(ds: Dataset, slope: str, intercept: str, unit: str, factor: int) -> None:
    """Set the rescale to modality values, ``factor`` times the quantity in ``unit`` (UCUM)."""
    ds.RescaleIntercept, ds.RescaleSlope = intercept, slope
    ds.RescaleType = name_rescale_type(unit, factor)


def set_mapping(ds: Dataset, unit: str, factor: int, name: str, span: tuple[int, int]) -> None:
    """Set the mapping from stored values to the quantity; ``span``: first and last stored value."""
    mapping, units = Dataset(), Dataset()
    units.CodeValue, units.CodingSchemeDesignator = unit, "UCUM"
    units.CodeMeaning = "no units" if unit == "1" else unit
    mapping.MeasurementUnitsCodeSequence = [units]
    mapping.LUTLabel, mapping.LUTExplanation = "QUANTITY", name
    vr = "SS" if ds.PixelRepresentation else "US"
    mapping.add_new("RealWorldValueFirstValueMapped", vr, span[0])
    mapping.add_new("RealWorldValueLastValueMapped", vr, span[1])
    mapping.RealWorldValueIntercept = float(ds.RescaleIntercept) / factor
    mapping.RealWorldValueSlope = float(ds.RescaleSlope) / factor
    ds.RealWorldValueMappingSequence = [mapping]
