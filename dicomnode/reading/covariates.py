"""Covariates of a patient: from the images' header, else from a report, else explicitly unknown.

The header has age and sex. Everything may stand in a structured report of the study (content items anywhere in its
tree, by the codes of ``ITEMS``) or, for a folder, in a file ``covariates.json`` (by the names of ``ITEMS``). A value
that is out of its range, in another unit, or in contradiction to another one is refused. ``docs/covariates.md`` is for
users.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicomnode.datasets.ages import parse_age
from dicomnode.errors import InputRefused
from pipelines.contract import Covariates, Sourced

__all__ = ["ITEMS", "SIDECAR", "Item", "describe", "resolve"]

SIDECAR = "covariates.json"
AGES_YEARS = (18.0, 120.0)
SAME_AGE_YEARS = 2.0
"""How far the ages of header and report may lie apart: they may be of different days."""
PG_PER_ML = frozenset({"pg/mL", "pg/ml", "ng/L", "ng/l"})
_MALE, _FEMALE = frozenset({"M", "248153007"}), frozenset({"F", "248152002"})
_GENOTYPE = re.compile(r"(?:APOE\s*)?[eε]?([234])\s*[/, -]?\s*[eε]?([234])", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """``codes``: (value, scheme) of its concept in reports; ``read``: raises ValueError saying what is allowed."""

    title: str
    unit: str
    codes: tuple[tuple[str, str], ...]
    units: frozenset[str]
    read: Callable[[Any], Any]


def _number(value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"a number from {low:g} to {high:g}")
    return number


def _integer(value: Any, high: int) -> int:
    try:
        number = _number(value, 0, high)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"a whole number from 0 to {high}")
    return int(number)


def _sex(value: Any) -> str:
    if str(value) not in _MALE | _FEMALE:
        raise ValueError("F or M")
    return "M" if str(value) in _MALE else "F"


def _e4(value: Any) -> int:
    """Return the number of e4 alleles from that number, or from a genotype such as e3/e4."""
    genotype = _GENOTYPE.fullmatch(value.strip()) if isinstance(value, str) else None
    if genotype:
        return genotype.groups().count("4")
    try:
        return _integer(value, 2)
    except ValueError:
        raise ValueError("0, 1 or 2 e4 alleles, or a genotype such as e3/e4") from None


ITEMS: Mapping[str, Item] = MappingProxyType({
    "age_years": Item("age", "years", (("121033", "DCM"),), frozenset({"a"}), lambda v: _number(v, *AGES_YEARS)),
    "sex": Item("sex", "", (("121032", "DCM"),), frozenset(), _sex),
    "e4_alleles": Item(
        "APOE e4 alleles", "", (("APOE-GENOTYPE", "99DICOMNODE"), ("APOE-E4-ALLELES", "99DICOMNODE")),
        frozenset({"1", "{alleles}"}), _e4,
    ),
    "mmse": Item(
        "MMSE", "points", (("72106-8", "LN"), ("447316007", "SCT")), frozenset({"{score}", "{points}", "1"}),
        lambda v: _integer(v, 30),
    ),
    "ptau217_pg_ml": Item(
        "plasma p-tau217", "pg/ml", (("104663-0", "LN"), ("PTAU217-PLASMA", "99DICOMNODE")), PG_PER_ML,
        lambda v: _number(v, 0.01, 50),
    ),
})  # fmt: skip
"""By the names of ``Covariates``. LN: LOINC; SCT: SNOMED CT; 99DICOMNODE: ours, where neither has a fitting one."""


def resolve(headers: Sequence[Dataset], paths: Sequence[Path] = ()) -> Covariates:
    """Return covariates of the patient of ``headers`` (images of one study), with reports and sidecars at ``paths``.

    Raises InputRefused for a value that cannot be, for two that contradict each other, and for a report of another
    study.
    """
    found: dict[str, list[Sourced[Any]]] = {name: [] for name in ITEMS}
    from_headers = (each for ds in headers for each in _of_header(ds))
    for name, entry in (*from_headers, *(each for path in paths for each in _of_file(path, headers[0]))):
        found[name].append(entry)
    return Covariates(**{name: _one(name, entries) for name, entries in found.items()})


def describe(covariates: Covariates) -> dict[str, str]:
    """Return the covariates by title: the value and where it was found."""
    texts = {}
    for field in fields(covariates):
        item, entry = ITEMS[field.name], getattr(covariates, field.name)
        value = "unknown" if entry.value is None else f"{_format(entry.value)} {item.unit}".rstrip()
        texts[item.title] = f"{value} ({entry.source})"
    return texts


def _one(name: str, entries: Sequence[Sourced[Any]]) -> Sourced[Any]:
    """Return the first entry that has a value, if the others agree."""
    known = [each for each in entries if each.value is not None]
    if not known:
        return entries[0] if entries else Sourced()
    for other in known[1:]:
        if not _agree(name, known[0].value, other.value):
            one, two = (f"{_format(each.value)} in {each.source}" for each in (known[0], other))
            raise InputRefused(f"covariates: {ITEMS[name].title} is {one}, but {two}")
    return known[0]


def _agree(name: str, one: Any, other: Any) -> bool:
    return abs(one - other) <= SAME_AGE_YEARS if name == "age_years" else bool(one == other)


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _checked(name: str, value: Any, where: str) -> Sourced[Any]:
    item = ITEMS[name]
    try:
        return Sourced(item.read(value), where)
    except ValueError as error:
        raise InputRefused(
            f"covariates: {item.title} is {str(value)[:40]!r} in {where}; it has to be {error}"
        ) from None


def _of_header(ds: Dataset) -> Iterator[tuple[str, Sourced[Any]]]:
    for age in _ages(ds):
        yield "age_years", age
    where = "Patient's Sex (0010,0040)"
    sex = str(ds.get("PatientSex") or "").strip()
    if sex in ("M", "F"):
        yield "sex", Sourced(sex, where)
    elif sex in ("", "O"):
        yield "sex", Sourced(None, f"{where} is {'O, neither F nor M' if sex else 'empty'}")
    else:
        yield "sex", Sourced(None, f"{where} is none of F, M and O")


def _ages(ds: Dataset) -> Iterator[Sourced[Any]]:
    """Yield Patient's Age, and the years between birth and study, which have to agree with it (``_one``).

    Scanners also write what is no Age String ("42"). Dates that make no adult count where there is no age: those of
    de-identified images are often made up.
    """
    where, dates = "Patient's Age (0010,1010)", "Patient's Birth Date (0010,0030) and Study Date (0008,0020)"
    text = str(ds.get("PatientAge") or "").strip()
    age, elapsed = parse_age(text), _years_since_birth(ds)
    if age is not None:
        yield _checked("age_years", age, where)
        if elapsed is not None and AGES_YEARS[0] <= elapsed <= AGES_YEARS[1]:
            yield Sourced(elapsed, dates)
        return
    missing = f"{where} is no Age String" if text else f"{where} is not stated"
    if elapsed is None:
        yield Sourced(None, f"{missing}, nor are birth and study dates")
    else:
        yield _checked("age_years", elapsed, f"{dates}; {missing}")


def _years_since_birth(ds: Dataset) -> float | None:
    born, studied = (_date(ds.get(keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
    return None if born is None or studied is None else round((studied - born).days / 365.25, 1)


def _date(value: Any) -> date | None:
    try:
        return datetime.strptime(str(value or ""), "%Y%m%d").date()
    except ValueError:
        return None


def _of_file(path: Path, image: Dataset) -> Iterator[tuple[str, Sourced[Any]]]:
    if path.suffix == ".json":
        yield from _of_sidecar(path)
        return
    try:
        ds = dcmread(path)
    except InvalidDicomError:
        raise InputRefused("covariates: a file that is neither a DICOM report nor JSON") from None
    if ds.get("Modality") != "SR":
        raise InputRefused(f"covariates: an object of modality {ds.get('Modality', '')!r}, which is no report (SR)")
    for keyword in ("PatientID", "StudyInstanceUID"):
        if str(ds.get(keyword) or "") != str(image.get(keyword) or ""):
            raise InputRefused(f"covariates: the report and the images differ in {keyword}")
    yield from _of_items(ds)


def _of_sidecar(path: Path) -> Iterator[tuple[str, Sourced[Any]]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputRefused(f"{path.name} cannot be read as JSON: {type(error).__name__}") from None
    if not isinstance(values, dict):
        raise InputRefused(f"{path.name} has to hold one object with any of: {', '.join(ITEMS)}")
    for name, value in values.items():
        if name not in ITEMS:
            raise InputRefused(f"{path.name}: unknown covariate {name!r}; there are: {', '.join(ITEMS)}")
        if value is not None:
            yield name, _checked(name, value, path.name)


def _of_items(ds: Dataset) -> Iterator[tuple[str, Sourced[Any]]]:
    """Yield content items with a code of ours, wherever they stand in the tree; one without a value states nothing."""
    for item in ds.get("ContentSequence") or []:
        for name, each in ITEMS.items():
            for code in _code(item, "ConceptNameCodeSequence") & set(each.codes):
                value = _value(item, each)
                if value is not None:
                    yield name, _checked(name, value, f"report, {each.title} ({code[0]}, {code[1]})")
        yield from _of_items(item)


def _code(item: Dataset, keyword: str) -> set[tuple[str, str]]:
    return {(str(c.get("CodeValue", "")), str(c.get("CodingSchemeDesignator", ""))) for c in item.get(keyword) or []}


def _value(item: Dataset, concept: Item) -> Any:
    kind = item.get("ValueType")
    if kind == "TEXT":
        return item.get("TextValue")
    if kind == "CODE":
        return next((value for value, _ in _code(item, "ConceptCodeSequence")), None)
    for measured in item.get("MeasuredValueSequence") or []:
        unit = next((value for value, _ in _code(measured, "MeasurementUnitsCodeSequence")), "")
        if unit not in concept.units:
            allowed = " or ".join(sorted(concept.units)) or "no number"
            raise InputRefused(f"covariates: {concept.title} in the report is in {unit!r}; it has to be in {allowed}")
        return measured.NumericValue
    return None
