"""Facts that a NIfTI file cannot hold: from the JSON file beside it (BIDS), its name, and the user's options.

All become attributes of DICOM, so that input contracts and routes see them as those of a header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydicom.datadict import tag_for_keyword

from dicomnode.errors import InputRefused
from dicomnode.nifti.images import strip_suffix

__all__ = ["KEYWORDS", "list_unknown", "name_options", "parse_fact", "parse_value", "read_stated"]

KEYWORDS = MappingProxyType({
    "modality": "Modality", "manufacturer": "Manufacturer", "body_part": "BodyPartExamined", "image_type": "ImageType",
    "acquisition_type": "MRAcquisitionType", "scanning_sequence": "ScanningSequence", "tr_ms": "RepetitionTime",
    "te_ms": "EchoTime", "ti_ms": "InversionTime", "flip_angle_deg": "FlipAngle",
    "field_strength_t": "MagneticFieldStrength", "age_years": "PatientAge", "sex": "PatientSex",
    "weight_kg": "PatientWeight", "units": "Units", "corrections": "CorrectedImage", "tracer": "Radiopharmaceutical",
    "decay_correction": "DecayCorrection", "description": "SeriesDescription",
})  # fmt: skip
"""Attribute of DICOM that holds a fact, by the fact's name in input contracts."""
_TAG = re.compile(r"\([0-9A-Fa-f]{4},[0-9A-Fa-f]{4}\)")
_FACT_OF_TAG = MappingProxyType({
    f"({tag >> 16:04X},{tag & 0xFFFF:04X})": fact
    for fact, keyword in KEYWORDS.items()
    for tag in [tag_for_keyword(keyword) or 0]
})  # fmt: skip
_OF = {"MR": ("te_ms", "ti_ms", "tr_ms", "field_strength_t", "body_part", "age_years"),
       "PT": ("units", "corrections", "tracer", "weight_kg", "body_part"),
       "CT": ("body_part", "age_years")}  # fmt: skip
"""Facts whose absence is reported, by modality."""
_NUMBERS = frozenset({"tr_ms", "te_ms", "ti_ms", "flip_angle_deg", "field_strength_t", "weight_kg"})
_LISTS = frozenset({"image_type", "scanning_sequence", "corrections"})
_SECONDS = frozenset({"RepetitionTime", "EchoTime", "InversionTime"})
_POSITIVE = _SECONDS | {"FlipAngle", "MagneticFieldStrength", "PatientWeight"}
_FROM_SIDECAR = frozenset(KEYWORDS.values()) - {"PatientAge", "Modality", "CorrectedImage", "DecayCorrection", "Units"}
_UNITS = {"bq/ml": "BQML", "suv": "GML", "g/ml": "GML", "counts": "CNTS"}
_BY_SUFFIX = {
    "T1w": "MR",
    "T2w": "MR",
    "FLAIR": "MR",
    "PDw": "MR",
    "T2starw": "MR",
    "UNIT1": "MR",
    "pet": "PT",
    "ct": "CT",
}
_AGE = range(1, 131)
_YES = ("true", "yes", "y", "1", "1.0")
_SYNTHETIC = "synthetic"
"""Suffix of the images of a model in a BIDS dataset of this node."""


