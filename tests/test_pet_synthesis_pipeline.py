"""Synthesis of amyloid and tau PET from a T1w image: geometry, units and notes, by a network that paints a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from dicomnode.reading import volumes
from model_zoo import pet_synthesis as network
from model_zoo import registry
from model_zoo.bundle import BundleError, Model
from model_zoo.physics.tracers import COMPOSITES
from model_zoo.simulate.pet.activity import compute_block_fractions
from model_zoo.structures import COUNT, number
from model_zoo.training.pet_synthesis import RECIPE
from pipelines import pet_numbers, pet_prompt, pet_subject, pet_synthesis
from pipelines.anatomy import Anatomy
from pipelines.contract import (
    Case,
    Covariates,
    Finding,
    Grid,
    Image,
    Measurement,
    Note,
    ParametricMap,
    Refused,
    Sourced,
    Volume,
)
from pipelines.quality import judge_result, read_output_limits
from tests.bundles import SPACING_MM, centred_grid, levels, phantom, phantom_grid, write_anatomy_bundle
from tests.pet_bundle import FINE, paint_suvr, sample_phantom, write_pet_bundle
from tests.series import unpack_series

pytestmark = pytest.mark.training

PATIENT = Covariates(Sourced(71.0, "a header"), Sourced("F", "a header"), mmse=Sourced(24, "a report"))
PATIENTS = "scans of patients"
FACTS = {"modality": "MR", "body_part": "HEAD"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a node's data folder that holds both bundles."""
    data = tmp_path_factory.mktemp("data")
    write_anatomy_bundle(data / "models")
    write_pet_bundle(data / "models")
    return data


@pytest.fixture(scope="module")
def model(bundles: Path) -> Model:
    helpers = {"anatomy": registry.load("anatomy", root=bundles / "models")}
    return replace(registry.load("pet_synthesis", root=bundles / "models"), helpers=helpers)


@pytest.fixture(scope="module")
def patients_model(model: Model) -> Model:
    """Return the model as if it had been trained on patients."""
    return replace(model, metadata={**model.metadata, "trained_on": PATIENTS})


def _run(
    model: Model, *, covariates: Covariates = PATIENT, seed: int = 1, grid: Grid | None = None, **options: Any
) -> list[Finding]:
    onto = grid or phantom_grid()
    t1w = Volume(levels(sample_phantom(onto)), onto, slice_thickness_mm=2.5)
    case = Case({"t1w": t1w, "covariates": covariates}, FACTS)
    return pet_synthesis.run(case, model, pet_synthesis.Options(**options), seed, lambda fraction, step: None)


@pytest.fixture(scope="module")
def findings(model: Model) -> list[Finding]:
    """Return what the pipeline finds of the patient, for all tests that only look at it."""
    return _run(model, samples=2)


@pytest.fixture(scope="module")
def patients_findings(patients_model: Model) -> list[Finding]:
    """Return the same of the model that was trained on patients."""
    return _run(patients_model, samples=2)


def _select_images(findings: list[Finding]) -> dict[str, Image]:
    return {each.name: each for each in findings if isinstance(each, Image)}


def _select_measurements(findings: list[Finding]) -> dict[str, Measurement]:
    return {each.name: each for each in findings if isinstance(each, Measurement)}


def _select_notes(findings: list[Finding]) -> dict[str, str]:
    return {each.name: each.text for each in findings if isinstance(each, Note)}


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique, left-handed"])
def test_structures_land_where_the_t1w_has_them(orientation: str, patients_model: Model) -> None:
    grid = centred_grid(orientation, (5.0, 2.5, 2.5))
    truth = sample_phantom(grid)
    found = _select_images(_run(patients_model, grid=grid, samples=2))
    for target, tracer in (("amyloid", "florbetapir"), ("tau", "flortaucipir")):
        volume = found[f"{target} PET"].volume
        assert volume.grid.shape == grid.shape
        assert np.array_equal(volume.grid.affine_mm, grid.affine_mm)
        expected = ndimage.gaussian_filter(paint_suvr(tracer, truth), 4.0 / np.array(grid.spacing_mm))
        right = np.corrcoef(volume.data.ravel(), expected.ravel())[0, 1]
        flipped = [np.corrcoef(np.flip(volume.data, a).ravel(), expected.ravel())[0, 1] for a in range(3)]
        assert right > 0.99
        assert right > max(flipped) + 0.003
        far = ndimage.binary_dilation(truth > 0, iterations=6)
        assert float(np.abs(volume.data[~far]).max()) < 0.02


