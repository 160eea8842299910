"""Lesions without a DIR image, by a bundle with known answers on the phantom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.training.synthetic_dir import RECIPE
from pipelines import ms_lesions, synthetic_dir
from pipelines.contract import Case, Finding, Image, Measurement, Note, ParametricMap, Refused, Segmentation, Volume
from tests.bundles import phantom, phantom_grid, write_anatomy_bundle
from tests.dir_phantom import LESIONS, flair_of, lesion_mask, write_dir_bundle

FACTS: Mapping[str, Any] = {"modality": "MR", "ti_ms": 1650.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    models = tmp_path_factory.mktemp("data") / "models"
    write_anatomy_bundle(models)
    write_dir_bundle(models)
    own, anatomy = (registry.load(name, root=models) for name in ("synthetic_dir", "anatomy"))
    return replace(own, helpers={"anatomy": anatomy})


@pytest.fixture(scope="module")
def case() -> Case:
    flair = Volume(flair_of(phantom()[1], lesion_mask()), phantom_grid())
    return Case({"flair": flair, "t1w": Volume(phantom()[0], phantom_grid())}, FACTS)


def _run(model: Model, case: Case) -> list[Finding]:
    return ms_lesions.run(case, model, ms_lesions.Options(), 1, lambda done, step: None)


@pytest.fixture(scope="module")
def findings(model: Model, case: Case) -> list[Finding]:
    return _run(model, case)


def test_lesions_are_segmented_with_their_probability_and_no_image_is_made(findings: list[Finding]) -> None:
    (segmentation,) = [f for f in findings if isinstance(f, Segmentation)]
    (probability,) = [f for f in findings if isinstance(f, ParametricMap)]
    assert not [f for f in findings if isinstance(f, Image)]
    assert np.array_equal(segmentation.labels > 0, lesion_mask())
    assert probability.quantity.value == "122157"
    assert (probability.volume.data[lesion_mask()] > 0.9).all()
    assert probability.volume.data.max() <= 1


def test_numbers_are_those_of_synthetic_dir_without_those_on_dir(
    findings: list[Finding], model: Model, case: Case
) -> None:
    options = synthetic_dir.Options(passes=1)
    with_dir = synthetic_dir.run(case, model, options, 1, lambda done, step: None)
    own, other = (
        {(f.group, f.name): f.value for f in all_ if isinstance(f, Measurement)} for all_ in (findings, with_dir)
    )
    assert own[("", "lesions")] == len(LESIONS)
    assert own.items() <= other.items()
    assert not {name for group, name in own if group} & {"contrast", "probability of contrast"}


def test_every_output_limit_of_the_bundle_is_measured(findings: list[Finding]) -> None:
    measured = {f.name for f in findings if isinstance(f, Measurement)}
    limits = RECIPE.facts["output_limits"]
    names = {name for each in limits.values() for name in each}
    assert names <= measured | {"denoising deviation"}  # the prior is not at hand in this test


def test_flair_alone_says_so(model: Model) -> None:
    findings = _run(model, Case({"flair": Volume(phantom()[0], phantom_grid())}, FACTS))
    (note,) = [f for f in findings if isinstance(f, Note)]
    assert note.text.startswith("No T1w")
    assert [f.description for f in findings if isinstance(f, Segmentation)] == ["Lesions by location, from FLAIR alone"]


def test_a_t1w_alone_is_refused(model: Model) -> None:
    with pytest.raises(Refused, match="ms_lesions needs a FLAIR"):
        _run(model, Case({"t1w": Volume(phantom()[0], phantom_grid())}, FACTS))


def test_the_options_decide_as_those_of_synthetic_dir() -> None:
    own, other = ms_lesions.Options().thresholds, synthetic_dir.Options().thresholds
    assert (own.decision, own.max_listed) == (other.decision, other.max_listed)