def read_stated(path: Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of DICOM that are stated about a NIfTI file.

    ``defaults``: values by keyword, for what neither its name nor its JSON file states. Raises InputRefused.
    """
    found: dict[str, Any] = {"SeriesDescription": strip_suffix(path)}
    suffix = strip_suffix(path).rpartition("_")[2]
    if suffix in _BY_SUFFIX:
        found["Modality"] = _BY_SUFFIX[suffix]
    if suffix.casefold() == _SYNTHETIC:
        found["SyntheticData"] = "YES"
    return dict(defaults) | found | _read_sidecar(path.with_name(f"{strip_suffix(path)}.json"))


def parse_fact(text: str) -> tuple[str, str, Any]:
    """Return input ("" for the first one), keyword and value of ``[INPUT.]FACT=VALUE``. Raises ValueError."""
    key, equals, value = text.partition("=")
    input_name, _, fact = key.rpartition(".")
    if not equals or not value or fact not in KEYWORDS:
        raise ValueError(f"{text!r} is not [INPUT.]FACT=VALUE with a FACT of: {', '.join(KEYWORDS)}")
    return input_name, KEYWORDS[fact], parse_value(fact, value)


def list_unknown(attributes: Mapping[str, Any]) -> list[str]:
    """Return the facts of the image's modality that nothing states, by their names in ``--fact``."""
    return [fact for fact in _OF.get(str(attributes.get("Modality")), ()) if KEYWORDS[fact] not in attributes]


def name_options(reason: str, files: Mapping[str, bool], main: str) -> str:
    """Return a reason to refuse inputs with the option that states a fact in place of its tag.

    ``files``: for each input by name, whether it is a NIfTI file, which has no attributes. What a reason says about an
    input begins with its name, else it is about ``main``.
    """
    parts = []
    for part in reason.split("; "):
        name = part.partition(": ")[0]
        name = name if name in files else main
        parts.append(_name_options_in(part, "" if name == main else f"{name}.") if files.get(name) else part)
    return "; ".join(parts)


def _name_options_in(part: str, prefix: str) -> str:
    def name_option(found: re.Match[str]) -> str:
        fact = _FACT_OF_TAG.get(found[0].upper())
        return f"(--fact {prefix}{fact}=...)" if fact else found[0]

    return _TAG.sub(name_option, part)


def parse_value(fact: str, value: str) -> Any:
    """Return the value of a fact as its attribute of DICOM holds it. Raises ValueError."""
    if fact in _NUMBERS:
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{fact} is a number; it is {value!r}") from None
        if not 0 < number < 1e6:
            raise ValueError(f"{fact} is a positive number; it is {value!r}")
        return number
    if fact == "age_years":
        if not value.isdigit() or int(value) not in _AGE:
            raise ValueError(f"age_years is a whole number of years; it is {value!r}")
        return f"{int(value):03}Y"
    if fact == "sex" and value not in ("F", "M", "O"):
        raise ValueError(f"sex is F, M or O; it is {value!r}")
    return value.split("\\") if fact in _LISTS else value


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Return the attributes of the JSON file that dcm2niix and BIDS put beside an image; times there are in seconds."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise InputRefused(f"{path.name}: it is no JSON") from error
    if not isinstance(content, dict):
        raise InputRefused(f"{path.name}: a JSON object is needed")
    known = {key: value for key, value in content.items() if key in _FROM_SIDECAR and not _is_several(key, value)}
    found = {key: _convert(path, key, value) for key, value in known.items()}
    if content.get("Modality") in ("MR", "PT", "CT"):
        found["Modality"] = content["Modality"]
    if str(content.get("Units", "")).casefold() in _UNITS:
        found["Units"] = _UNITS[str(content["Units"]).casefold()]
    if str(content.get("SyntheticData", "")).strip().casefold() in _YES:
        found["SyntheticData"] = "YES"
    if tracer := content.get("TracerName"):
        found["Radiopharmaceutical"] = str(tracer)
    if str(content.get("AttenuationCorrection", "none")).casefold() not in ("none", "", "n/a"):
        found["CorrectedImage"] = ["ATTN"]
    return found


def _is_several(key: str, value: Any) -> bool:
    """Return whether a number has several values, of which none is known to be that of the image."""
    return key in _POSITIVE and isinstance(value, list)


def _convert(path: Path, key: str, value: Any) -> Any:
    """Return the value in DICOM's unit; text is cut to what a short attribute holds."""
    if key in _POSITIVE:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e4:
            raise InputRefused(f"{path.name}: {key} is no positive number")
        return round(value * 1000, 6) if key in _SECONDS else float(value)
    if isinstance(value, list):
        return [str(each) for each in value]
    texts = str(value)
    return re.split(r"[\\_]", texts) if key == "ScanningSequence" else texts