def test_the_grid_holds_the_fractions_that_training_has(model: Model) -> None:
    _, structure = phantom()
    labels = np.zeros((60, 62, 58), np.uint8)
    labels[5:53, 3:59, 8:56] = structure
    grid = Grid((60, 62, 58), np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0]))
    t1w = Volume(levels(labels), grid)
    subject = pet_subject.prepare_subject(t1w, Anatomy(labels, np.ones(labels.shape, np.float32), grid, labels), model)
    start = np.linalg.solve(grid.affine_mm, subject.grid.affine_mm[:, 3])[2::-1] - (FINE - 1) / 2
    assert np.allclose(start, np.round(start))
    k, j, i = (int(s) for s in start)
    wide = np.zeros(tuple(FINE * n for n in subject.grid.shape), np.uint8)
    k0, j0, i0 = (max(s, 0) for s in (k, j, i))
    part = labels[k0 : k + wide.shape[0], j0 : j + wide.shape[1], i0 : i + wide.shape[2]]
    wide[k0 - k : k0 - k + part.shape[0], j0 - j : j0 - j + part.shape[1], i0 - i : i0 - i + part.shape[2]] = part
    assert torch.allclose(subject.maps, compute_block_fractions(torch.from_numpy(wide), COUNT + 1, FINE)[1:], atol=1e-4)
    assert float(subject.y0.min()) == 0.0
    assert float(subject.y0.max()) == 1.0


def test_a_head_larger_than_the_networks_box_is_not_cut(model: Model) -> None:
    small = replace(model, settings={**model.settings, "shape": [8, 8, 8]})
    labels = phantom()[1]
    subject = pet_subject.prepare_subject(
        Volume(phantom()[0], phantom_grid()),
        Anatomy(labels, np.ones(labels.shape, np.float32), phantom_grid(), labels),
        small,
    )
    found_ml = float(subject.maps.sum()) * (FINE * SPACING_MM) ** 3
    assert found_ml == pytest.approx((labels > 0).sum() * SPACING_MM**3, rel=1e-3)
    assert all(n % int(model.network.stride) == 0 for n in subject.grid.shape)  # type: ignore[arg-type]


def test_images_and_maps_carry_units_and_thickness(patients_model: Model) -> None:
    found = _run(patients_model, samples=3)
    assert set(_select_images(found)) == {"amyloid PET", "tau PET"}
    maps = [each for each in found if isinstance(each, ParametricMap)]
    assert [each.name for each in maps] == ["standard deviation of amyloid PET", "standard deviation of tau PET"]
    images_and_maps: list[Image | ParametricMap] = [*_select_images(found).values(), *maps]
    for each in images_and_maps:
        assert each.volume.unit == "{SUVr}"
        assert each.slice_thickness_mm == 2.5
        assert float(each.volume.data.min()) >= 0
    assert "florbetapir" in _select_images(found)["amyloid PET"].description
    assert float(maps[0].volume.data.max()) > 0.02


def test_one_is_the_reference_region_of_the_delivered_image(patients_findings: list[Finding]) -> None:
    measured = _select_measurements(patients_findings)
    assert measured["tau SUVR of cerebellar cortex"].value == pytest.approx(1.0, abs=1e-4)
    assert 0.5 < measured["reference factor of tau PET"].value < 1.2
    assert 0.2 < measured["activity outside the brain of amyloid PET"].value < 0.9


def test_regions_have_sites_codes_units_and_ordered_intervals(patients_model: Model) -> None:
    measured = _select_measurements(_run(patients_model, samples=4))
    frontal = measured["amyloid SUVR of frontal cortex"]
    assert (frontal.group, frontal.unit) == ("frontal cortex", "{SUVr}")
    assert frontal.site is not None
    assert (frontal.site.value, [each.value for each in frontal.site.modifiers]) == ("40146001", ["83251001"])
    for name in ("amyloid SUVR of frontal cortex", "tau SUVR of temporal cortex", "tau composite SUVR", "Centiloid"):
        each = measured[name]
        eighty, ninety_five = each.intervals
        assert (eighty.level, ninety_five.level) == (0.80, 0.95)
        assert ninety_five.low < eighty.low < each.value < eighty.high < ninety_five.high, name
    suvr, load = measured["amyloid composite SUVR"].value, measured["Centiloid"].value
    assert load == pytest.approx(175 * suvr - 182)


