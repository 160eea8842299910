"""Examinations are compared by the inputs that both have, and strong differences of their protocols are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from model_zoo.bundle import Model
from pipelines import examinations
from pipelines.contract import Case, Grid, Refused, Volume
from pipelines.examinations import Examination

SHAPE = (40, 40, 40)


def _volume(thickness_mm: float = 4.0) -> Volume:
    data = np.random.default_rng(1).random(SHAPE, np.float32)
    return Volume(data, Grid(SHAPE, np.diag([4.0, 4.0, thickness_mm, 1.0])), slice_thickness_mm=thickness_mm)


def _examination(
    thickness_mm: float = 4.0, *, t1w: bool = True, flair_facts: Mapping[str, Any] | None = None
) -> Examination:
    facts = {"flair": dict(flair_facts or {}), "t1w": {"te_ms": 2.3}}
    return Examination(_volume(thickness_mm), _volume() if t1w else None, facts)


@pytest.fixture
def model() -> Model:
    metadata: dict[str, Any] = {
        "name": "synthetic_dir",
        "version": "0",
        "input_contract": {"flair": [{"fact": "field_strength_t", "between": [1.4, 3.1], "otherwise": "hold"}]},
        "input_contract_without_t1w": [{"fact": "coarsest_spacing_mm", "between": [0.4, 4.5]}],
    }
    return Model("synthetic_dir", "0", "digest", metadata, torch.nn.Identity(), {}, "cpu")


@pytest.mark.parametrize("lacking", ["present", "earlier"])
def test_a_t1w_that_only_one_examination_has_is_used_for_neither(lacking: str, model: Model) -> None:
    present, prior = _examination(t1w=lacking != "present"), _examination(t1w=lacking != "earlier")
    pair = examinations.find_common_inputs(present, prior, model, None)
    assert (pair.present.t1w, pair.prior.t1w) == (None, None)
    assert [note.name for note in pair.notes] == ["inputs of the comparison"]
    assert f"The {lacking} examination has no T1w" in pair.notes[0].text


@pytest.mark.parametrize("t1w", [True, False])
def test_the_same_inputs_stay_and_need_no_note(t1w: bool, model: Model) -> None:
    pair = examinations.find_common_inputs(_examination(t1w=t1w), _examination(t1w=t1w), model, None)
    assert (pair.present.t1w is not None, pair.prior.t1w is not None) == (t1w, t1w)
    assert pair.notes == ()


def test_a_flair_that_does_not_suffice_alone_is_no_comparison(model: Model) -> None:
    with pytest.raises(Refused, match=r"earlier examination has no T1w.*the present examination: FLAIR without T1w"):
        examinations.find_common_inputs(_examination(5.0), _examination(t1w=False), model, None)
    assert examinations.find_common_inputs(_examination(5.0), _examination(), model, None).notes == ()


def test_strong_differences_of_the_protocols_are_told_by_name(model: Model) -> None:
    now = {"ti_ms": 1650.0, "te_ms": 120.0, "field_strength_t": 3.0, "acquisition_type": "3D"}
    before = {"ti_ms": 2500.0, "te_ms": 80.0, "field_strength_t": 1.5, "acquisition_type": "2D"}
    present, prior = _examination(1.0, flair_facts=now), _examination(4.0, flair_facts=before)
    assert examinations.describe_differences(present, prior) == [
        "FLAIR: slice thickness 1 mm now, 4 mm before",
        "FLAIR: field strength 3 T now, 1.5 T before",
        "FLAIR: inversion time 1650 ms now, 2500 ms before",
        "FLAIR: echo time 120 ms now, 80 ms before",
        "FLAIR: 3D now, 2D before",
    ]
    (note,) = examinations.find_common_inputs(present, prior, model, None).notes
    assert note.name == "protocols of the comparison"
    assert not note.holds_result


def test_small_differences_and_unknown_values_are_not_told() -> None:
    now = {"ti_ms": 1650.0, "te_ms": 120.0, "field_strength_t": 2.89}
    before = {"ti_ms": 1800.0, "field_strength_t": 3.0, "acquisition_type": "3D"}
    assert examinations.describe_differences(_examination(flair_facts=now), _examination(flair_facts=before)) == []


def test_a_prior_that_is_doubted_by_the_contract_holds_the_result(model: Model) -> None:
    facts = {"prior_flair": {"field_strength_t": 1.0}}
    prior = examinations.read_prior(Case({"prior_flair": _volume(), "prior_t1w": _volume()}, facts), model, None, "x")
    assert prior is not None
    (note,) = examinations.find_common_inputs(_examination(), prior, model, None).notes
    assert note.holds_result
    assert "Magnetic Field Strength (0018,0087) is 1 T" in note.text


def test_without_a_prior_flair_there_is_no_prior_examination(model: Model) -> None:
    assert examinations.read_prior(Case({"prior_t1w": _volume()}), model, None, "x") is None
