"""The sentence on a result, its remarks, and the table of regions, from measurements alone."""

from __future__ import annotations

import math

import pytest

from dicomnode.report import summary
from dicomnode.report.region_table import build_region_table
from pipelines.contract import Interval, Measurement

LESIONS = {"lesions": 45.0, "lesion load": 3.28}
CHANGE = LESIONS | {
    "new lesions": 3.0,
    "enlarged lesions": 4.0,
    "earlier lesion load": 4.77,
    "lesion load compared": 3.28,
}


def make_numbers(values: dict[str, float], unit: str = "ml") -> list[Measurement]:
    return [Measurement(name, value, "1" if name.endswith("lesions") else unit) for name, value in values.items()]


@pytest.mark.parametrize(
    ("values", "date", "sentence"),
    [
        (CHANGE, "2009-04-12", "3 new and 4 enlarged lesions since 2009-04-12; total load 3.28 ml, was 4.77."),
        (CHANGE, "", "3 new and 4 enlarged lesions since the earlier examination; total load 3.28 ml, was 4.77."),
        (LESIONS, "", "45 lesions with a total load of 3.28 ml."),
        (LESIONS | {"lesions": 1.0}, "", "1 lesion with a total load of 3.28 ml."),
        (
            LESIONS,
            "2009-04-12",
            "45 lesions with a total load of 3.28 ml; not compared with the examination of 2009-04-12.",
        ),
        ({"lesions": 0.0, "lesion load": 0.0}, "", "No lesion found."),
    ],
)
def test_lesions_and_their_change_make_a_sentence(values: dict[str, float], date: str, sentence: str) -> None:
    assert summary.summarize("synthetic_dir", make_numbers(values), date) == sentence


def test_loads_of_different_inputs_are_not_compared() -> None:
    """The comparison had FLAIR only, the result FLAIR and T1w: both loads are stated."""
    values = CHANGE | {"lesion load": 4.5}
    sentence = summary.summarize("synthetic_dir", make_numbers(values), "2009-04-12")
    assert sentence.endswith("; total load 4.5 ml; from the inputs of both 3.28, was 4.77.")


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        (CHANGE, "The load fell by 31 % (from 4.77 to 3.28 ml) although lesions are counted as new or enlarged"),
        (CHANGE | {"new lesions": 0.0, "enlarged lesions": 0.0}, "The load fell by 31 % (from 4.77 to 3.28 ml): "),
        (
            CHANGE | {"new lesions": 0.0, "enlarged lesions": 0.0, "lesion load compared": 7.0},
            "The load rose by 47 % (from 4.77 to 7 ml) without a new or enlarged lesion",
        ),
        (CHANGE | {"lesion load compared": 7.0}, ""),
        (CHANGE | {"lesion load compared": 4.4}, ""),
        (CHANGE | {"earlier lesion load": 0.3, "lesion load compared": 0.1}, ""),
        (CHANGE | {"earlier lesion load": math.nan}, ""),
        (LESIONS, ""),
    ],
)
def test_an_implausible_change_is_remarked(values: dict[str, float], remark: str) -> None:
    remarks = summary.find_remarks(make_numbers(values))
    assert len(remarks) == bool(remark)
    assert remark in "".join(remarks)


@pytest.mark.parametrize(
    ("pipeline", "values", "sentence"),
    [
        (
            "anatomy",
            {"brain volume": 1180.0, "intracranial volume": 1495.0, "structures of low confidence": 2.0},
            "Brain volume 1180 ml, 79 % of the intracranial 1495 ml; 2 structures of low confidence.",
        ),
        (
            "mri_reconstruction",
            {"acceleration": 4.02, "chi-square": 1.01, "chi-square, worst slice": 1.3},
            "MR image reconstructed at acceleration 4.02: 24.9 % of k-space measured; misfit to the measured data 1.01 "
            "times their noise, 1.3 in the worst slice (about 1 is expected).",
        ),
        (
            "pet_synthesis",
            {"Centiloid": 23.0, "probability of amyloid": 0.61, "amyloid status abstained": 1.0},
            "Synthetic PET, not measured: amyloid load 23 Centiloid; probability of amyloid 0.61, no status stated.",
        ),
        ("mine", {"first": 1.5, "second": 2.0}, "First 1.5 ml; second 2 ml."),
        ("pet_synthesis", {}, "No number describes the whole result."),
    ],
)
def test_each_pipeline_has_its_sentence(pipeline: str, values: dict[str, float], sentence: str) -> None:
    assert summary.summarize(pipeline, make_numbers(values)) == sentence


def test_the_largest_change_of_a_region_is_named() -> None:
    numbers = [
        Measurement("dose fraction", 0.1, "1"),
        Measurement("noise of the input", 35.0, "%"),
        Measurement("SUVmean bias", -1.0, "%", group="liver"),
        Measurement("SUVmean bias", 3.2, "%", group="putamen"),
        Measurement("SUVpeak bias", 9.0, "%", group="liver"),
    ]
    sentence = summary.summarize("standard_dose_pet", numbers)
    assert sentence.endswith("largest change of a region's mean +3.2 % (putamen).")


def test_an_interval_is_part_of_the_sentence() -> None:
    load = Measurement("Centiloid", 23.0, "{CL}", intervals=(Interval(0.5, 20, 26), Interval(0.95, 10, 40)))
    assert "23 Centiloid (95 %: 10 to 40)" in summary.summarize("pet_synthesis", [load])


def test_measurements_of_regions_become_rows() -> None:
    numbers = [
        Measurement("lesions", 2.0, "1"),
        Measurement("volume", 230.0, "mm3", "Periventricular lesion", "lesion 1"),
        Measurement("probability of contrast", 0.9, "1", "That it exceeds", "lesion 1"),
        Measurement("volume", 80.0, "mm3", "Deep lesion", "lesion 2"),
    ]
    table = build_region_table(numbers)
    assert table.columns == ("volume (mm3)", "probability of contrast")
    assert [(row.name, row.place, row.cells) for row in table.rows] == [
        ("lesion 1", "Periventricular lesion", ("230", "0.9")),
        ("lesion 2", "Deep lesion", ("80", "")),
    ]


def test_a_region_is_no_part_of_the_column() -> None:
    numbers = [
        Measurement(f"amyloid SUVR of {name}", 1.0, "{SUVr}", group=name) for name in ("precuneus", "caudate nucleus")
    ]
    table = build_region_table(numbers)
    assert table.columns == ("amyloid SUVR (SUVr)",)
    assert not table.has_places