def test_intervals_are_those_of_the_stated_sd_about_the_mean() -> None:
    sd = torch.full((2, COUNT), 0.1)
    one = torch.full((2, COUNT), 1.3)
    sampled = one + 0.01 * torch.randn((4, 2, COUNT), generator=torch.Generator().manual_seed(1))
    measured = _select_measurements(
        pet_numbers.measure_pet(one, sd, sampled, network.Covariates(), pet_synthesis.Options(), {})
    )
    together = float(network.composite_sd(sd)[0])
    for name, spread in (
        ("tau SUVR of temporal cortex", 0.1),
        ("amyloid composite SUVR", together),
        ("Centiloid", 175 * together),
    ):
        for found, z in zip(measured[name].intervals, (1.2816, 1.9600), strict=True):  # normal density, table
            assert found.high - measured[name].value == pytest.approx(z * spread, rel=1e-3), name
            assert measured[name].value - found.low == pytest.approx(z * spread, rel=1e-3), name


def test_the_bundle_s_factors_replace_those_of_a_normal_density() -> None:
    sd, one = torch.full((2, COUNT), 0.1), torch.full((2, COUNT), 1.3)
    factors = {
        "flortaucipir": {"temporal cortex": [1.0, 3.0]},
        "florbetapir": {"composite": [0.5, 2.0], "subjects": 240},
        "PiB": {"composite": [9.0, 9.0]},
    }
    findings = pet_numbers.measure_pet(
        one, sd, one[None], network.Covariates(), pet_synthesis.Options(), {"interval_factors": factors}
    )
    notes = _select_notes(findings)
    assert notes["intervals of amyloid"].endswith("from the errors on 240 validation subjects.")
    assert notes["intervals of tau"].endswith("assumed, errors being normal.")
    measured = _select_measurements(findings)
    eighty, ninety_five = measured["tau SUVR of temporal cortex"].intervals
    assert [eighty.low, eighty.high, ninety_five.low, ninety_five.high] == pytest.approx([1.2, 1.4, 1.0, 1.6])
    spread = 175 * float(network.composite_sd(sd)[0])  # Centiloid is linear in the composite
    load = measured["Centiloid"]
    assert [x - load.value for each in load.intervals for x in (each.low, each.high)] == pytest.approx(
        [-0.5 * spread, 0.5 * spread, -2 * spread, 2 * spread], rel=1e-4
    )
    assert measured["tau SUVR of insula"].intervals[0].high == pytest.approx(1.3 + 0.12816, rel=1e-3)


def test_the_composite_s_sd_is_that_of_structures_with_a_common_part() -> None:
    sd = 0.05 + torch.rand((2, COUNT), generator=torch.Generator().manual_seed(2)) / 10
    for at, target in enumerate(network.TARGETS):
        w = torch.zeros(COUNT)
        for name, share in COMPOSITES[target].items():
            w[number(name) - 1] = share
        covariance = network.COMMON * sd[at][:, None] * sd[at] + (1 - network.COMMON) * torch.diag(sd[at] ** 2)
        assert float(network.composite_sd(sd)[at]) == pytest.approx(float((w @ covariance @ w).sqrt()), rel=1e-5)


@pytest.mark.parametrize(
    ("loads", "p", "status"),
    [((1.0,) * 8, 0.0, "negative"), ((1.5,) * 8, 1.0, "positive"), ((1.0, 1.5) * 4, 0.5, "und")],
)
def test_inside_the_band_nothing_is_said_of_amyloid(loads: tuple[float, ...], p: float, status: str) -> None:
    regions = torch.tensor(loads)[:, None, None].expand(8, 2, COUNT)
    sd = torch.full((2, COUNT), 0.1)
    found = pet_numbers.measure_pet(regions.mean(0), sd, regions, network.Covariates(), pet_synthesis.Options(), {})
    measured = _select_measurements(found)
    probability = measured["probability of amyloid"]
    assert probability.value == p
    assert measured["amyloid status abstained"].value == float(status == "und")
    assert _select_notes(found)["amyloid status"].startswith(status)
    eighty, ninety_five = probability.intervals
    assert 0 <= ninety_five.low <= eighty.low <= p <= eighty.high <= ninety_five.high <= 1


def test_every_output_limit_of_the_recipe_is_measured(findings: list[Finding]) -> None:
    measured = _select_measurements(findings)
    assert RECIPE.facts["output_limits"] == network.OUTPUT_LIMITS
    for limits in network.OUTPUT_LIMITS.values():
        assert set(limits) <= set(measured) | {"denoising deviation"}  # the prior is not at hand in this test
    factor = Measurement("reference factor of tau PET", 0.8, "1")
    assert judge_result([factor], read_output_limits(RECIPE.facts)).outcome == "hold"


