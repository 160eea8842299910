"""Unit, scale and corrections of PET values, as each of the three PET classes states them.

The classic PET Image (PS3.3 C.8.9) states them at the top. The Legacy Converted Enhanced PET Image keeps the classic
attributes in its functional groups of unassigned attributes, where ``Frame.get`` finds them. The Enhanced PET Image
(C.8.22) has other attributes: the unit stands in a real world value mapping, each correction in a YES or NO.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedPETImageStorage

from dicomnode.datasets.titles import title
from dicomnode.errors import InputRefused
from dicomnode.reading.lookup import finite

if TYPE_CHECKING:
    from dicomnode.reading.frames import Frame

__all__ = [
    "DECAY_TO_DATETIME", "UCUM", "check", "corrections", "decay_correction", "differs", "is_enhanced", "mapping",
    "philips_factor", "philips_factors", "scale", "scale_fault", "series_type", "suv_type", "unit",
    "unit_fault", "units",
]  # fmt: skip

UCUM = MappingProxyType({
    "BQML": "Bq/ml", "GML": "g/ml", "CM2ML": "cm2/ml", "CNTS": "{counts}", "CPS": "{counts}/s",
    "PROPCNTS": "{propcounts}", "PROPCPS": "{propcounts}/s", "NONE": "1", "CM2": "cm2", "PCNT": "%",
    "MGMINML": "mg/min/ml", "UMOLMINML": "umol/min/ml", "MLMING": "ml/min/g", "MLG": "ml/g", "1CM": "/cm",
    "UMOLML": "umol/ml", "MLMINML": "ml/min/ml", "MLML": "ml/ml", "STDDEV": "{standard deviations}",
})  # fmt: skip
"""Defined Terms of Units (0054,1001), PS3.3 C.8.9.1.1.3, and their UCUM codes (PS3.16 CID 84)."""
SUV_TYPES = MappingProxyType({
    code: kind
    for unit, mark, kind in (
        ("g/ml", "{SUVbw}", "BW"), ("g/ml", "{SUVlbm}", "LBM"), ("g/ml", "{SUVlbm(Janma)}", "LBMJANMA"),
        ("g/ml", "{SUVlbm(James128)}", "LBMJAMES128"), ("g/ml", "{SUVibw}", "IBW"), ("cm2/ml", "{SUVbsa}", "BSA"),
    )
    for code in (unit + mark, mark + unit)  # as PS3.16 CID 85 has it today, and as it had it
})  # fmt: skip
"""UCUM codes of a real world value mapping that say which SUV it gives; the values are SUV Types."""
DECAY_TO_DATETIME = "DATETIME"
"""Value in place of START or ADMIN where Decay Correction DateTime (0018,9701) states the moment itself."""

_TERM_OF = MappingProxyType(
    {ucum.casefold(): term for term, ucum in UCUM.items() if term != "NONE"}
    | {code.casefold(): "CM2ML" if term == "BSA" else "GML" for code, term in SUV_TYPES.items()}
)
_CORRECTIONS = MappingProxyType({
    "DecayCorrected": "DECY", "AttenuationCorrected": "ATTN", "ScatterCorrected": "SCAT", "DeadTimeCorrected": "DTIM",
    "GantryMotionCorrected": "MOTN", "PatientMotionCorrected": "PMOT", "CountLossNormalizationCorrected": "CLN",
    "RandomsCorrected": "RAN", "NonUniformRadialSamplingCorrected": "RADL", "SensitivityCalibrated": "DCAL",
    "DetectorNormalizationCorrection": "NORM",
})  # fmt: skip
"""Attributes of Enhanced PET (C.8.22.6), and the terms of Corrected Image (0028,0051) that mean the same."""
_PHILIPS = (0x7053, "Philips PET Private Group")
_SUV_SCALE, _ACTIVITY_SCALE = 0x00, 0x09  # SUV and activity concentration (Bq/ml) per count


def check(frames: Sequence[Frame]) -> None:
    """Raise InputRefused where the frames of one PET series disagree on what their values mean, or are no image."""
    frames = [frame for frame in frames if frame.get("Modality") == "PT"]
    for keyword, of in (
        ("Units", units), ("SUVType", _suv_type), ("DecayCorrection", decay_correction),
        ("CorrectedImage", _sorted_corrections), ("CountsSource", lambda frame: str(frame.get("CountsSource", ""))),
    ):  # fmt: skip
        found = {of(frame) for frame in frames}
        if len(found) > 1:
            value = ", ".join(sorted("\\".join(each) if isinstance(each, tuple) else each or "none" for each in found))
            raise InputRefused(f"the PET slices differ in {title(keyword)}: {value}; one image needs one")
    for frame in frames[:1]:
        if frame.get("CountsSource") == "TRANSMISSION" and units(frame) != "1CM":
            raise InputRefused(
                f"{title('CountsSource')} is TRANSMISSION, but {title('Units')} are {units(frame)}: an image of "
                "attenuation has no activity"
            )
        if "REPROJECTION" in series_type(frame):
            raise InputRefused(f"{title('SeriesType')} is REPROJECTION: projections, of which no volume is made")


def differs(frames: Iterable[Frame], keyword: str) -> bool:
    """Return whether the frames state several values of an attribute, none being one of them."""
    return len({str(frame.get(keyword, "")) for frame in frames}) > 1


def is_enhanced(frame: Frame) -> bool:
    """Return whether a frame is of an Enhanced PET Image, which states its attributes in another way."""
    return str(frame.header.get("SOPClassUID", "")) == EnhancedPETImageStorage


def units(frame: Frame) -> str:
    """Return Units (0054,1001) as stated, or the term for what an Enhanced PET's mapping or Rescale Type says."""
    value = str(frame.get("Units", ""))
    if value or not is_enhanced(frame):
        return value
    used = mapping(frame)
    if used is not None:
        return _term(used)
    transformation = frame.item("PixelValueTransformationSequence") or Dataset()
    rescaled = str(transformation.get("RescaleType", ""))
    return rescaled if rescaled in UCUM else _TERM_OF.get(rescaled.casefold(), "")


