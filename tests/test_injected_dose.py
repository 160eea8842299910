"""The dose fraction against dose, duration and weight of real clinical headers, all of standard dose."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from dicomnode.reading import volumes
from pipelines import injected_dose
from pipelines.contract import Grid
from pipelines.injected_dose import check_dose_fraction, find_fraction_range
from tests import scanner

VENDORS = "pet/suv-metadata-vendors"
WHOLE_BODY = "pet/tcia-sts001-fdg-wholebody/raw_bqml.tar.xz"
BODY_GRID = scanner.make_grid("axial", (200, 8, 8), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
HEAD_GRID = scanner.make_grid("axial", (50, 8, 8), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))


def make_facts(mbq: float, minutes: float, kg: float, **more: Any) -> dict[str, Any]:
    facts = {"dose_bq": mbq * 1e6, "frame_duration_s": 60 * minutes, "weight_kg": kg, "tracer": "Fluorodeoxyglucose"}
    return facts | {"acquisition_times": 6} | more


def is_held(facts: dict[str, Any], grid: Grid, dose_fraction: float) -> bool:
    return any(note.holds_result for note in check_dose_fraction(facts, grid, dose_fraction))


def test_the_kits_whole_body_scan_of_full_dose_is_held_as_low_dose(kit: Path, tmp_path: Path) -> None:
    with tarfile.open(kit / WHOLE_BODY) as archive:
        archive.extractall(tmp_path, filter="data")
    series = volumes.read(sorted(tmp_path.rglob("*.dcm")))
    facts, grid = series.facts, series.volume.grid
    assert (facts["dose_bq"], facts["weight_kg"], facts["frame_duration_s"]) == (pytest.approx(388.777472e6), 71, 240)
    (note,) = check_dose_fraction(facts, grid, 0.1)
    assert note.holds_result
    assert "388.8 MBq (0018,1074), 71 kg (0010,1030) and 240 s (0018,1242) are 21.9 MBq min/kg" in note.text
    assert check_dose_fraction(facts, grid, 1.0) == []


def test_no_clinical_header_of_any_vendor_passes_as_a_tenth_of_the_dose(kit: Path) -> None:
    products = []
    for path in sorted((kit / VENDORS).glob("*.json")):
        header = json.loads(path.read_text())
        first = header[0] if isinstance(header, list) else header
        mbq, kg = float(first["RadionuclideTotalDose"]) / 1e6, float(first["PatientWeight"])
        facts = make_facts(mbq, float(first["ActualFrameDuration"]) / 60000, kg)
        low, high = find_fraction_range(facts, BODY_GRID)
        assert low <= 1 <= high, f"{path.name} is a standard dose"
        assert is_held(facts, BODY_GRID, 0.1), path.name
        products.append(low * injected_dose.BODY[1])
    assert len(products) == 8
    assert 3.9 < min(products) < max(products) < 17


@pytest.mark.parametrize(
    ("facts", "grid", "dose_fraction", "held"),
    [
        (make_facts(30, 3, 75), BODY_GRID, 0.1, False),
        (make_facts(300, 3, 75), BODY_GRID, 0.1, True),
        (make_facts(300, 0.3, 75), BODY_GRID, 0.1, False),
        (make_facts(300, 3, 75), BODY_GRID, 0.9, False),
        (make_facts(3, 3, 75), BODY_GRID, 0.5, True),
        (make_facts(150, 15, 70, body_part="BRAIN"), HEAD_GRID, 0.1, True),
        (make_facts(15, 15, 70, body_part="HEAD"), HEAD_GRID, 0.1, False),
        (make_facts(30, 10, 70, acquisition_times=1), BODY_GRID, 0.1, False),  # a long axial field of view
        (make_facts(30, 10, 70, acquisition_times=1, body_part="HEAD TO THIGH"), BODY_GRID, 0.1, False),
        (make_facts(300, 10, 70, acquisition_times=1), BODY_GRID, 0.1, True),
        (make_facts(15, 15, 70), HEAD_GRID, 0.1, False),
        (make_facts(150, 15, 70), HEAD_GRID, 0.1, True),
    ],
)
def test_dose_duration_and_weight_decide(facts: dict[str, Any], grid: Grid, dose_fraction: float, held: bool) -> None:
    assert is_held(facts, grid, dose_fraction) == held


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dose_bq": None}, "dose not stated"),
        ({"weight_kg": None, "frame_duration_s": None}, "weight and duration of a frame not stated"),
        ({"tracer": "PSMA-1007"}, "the tracer is not FDG"),
    ],
)
def test_a_header_that_does_not_allow_the_check_says_so_and_holds_nothing(change: dict[str, Any], words: str) -> None:
    (note,) = check_dose_fraction(make_facts(300, 3, 75) | change, BODY_GRID, 0.1)
    assert not note.holds_result
    assert words in note.text