CLINICAL = ("SUVR", "Centiloid", "probability of amyloid", "amyloid status")


def test_simulation_trained_weights_give_images_but_no_clinical_numbers(findings: list[Finding]) -> None:
    assert [name for name in _select_measurements(findings) if any(term in name for term in CLINICAL)] == []
    notes = _select_notes(findings)
    assert notes["clinical numbers"].startswith("Withheld")
    assert "simulation only" in notes["clinical numbers"]
    assert "amyloid status" not in notes
    for image in _select_images(findings).values():
        assert image.volume.unit == "1"
        assert "relative" in image.description
    assert "reference factor of tau PET" in _select_measurements(findings)


def test_a_site_may_ask_for_the_numbers_and_is_told_what_they_are_worth(
    model: Model, patients_findings: list[Finding]
) -> None:
    with_numbers = _run(model, samples=2, clinical_numbers="give")
    assert "Centiloid" in _select_measurements(with_numbers)
    assert "say nothing of this patient" in _select_notes(with_numbers)["clinical numbers"]
    assert "clinical numbers" not in _select_notes(patients_findings)


def _select_arrays(findings: list[Finding]) -> dict[str, NDArray[np.float32]]:
    return {each.name: each.volume.data for each in findings if isinstance(each, Image | ParametricMap)}


def test_the_same_seed_gives_the_same_and_another_one_other_samples(model: Model, findings: list[Finding]) -> None:
    one = _select_arrays(findings)
    again, other = (_select_arrays(_run(model, samples=2, seed=seed)) for seed in (1, 2))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert np.array_equal(one["amyloid PET"], other["amyloid PET"])
    assert not np.array_equal(one["standard deviation of tau PET"], other["standard deviation of tau PET"])


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_samples_of_any_number_of_steps_spread(steps: int, patients_model: Model) -> None:
    found = _run(patients_model, samples=12, steps=steps)
    eighty = _select_measurements(found)["tau composite SUVR"].intervals[0]
    assert 0.02 < eighty.high - eighty.low < 3


def test_what_if_images_say_so_and_leave_out_the_patients_own_score(model: Model) -> None:
    found = _select_images(_run(model, samples=2, what_if_mmse=(18, 24, 30)))
    terms = [f"WHAT IF MMSE {n} (not this patient's value)" for n in (18, 30)]
    assert set(found) == {"amyloid PET", "tau PET"} | {f"{t} PET {w}" for t in ("amyloid", "tau") for w in terms}
    for term in terms:
        assert found[f"tau PET {term}"].description.startswith(term)
        assert not np.array_equal(found[f"tau PET {term}"].volume.data, found["tau PET"].volume.data)


def test_what_if_differs_by_the_score_alone(model: Model) -> None:
    labels = phantom()[1]
    structures = Anatomy(labels, np.ones(labels.shape, np.float32), phantom_grid(), labels)
    subject = pet_subject.prepare_subject(Volume(phantom()[0], phantom_grid()), structures, model)
    options = pet_synthesis.Options(samples=2)
    covariates = pet_synthesis.network_covariates(PATIENT, options)
    found = pet_synthesis.estimate_pet(subject, covariates, model, options, 1)
    same, lower = (replace(covariates, mmse=score) for score in (24.0, 10.0))
    assert torch.equal(pet_synthesis.estimate_what_if(subject, same, model), found.mean)
    assert not torch.equal(pet_synthesis.estimate_what_if(subject, lower, model), found.mean)


def test_a_sentence_asks_for_one_tracer_of_another_patient(model: Model) -> None:
    found = _select_images(_run(model, samples=2, prompt="a tau image with later stage, MMSE 13, male"))
    assert set(found) == {"amyloid PET", "tau PET", "tau PET WHAT IF MMSE 13, male (not this patient's value)"}
    by_score = _select_images(_run(model, samples=2, what_if_mmse=(13,)))
    name = "tau PET WHAT IF MMSE 13 (not this patient's value)"
    asked = found["tau PET WHAT IF MMSE 13, male (not this patient's value)"].volume.data
    assert not np.array_equal(asked, by_score[name].volume.data)