def unit(frame: Frame) -> str:
    """Return the UCUM code of a frame's values, once ``unit_fault`` finds no fault."""
    return "Bq/ml" if philips_factor(frame) else UCUM[units(frame)]


def unit_fault(frame: Frame) -> str:
    """Return why the unit of a frame's values is unknown, or ""."""
    value = units(frame)
    if value in UCUM:
        return ""
    if value:
        return f"{title('Units')} of PET are {value!r}, which PS3.3 C.8.9.1.1.3 does not define"
    if not is_enhanced(frame):
        return f"PET without {title('Units')}"
    codes = ", ".join(_code(item) or "none" for item in _mappings(frame))
    state = f"is in {codes}" if codes else "is missing"
    return (
        f"Enhanced PET whose Real World Value Mapping Sequence (0040,9096) {state}, so that the unit of its values is "
        "not known; needed is one mapping in a unit of PET such as Bq/ml"
    )


def scale_fault(frame: Frame, place: Dataset) -> str:
    """Return why the rescale at ``place`` gives no values, or "" (PS3.3 C.8.9.4: slope type 1, intercept 0)."""
    if place.get("ModalityLUTSequence"):
        return "PET with a Modality LUT Sequence (0028,3000), which its class does not have"
    slope, intercept = (finite(place.get(keyword)) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if slope is None:
        return f"PET without a readable {title('RescaleSlope')}: stored values are in no unit"
    if slope <= 0:
        return f"{title('RescaleSlope')} of PET is {slope:g}; it has to be above 0"
    if intercept is None and place.get("RescaleIntercept") not in (None, ""):
        return f"{title('RescaleIntercept')} of PET is no number"
    if intercept and not is_enhanced(frame):
        return f"{title('RescaleIntercept')} of PET is {intercept:g}; it has to be 0 (PS3.3 C.8.9.4)"
    return ""


def scale(frame: Frame, place: Dataset) -> tuple[float, float]:
    """Return slope and intercept from stored values to ``unit``, once ``scale_fault`` finds no fault.

    An intercept that is not stated is 0, as it has to be; pydicom would then leave the slope out too.
    """
    factor = philips_factor(frame) or 1.0
    return factor * float(place.RescaleSlope), factor * (finite(place.get("RescaleIntercept")) or 0.0)


def mapping(frame: Frame) -> Dataset | None:
    """Return the real world value mapping of an Enhanced PET: the one in Bq/ml, else the only one in a unit of PET.

    In the other classes mappings are SUVs beside the image's own Units.
    """
    if not is_enhanced(frame) or frame.get("Units"):
        return None
    known = [item for item in _mappings(frame) if _term(item)]
    activity = [item for item in known if _term(item) == "BQML"]
    candidates = activity or known
    return candidates[0] if len(candidates) == 1 else None


def decay_correction(frame: Frame) -> str:
    """Return START, ADMIN or NONE as stated; of Enhanced PET NONE or ``DECAY_TO_DATETIME``."""
    corrected = frame.get("DecayCorrected") if is_enhanced(frame) else None
    if corrected is None:
        return str(frame.get("DecayCorrection", ""))
    return {"YES": DECAY_TO_DATETIME, "NO": "NONE"}.get(str(corrected), "")


def corrections(frame: Frame) -> tuple[str, ...] | None:
    """Return the terms of Corrected Image (0028,0051), or None where nothing is stated."""
    value = frame.get("CorrectedImage")
    if value is None and is_enhanced(frame):
        flags = {keyword: frame.get(keyword) for keyword in _CORRECTIONS}
        found = tuple(term for keyword, term in _CORRECTIONS.items() if flags[keyword] == "YES")
        return found if any(flag is not None for flag in flags.values()) else None
    return None if value is None else (value,) if isinstance(value, str) else tuple(map(str, value))


def series_type(frame: Frame) -> tuple[str, ...]:
    """Return Series Type (0054,1000), or what value 3 of an Enhanced PET's Image Type says of it."""
    value = frame.get("SeriesType")
    if value:
        return (value,) if isinstance(value, str) else tuple(map(str, value))
    flavour = "".join(list(frame.get("ImageType") or ())[2:3]) if is_enhanced(frame) else ""
    return ("GATED",) if flavour.endswith("GATED") else ("DYNAMIC",) if flavour == "DYNAMIC" else ()


def suv_type(frame: Frame) -> str:
    """Return SUV Type (0054,1006), BW where a classic image in g/ml does not state it (C.8.9.1), or ""."""
    used = mapping(frame)
    if used is not None:
        return SUV_TYPES.get(_code(used), "")
    return _suv_type(frame) or ("BW" if frame.get("Units") == "GML" else "")


def philips_factors(frame: Frame) -> tuple[float | None, float | None]:
    """Return SUV per count (7053,1000) and Bq/ml per count (7053,1009) of Philips, each positive or None."""
    return _philips_number(frame, _SUV_SCALE), _philips_number(frame, _ACTIVITY_SCALE)


def philips_factor(frame: Frame) -> float | None:
    """Return what turns Philips' counts into Bq/ml, or None where the image is in another unit."""
    return philips_factors(frame)[1] if frame.get("Modality") == "PT" and frame.get("Units") == "CNTS" else None


def _suv_type(frame: Frame) -> str:
    return str(frame.get("SUVType", ""))


def _sorted_corrections(frame: Frame) -> tuple[str, ...]:
    return tuple(sorted(set(corrections(frame) or ())))


def _mappings(frame: Frame) -> Sequence[Dataset]:
    for place in (*frame.groups, frame.header):
        found: Sequence[Dataset] = place.get("RealWorldValueMappingSequence") or ()
        if found:
            return found
    return ()


def _code(item: Dataset) -> str:
    units_codes = item.get("MeasurementUnitsCodeSequence") or [Dataset()]
    return str(units_codes[0].get("CodeValue", ""))


def _term(item: Dataset) -> str:
    """Return the defined term for a mapping's unit, or "" for one that is none of PET, "1" among them."""
    return _TERM_OF.get(_code(item).casefold(), "")


def _philips_number(frame: Frame, element: int) -> float | None:
    for place in _private_places(frame):
        try:
            factor = finite(place.private_block(*_PHILIPS)[element].value)
        except KeyError:
            continue
        return factor if factor and factor > 0 else None
    return None


def _private_places(frame: Frame) -> Iterator[Dataset]:
    yield frame.header
    yield from frame.unassigned()
