"""Covariates from the header, else a report or a sidecar, else unknown; impossible values are refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused
from dicomnode.reading import covariates
from pipelines.contract import Covariates, Sourced
from tests.covariate_reports import (
    APOE_GENOTYPE,
    MMSE,
    PTAU217,
    coded,
    container,
    number,
    report,
    save,
    text,
)
from tests.findings import source

SEX, AGE = ("121032", "DCM", "Subject Sex"), ("121033", "DCM", "Subject Age")
E4 = ("APOE-E4-ALLELES", "99DICOMNODE", "Number of APOE e4 alleles")


def image(**values: Any) -> Dataset:
    """Return the header of a T1w."""
    return source("mr", **{"PatientAge": "071Y", "PatientBirthDate": "19550301"} | values)


def resolve_from_report(tmp_path: Path, *items: Dataset, header: Dataset | None = None) -> Covariates:
    ds = header or image()
    return covariates.resolve([ds], [save(report(ds, *items), tmp_path / "report.dcm")])


def resolve_from_sidecar(tmp_path: Path, header: Dataset | None = None, **values: Any) -> Covariates:
    path = tmp_path / covariates.SIDECAR
    path.write_text(json.dumps(values))
    return covariates.resolve([header or image()], [path])


def test_age_and_sex_stand_in_the_header_and_the_rest_is_unknown() -> None:
    found = covariates.resolve([image()])
    assert found.age_years == Sourced(71.0, "Patient's Age (0010,1010)")
    assert found.sex == Sourced("M", "Patient's Sex (0010,0040)")
    assert found.e4_alleles == found.mmse == found.ptau217_pg_ml == Sourced(None, "not stated")


@pytest.mark.parametrize("age", [None, "", "42"])
def test_without_a_readable_age_birth_and_study_dates_tell_it(age: str | None) -> None:
    ds = source("mr", PatientBirthDate="19500301", StudyDate="20260301")
    if age is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.PatientAge = age
    found = covariates.resolve([ds]).age_years
    assert found.value == pytest.approx(76.0, abs=0.05)
    assert "Birth Date" in found.source
    assert ("is no Age String" in found.source) == (age == "42")


def test_age_and_dates_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputRefused, match=r"age is 71 in Patient's Age \(0010,1010\), but 56.8 in .* \(0010,0030\)"):
        covariates.resolve([image(PatientBirthDate="19700131")])


@pytest.mark.parametrize("born", ["19000101", "20260101", "", "1955", None])
def test_dates_that_make_no_adult_do_not_touch_a_stated_age(born: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = image(PatientBirthDate=born)
    assert covariates.resolve([ds]).age_years == Sourced(71.0, "Patient's Age (0010,1010)")


@pytest.mark.parametrize(
    ("values", "words"),
    [({"PatientSex": "F"}, r"sex is M in Patient's Sex \(0010,0040\), but F"), ({"PatientAge": "068Y"}, "age is 71")],
)
def test_images_that_differ_in_the_patient_are_refused(values: dict[str, str], words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        covariates.resolve([image(), image(**values)])


def test_an_image_without_age_and_sex_leaves_them_to_the_others() -> None:
    found = covariates.resolve([source("mr", PatientBirthDate="", PatientSex=""), image()])
    assert (found.age_years.value, found.sex.value) == (71, "M")


@pytest.mark.parametrize(("age", "years"), [("071Y", 71), ("850M", 850 / 12), ("999W", 999 * 7 / 365.25)])
def test_an_age_in_months_or_weeks_is_years(age: str, years: float) -> None:
    assert covariates.resolve([image(PatientAge=age, PatientBirthDate="")]).age_years.value == pytest.approx(years)


@pytest.mark.parametrize("sex", ["X", "MALE", "1"])
def test_a_sex_that_no_code_has_is_unknown_and_not_quoted(sex: str) -> None:
    assert covariates.resolve([image(PatientSex=sex)]).sex == Sourced(
        None, "Patient's Sex (0010,0040) is none of F, M and O"
    )


def test_a_patient_of_whom_nothing_is_known_is_unknown_with_the_reason() -> None:
    found = covariates.resolve([source("mr", PatientBirthDate="", PatientSex="O")])
    assert found.age_years.value is None
    assert "nor are birth and study dates" in found.age_years.source
    assert found.sex == Sourced(None, "Patient's Sex (0010,0040) is O, neither F nor M")


def test_a_report_gives_what_the_header_has_not(tmp_path: Path) -> None:
    found = resolve_from_report(
        tmp_path,
        number(MMSE, 24, "{score}"),
        container(text(APOE_GENOTYPE, "ε3/ε4"), number(PTAU217, 0.62, "pg/mL")),
    )
    assert (found.mmse.value, found.e4_alleles.value, found.ptau217_pg_ml.value) == (24, 1, 0.62)
    assert found.mmse.source == "report, MMSE (72106-8, LN)"
    assert found.age_years.source == "Patient's Age (0010,1010)"


@pytest.mark.parametrize(("genotype", "alleles"), [("e3/e4", 1), ("E4E4", 2), ("APOE 3/3", 0), ("24", 1)])
def test_a_genotype_is_counted(genotype: str, alleles: int, tmp_path: Path) -> None:
    assert resolve_from_sidecar(tmp_path, e4_alleles=genotype).e4_alleles.value == alleles
    assert resolve_from_report(tmp_path, text(APOE_GENOTYPE, genotype)).e4_alleles.value == alleles


def test_a_sidecar_gives_the_same_and_null_is_unknown(tmp_path: Path) -> None:
    blank = source("mr", PatientBirthDate="", PatientSex="")
    found = resolve_from_sidecar(tmp_path, blank, age_years=68.5, sex="F", e4_alleles=2, mmse=29, ptau217_pg_ml=None)
    assert (found.age_years.value, found.sex.value, found.e4_alleles.value, found.mmse.value) == (68.5, "F", 2, 29)
    assert found.mmse.source == "covariates.json"
    assert found.ptau217_pg_ml == Sourced()


def test_another_report_of_the_study_is_no_covariate(tmp_path: Path) -> None:
    dose = number(("113839", "DCM", "Dose"), 3.2, "mGy")
    assert resolve_from_report(tmp_path, dose).mmse == Sourced()


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (number(MMSE, 31, "{score}"), r"MMSE is '31' .*a whole number from 0 to 30"),
        (number(MMSE, 27.5, "{score}"), "MMSE is '27.5'"),
        (number(PTAU217, 0.6, "ng/mL"), r"plasma p-tau217 in the report is in 'ng/mL'; it has to be in .*pg/mL"),
        (number(PTAU217, 300, "pg/mL"), r"plasma p-tau217 is '300.*from 0.01 to 50"),
        (number(E4, 3, "1"), "APOE e4 alleles is '3.*0, 1 or 2"),
        (text(APOE_GENOTYPE, "e3/e5"), "APOE e4 alleles is 'e3/e5'"),
        (coded(SEX, ("F", "DCM", "Female")), r"sex is M in Patient's Sex \(0010,0040\), but F in report"),
        (number(AGE, 43, "a"), r"age is 71 in Patient's Age \(0010,1010\), but 43 in report"),
        (number(AGE, 71, "mo"), "age in the report is in 'mo'; it has to be in a"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_item_and_value(item: Dataset, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=words):
        resolve_from_report(tmp_path, item)


def test_two_values_of_one_score_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"MMSE is 24 in report.*, but 27 in report"):
        resolve_from_report(tmp_path, number(MMSE, 24, "{score}"), number(MMSE, 27, "{score}"))


def test_a_year_between_header_and_report_is_no_contradiction(tmp_path: Path) -> None:
    assert resolve_from_report(tmp_path, number(AGE, 70, "a")).age_years.value == 71


def test_an_age_that_cannot_be_an_adults_is_refused() -> None:
    with pytest.raises(InputRefused, match=r"age is '0.0' in Patient's Age \(0010,1010\).*from 18 to 120"):
        covariates.resolve([source("mr", PatientAge="000Y")])


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_a_report_of_another_patient_or_study_is_refused_without_a_name(keyword: str, tmp_path: Path) -> None:
    ds = report(image(), number(MMSE, 24, "{score}"))
    setattr(ds, keyword, "1.2.3")
    with pytest.raises(InputRefused, match=f"the report and the images differ in {keyword}$"):
        covariates.resolve([image()], [save(ds, tmp_path / "report.dcm")])


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    ds = report(image())
    ds.Modality = "MR"
    with pytest.raises(InputRefused, match="modality 'MR', which is no report"):
        covariates.resolve([image()], [save(ds, tmp_path / "image.dcm")])
    (tmp_path / "text.dcm").write_text("MMSE 24")
    with pytest.raises(InputRefused, match="neither a DICOM report nor JSON"):
        covariates.resolve([image()], [tmp_path / "text.dcm"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"mmse": 24', "cannot be read as JSON"),
        ("[24]", "has to hold one object"),
        ('{"MMSE": 24}', "unknown covariate 'MMSE'; there are: age_years"),
        ('{"mmse": true}', "MMSE is 'True' in covariates.json"),
        ('{"sex": "female"}', "sex is 'female' in covariates.json; it has to be F or M"),
        ('{"ptau217_pg_ml": "high"}', "plasma p-tau217 is 'high'"),
    ],
)
def test_a_sidecar_that_cannot_be_read_is_refused(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / covariates.SIDECAR
    path.write_text(content)
    with pytest.raises(InputRefused, match=words):
        covariates.resolve([image()], [path])


def test_in_words_each_has_its_value_and_place(tmp_path: Path) -> None:
    descriptions = covariates.describe(resolve_from_sidecar(tmp_path, mmse=24))
    assert descriptions["MMSE"] == "24 points (covariates.json)"
    assert descriptions["age"] == "71 years (Patient's Age (0010,1010))"
    assert descriptions["plasma p-tau217"] == "unknown (not stated)"


def test_every_code_and_name_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "covariates.md").read_text()
    for name, item in covariates.ITEMS.items():
        assert f"`{name}`" in text
        for value, scheme in item.codes:
            assert f"({value}, {scheme})" in text