@pytest.mark.parametrize(
    ("sentence", "covariates", "targets"),
    [
        ("a tau image with later stage, MMSE 13", {"mmse": 13.0}, ("tau",)),
        ("An amyloid PET with 70 years, female", {"age_years": 70.0, "sex": "F"}, ("amyloid",)),
        ("APOE e4 2, p-tau217 0.45", {"e4": 2, "ptau217_pg_ml": 0.45}, ("amyloid", "tau")),
    ],
)
def test_a_sentence_becomes_covariates(sentence: str, covariates: dict[str, Any], targets: tuple[str, ...]) -> None:
    found = pet_prompt.parse_prompt(sentence)
    assert dict(found.covariates) == covariates
    assert found.targets == targets


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("a tau image with early stage, MMSE 13", "late window only"),
        ("MMSE thirteen", "'mmse thirteen' is not understood"),
        ("MMSE 31", "0 to 30 points"),
        ("MMSE 3, MMSE 4", "said twice"),
        ("20 years", "50 to 95"),
        ("amyloid positive", "'amyloid positive' is not understood"),
        ("a tau image with later stage", "names no covariate"),
        ("MMSE 13, 70 years, female, e4 2, p-tau217 0.45", "longer than 40 characters"),
    ],
)
def test_what_a_sentence_says_beyond_the_grammar_is_refused(sentence: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        pet_synthesis.Options(prompt=sentence)


def test_covariates_and_where_they_are_from_are_noted(findings: list[Finding]) -> None:
    notes = _select_notes(findings)
    assert notes["covariate: age"] == "71 years (a header)"
    assert notes["covariate: MMSE"] == "24 points (a report)"
    assert notes["covariate: plasma p-tau217"] == "unknown (not stated)"
    assert notes["tau tracer"] == "flortaucipir, as 80 to 100 minutes after injection (option)"


def test_a_patient_of_whom_nothing_is_known_gets_an_image_of_its_own(model: Model, findings: list[Finding]) -> None:
    blank, informed = _select_images(_run(model, samples=2, covariates=Covariates())), _select_images(findings)
    assert not np.array_equal(blank["tau PET"].volume.data, informed["tau PET"].volume.data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 3}, "1, 4 or 15"),
        ({"what_if_mmse": [31]}, "30"),
        ({"abstain_between": [0.8, 0.2]}, "in order"),
        ({"scan_window": "early"}, "late"),
        ({"tau_tracer": "PiB"}, "flortaucipir"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        pet_synthesis.Options(**options)


def test_a_head_without_a_cerebellum_is_refused(model: Model) -> None:
    labels = phantom()[1]
    labels[np.isin(labels, [number("cerebellar cortex"), number("cerebellar white matter")])] = 0
    case = Case({"t1w": Volume(levels(labels), phantom_grid())}, FACTS)
    with pytest.raises(Refused, match=r"no activity in the reference region.*the image does not show the cerebellum"):
        pet_synthesis.run(case, model, pet_synthesis.Options(samples=2), 1, lambda fraction, step: None)


def test_the_shipped_model_makes_a_plausible_pet_of_a_real_t1w(kit: Path, tmp_path: Path) -> None:
    try:
        models = registry.load("pet_synthesis"), registry.load("anatomy")
    except BundleError as error:
        pytest.skip(f"a trained model is missing: {error}")
    series = volumes.read(unpack_series(kit / "mri" / "t1-dicom-studyforrest" / "dicoms.tar.xz", tmp_path))
    thin = series.volume
    data = np.ascontiguousarray(thin.data[::3, ::2, ::2])
    affine = thin.grid.affine_mm @ np.diag([2, 2, 3, 1.0])
    case = Case({"t1w": Volume(data, Grid(data.shape, affine)), "covariates": PATIENT}, series.facts)
    model = replace(models[0], helpers={"anatomy": models[1]})
    options = pet_synthesis.Options(samples=2, clinical_numbers="give")
    found = pet_synthesis.run(case, model, options, 1, lambda fraction, step: None)
    measured = _select_measurements(found)
    assert 0.8 < measured["reference factor of amyloid PET"].value < 1.2
    assert 0.8 < measured["reference factor of tau PET"].value < 1.2
    assert 0.7 < measured["amyloid composite SUVR"].value < 2.2
    white, cortex = (
        measured[f"amyloid SUVR of {name}"].value for name in ("cerebral white matter", "occipital cortex")
    )
    assert white > cortex
    image = _select_images(found)["amyloid PET"].volume.data
    brain = data > np.quantile(data, 0.7)
    assert float(image[brain].mean()) > 2 * float(image[~brain].mean())
