"""Which file of a folder becomes which input: by a route, else by facts and contract; what is ambiguous is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from dicomnode.config import Route
from dicomnode.config.conditions import parse
from dicomnode.errors import InputRefused, NotFound
from dicomnode.local_runs.candidates import Candidate
from dicomnode.local_runs.choosing import Choice, choose, refuse_shared_inputs, refuse_unclear_facts
from pipelines.contract import Input, KSpace, Labels, Volume
from pipelines.quality import InputRule

FLAIR, T1W = Input("flair", Volume), Input("t1w", Volume, required=False)
PRIOR = Input("prior_flair", Volume, required=False, is_prior=True)
RULES = {
    "flair": [InputRule(fact="modality", one_of=("MR",)), InputRule(fact="ti_ms", between=(1400, 3000))],
    "t1w": [InputRule(fact="te_ms", between=(0.5, 30))],
}


def make(
    name: str, group: str = "study", kind: Literal["series", "nifti", "k-space"] = "series", **attributes: Any
) -> Candidate:
    known = {"Modality": "MR", "SeriesDescription": name, **attributes}
    return Candidate(kind, name, (Path(name),), group, known)


def replace_attributes(candidate: Candidate, **attributes: Any) -> Candidate:
    return replace(candidate, attributes={**candidate.attributes, **attributes})


def names(*candidates: Candidate, inputs: tuple[Input, ...] = (FLAIR, T1W), **how: Any) -> list[dict[str, str]]:
    choices = choose(inputs, candidates, RULES, **how)
    return [{name: each.name for name, each in choice.inputs.items()} for choice in choices]


def test_contract_and_description_decide_in_a_mixed_folder() -> None:
    found = names(
        make("ax t2 tse", EchoTime=100.0), make("sag FLAIR", EchoTime=390.0, InversionTime=1800.0),
        make("t1 mprage", EchoTime=2.9, InversionTime=900.0), make("CT head", Modality="CT"),
    )  # fmt: skip
    assert found == [{"flair": "sag FLAIR", "t1w": "t1 mprage"}]


def test_a_fact_that_breaks_the_contract_comes_before_a_description() -> None:
    found = names(make("FLAIR wrongly so", InversionTime=900.0), make("dark fluid flair", InversionTime=2400.0))
    assert found == [{"flair": "dark fluid flair"}]


def test_two_that_fit_are_refused_by_name_with_what_to_pass() -> None:
    with pytest.raises(
        InputRefused, match="'flair' could be each of: FLAIR a, FLAIR b; say which by --with flair=PATH"
    ):
        names(make("FLAIR a"), make("FLAIR b"))


def test_an_ambiguous_optional_input_may_be_left_out() -> None:
    series = (make("FLAIR"), make("t1 mprage"), make("t1 spgr"))
    with pytest.raises(InputRefused, match="or --without t1w"):
        names(*series)
    assert names(*series, without=["t1w"]) == [{"flair": "FLAIR"}]
    assert names(*series, explicit={"t1w": make("mine")}) == [{"flair": "FLAIR", "t1w": "mine"}]


def test_a_further_input_is_never_taken_without_words_for_it() -> None:
    assert names(make("FLAIR"), make("swi", EchoTime=20.0)) == [{"flair": "FLAIR"}]
    assert names(make("FLAIR"), make("t1 mprage post gd")) == [{"flair": "FLAIR"}]


def test_studies_and_subjects_are_never_mixed() -> None:
    found = names(
        make("FLAIR", "one"), make("t1 mprage", "other"), make("FLAIR again", "other"),
        make("sub-01_FLAIR.nii.gz", "sub-01", "nifti"), make("sub-02_T1w.nii.gz", "sub-02", "nifti"),
    )  # fmt: skip
    assert found == [
        {"flair": "FLAIR"},
        {"flair": "FLAIR again", "t1w": "t1 mprage"},
        {"flair": "sub-01_FLAIR.nii.gz"},
    ]


def test_a_series_that_nothing_speaks_for_is_not_chosen() -> None:
    with pytest.raises(NotFound, match="ax t2 tse: neither its description nor an inversion time says so"):
        names(make("ax t2 tse", EchoTime=100.0), make("swi", EchoTime=20.0))


def test_a_ct_is_taken_by_its_modality_if_it_is_stated() -> None:
    inputs = (Input("pet", Volume), Input("ct", Volume, required=False))
    ct, silent = make("a", Modality="CT"), make("b", Modality=None)
    assert names(make("pet", Modality="PT"), ct, inputs=inputs) == [{"pet": "pet", "ct": "a"}]
    assert names(silent, inputs=inputs, explicit={"pet": make("pet")}) == [{"pet": "pet"}]


def test_a_synthetic_image_is_refused_also_alone_and_by_name() -> None:
    synthetic = make("FLAIR", SyntheticData="YES")
    with pytest.raises(NotFound, match="FLAIR: it is a computed image"):
        names(synthetic)
    for explicit in ({"flair": synthetic}, {"flair": make("FLAIR"), "t1w": synthetic}):
        with pytest.raises(InputRefused, match="is marked as synthetic: a measured image is needed"):
            names(make("FLAIR"), explicit=explicit)
    assert choose((Input("pet", Volume), Input("organs", Labels)), [make("pet", Modality="PT")], {},
                  explicit={"organs": synthetic})  # fmt: skip


def test_computed_images_are_no_input() -> None:
    assert names(make("SYN FLAIR", SyntheticData="YES"), make("FLAIR")) == [{"flair": "FLAIR"}]
    assert names(make("FLAIR mpr", ImageType=["DERIVED", "PRIMARY"]), make("FLAIR")) == [{"flair": "FLAIR"}]


def test_nothing_that_fits_is_refused_with_the_reasons() -> None:
    with pytest.raises(NotFound, match=r"CT: it is CT, not MR; t1: its Inversion Time is 900.0; the model takes 1400"):
        names(make("CT", Modality="CT"), make("t1", InversionTime=900.0))


def test_a_single_series_is_left_to_the_pipeline() -> None:
    assert names(make("CT", Modality="CT")) == [{"flair": "CT"}]


def test_files_that_the_user_names_are_not_shared_by_several_subjects() -> None:
    choices = [Choice({"flair": make("FLAIR", group), "t1w": make("mine")}, "") for group in ("one", "other")]
    with pytest.raises(InputRefused, match="--with t1w is of one subject, but IN has images of 2: FLAIR, FLAIR"):
        refuse_shared_inputs(choices, FLAIR, ["t1w"])
    refuse_shared_inputs(choices, FLAIR, [])
    refuse_shared_inputs(choices[:1], FLAIR, ["flair", "t1w"])
    refuse_shared_inputs([choices[0], choices[0]], FLAIR, ["t1w"])


def test_a_prior_is_chosen_by_a_route_or_by_the_user_only() -> None:
    series = (make("FLAIR", "now"), make("FLAIR then", "then"))
    assert all("prior_flair" not in each for each in names(*series, inputs=(FLAIR, PRIOR)))
    assert names(series[0], inputs=(FLAIR, PRIOR), explicit={"prior_flair": series[1]}) == [
        {"flair": "FLAIR", "prior_flair": "FLAIR then"}
    ]


ROUTE = Route.model_validate({
    "name": "r", "pipeline": "p", "match": {"SeriesDescription": "~(?i)flair"},
    "with": {"t1w": {"SeriesDescription": "~(?i)t1"}}, "prior": {"prior_flair": {"SeriesDescription": "~(?i)flair"}},
})  # fmt: skip


def test_a_route_takes_every_series_that_it_matches_with_the_first_of_the_others() -> None:
    found = names(make("FLAIR a"), make("FLAIR b"), make("t1 a"), make("t1 b"), routes=[ROUTE])
    assert found == [{"flair": "FLAIR a", "t1w": "t1 a"}, {"flair": "FLAIR b", "t1w": "t1 a"}]


def test_a_segmentation_is_no_image_but_a_route_may_take_it_as_another_input() -> None:
    organs = make("organs", Modality="SEG")
    assert names(make("a", Modality="PT"), organs, inputs=(Input("pet", Volume),)) == [{"pet": "a"}]
    route = ROUTE.model_copy(update={"with_": {"t1w": ROUTE.match, "organs": {"Modality": parse("SEG")}}})
    assert names(make("FLAIR"), organs, routes=[route])[0]["organs"] == "organs"


def test_a_route_finds_the_newest_earlier_study_of_the_patient() -> None:
    def dated(name: str, day: str, patient: str = "1") -> Candidate:
        return make(name, day, StudyDate=day, PatientID=patient, StudyTime="1200")

    series = [dated("FLAIR", "20260301"), dated("old flair", "20200101"), dated("flair before", "20250101")]
    series.append(dated("flair of another", "20251231", "2"))
    series.append(replace_attributes(dated("SYN flair", "20260201"), SyntheticData="YES"))
    series.append(replace_attributes(dated("flair lesions", "20260202"), Modality="SEG"))
    found = {each["flair"]: each for each in names(*series, inputs=(FLAIR, T1W, PRIOR), routes=[ROUTE])}
    assert found["FLAIR"]["prior_flair"] == "flair before"
    assert "prior_flair" not in found["flair of another"]


def test_a_route_without_a_match_leaves_the_choice_to_the_facts() -> None:
    assert names(make("dark fluid", InversionTime=2400.0), routes=[ROUTE]) == [{"flair": "dark fluid"}]


def test_each_acquisition_of_k_space_is_a_run() -> None:
    kspace = [make(name, kind="k-space") for name in ("a.h5", "b.h5")]
    assert names(*kspace, make("FLAIR"), inputs=(Input("kspace", KSpace),)) == [{"kspace": "a.h5"}, {"kspace": "b.h5"}]
    with pytest.raises(NotFound, match="holds no Raw Data object and no MRD file"):
        names(make("FLAIR"), inputs=(Input("kspace", KSpace),))


@pytest.mark.parametrize(("otherwise", "fact"), [("hold", "age_years"), ("refuse", "weight_kg")])
def test_an_unclear_fact_stops_no_run_that_does_not_refuse_by_it(
    otherwise: Literal["refuse", "hold"], fact: str
) -> None:
    unclear = replace(make("FLAIR", kind="nifti"), unclear={"PatientAge": "age of sub-01 is '25-30'"})
    rule = InputRule(fact=fact, between=(16, 100), otherwise=otherwise)
    refuse_unclear_facts(Choice({"flair": unclear}, ""), {"flair": [rule]})


def test_an_unclear_fact_is_refused_where_the_contract_refuses_by_it() -> None:
    unclear = replace(make("FLAIR", kind="nifti"), unclear={"PatientAge": "age of sub-01 is '25-30'"})
    rules = {"flair": [InputRule(fact="age_years", between=(16, 100))]}
    with pytest.raises(InputRefused, match=r"flair.age_years=...\) is not stated, because age of sub-01 is '25-30'"):
        refuse_unclear_facts(Choice({"flair": unclear}, ""), rules)
