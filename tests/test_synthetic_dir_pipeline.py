"""DIR and lesions from FLAIR and T1w, by a bundle with known answers, on the phantom's grid and others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom.uid import SegmentationStorage

from dicomnode.config import Config
from dicomnode.errors import InputRefused
from dicomnode.execution import processing
from model_zoo import bias_field, registry
from model_zoo.bundle import Model
from model_zoo.structures import number
from pipelines import resampling, synthetic_dir
from pipelines.contract import (
    Alignment,
    Case,
    Finding,
    Grid,
    Image,
    Measurement,
    Note,
    ParametricMap,
    Refused,
    Segmentation,
    Volume,
)
from tests.bundles import centred_grid, phantom, phantom_grid, write_anatomy_bundle
from tests.dir_phantom import LESIONS, VOXEL_MM3, flair_of, lesion_mask, write_dir_bundle, write_flair, write_t1w
from tests.findings import NOW
from tests.installed import pin_installed

pytestmark = pytest.mark.training

FACTS: Mapping[str, Any] = {"modality": "MR", "ti_ms": 1650.0}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    write_anatomy_bundle(data / "models")
    write_dir_bundle(data / "models")
    return data


@pytest.fixture(scope="module")
def model(bundles: Path) -> Model:
    own, anatomy = (registry.load(name, root=bundles / "models") for name in ("synthetic_dir", "anatomy"))
    return replace(own, helpers={"anatomy": anatomy})


def _make_flair(*names: str) -> NDArray[np.float32]:
    return flair_of(phantom()[1], lesion_mask(*names))


def _make_t1w() -> Volume:
    return Volume(phantom()[0], phantom_grid())


def _run(model: Model, inputs: Mapping[str, Volume], **options: Any) -> list[Finding]:
    facts = {**FACTS, "prior_flair": dict(FACTS)}
    chosen = synthetic_dir.Options(**({"passes": 1} | options))
    return synthetic_dir.run(Case(dict(inputs), facts), model, chosen, 1, lambda fraction, step: None)


def _select_measurements(findings: list[Finding], group: str = "") -> dict[str, Measurement]:
    return {f.name: f for f in findings if isinstance(f, Measurement) and f.group == group}


def _find_one(findings: list[Finding], kind: type, name: str) -> Any:
    (found,) = [f for f in findings if isinstance(f, kind) and f.name == name]
    return found


@pytest.fixture(scope="module")
def findings(model: Model) -> list[Finding]:
    return _run(
        model, {"flair": Volume(_make_flair(), phantom_grid()), "t1w": _make_t1w()}, rendered=True, epistemic=True
    )


def test_white_matter_and_fluid_are_dark_and_cortex_is_one(findings: list[Finding]) -> None:
    image, structure = _find_one(findings, Image, "DIR").volume, phantom()[1]
    assert image.unit == "1"
    assert np.array_equal(image.grid.affine_mm, phantom_grid().affine_mm)
    normal = ~lesion_mask()
    level = {
        name: float(np.median(image.data[(structure == number(name)) & normal]))
        for name in ("cerebral white matter", "csf", "frontal cortex")
    }
    assert level["frontal cortex"] == pytest.approx(1, abs=0.3)
    assert level["cerebral white matter"] < 0.15
    assert level["csf"] < 0.15
    assert (image.data[structure == 0] == 0).mean() > 0.99


def test_every_lesion_is_segmented_where_it_is(findings: list[Finding]) -> None:
    segmentation = _find_one(findings, Segmentation, "lesions")
    assert np.array_equal(segmentation.labels > 0, lesion_mask())
    assert [s.label for s in segmentation.segments] == ["Lesion 1", "Lesion 2", "Lesion 3"]
    assert {s.type.scheme for s in segmentation.segments} == {"SCT"}


def test_lesions_are_counted_measured_and_placed(findings: list[Finding]) -> None:
    measured = _select_measurements(findings)
    assert measured["lesions"].value == len(LESIONS)
    assert measured["lesion load"].value == pytest.approx(lesion_mask().sum() * VOXEL_MM3 / 1000)
    assert sum(measured[f"{place} lesions"].value for place in ("juxtacortical", "periventricular", "deep")) == len(
        LESIONS
    )
    largest = _select_measurements(findings, "lesion 1")
    assert largest["volume"].value == pytest.approx(27 * VOXEL_MM3)
    assert largest["volume"].site is not None
    assert largest["mean lesion probability"].value > 0.9
    assert 0 <= largest["probability of contrast"].value <= 1
    assert largest["mean standard deviation"].value == pytest.approx(2**0.5 * np.exp(-5), rel=0.01)


def test_more_lesions_than_are_told_are_in_the_segmentation(model: Model) -> None:
    found = _run(model, {"flair": Volume(_make_flair(), phantom_grid()), "t1w": _make_t1w()}, lesions_told=1)
    assert not _select_measurements(found, "lesion 2")
    assert _find_one(found, Note, "lesions").text.startswith("2 further lesions of at most 512 mm3")
    assert np.array_equal(_find_one(found, Segmentation, "lesions").labels > 0, lesion_mask())


def test_the_maps_say_what_they_are(findings: list[Finding]) -> None:
    sd = _find_one(findings, ParametricMap, "standard deviation")
    assert (sd.quantity.value, sd.volume.unit) == ("386136009", "1")
    assert not _find_one(findings, ParametricMap, "epistemic standard deviation").volume.data.any()
    assert "TI" in _find_one(findings, Image, "rendered DIR").description


def test_inversion_times_may_be_chosen(model: Model) -> None:
    inputs = {"flair": Volume(_make_flair(), phantom_grid()), "t1w": _make_t1w()}
    found = _run(model, inputs, rendered=True, rendered_ti_ms=(3000, 400))
    assert "TI 3000 and 400 ms" in _find_one(found, Image, "rendered DIR").description


@pytest.mark.parametrize("orientation", ["sagittal", "oblique"])
def test_results_lie_on_the_flairs_own_grid(orientation: str, model: Model) -> None:
    grid = centred_grid(orientation, (6.0, 2.5, 2.5))
    flair = resampling.resample(torch.from_numpy(_make_flair("large"))[None], phantom_grid(), grid)[0].numpy()
    found = _run(model, {"flair": Volume(flair, grid, slice_thickness_mm=6.0), "t1w": _make_t1w()})
    segmentation, image = _find_one(found, Segmentation, "lesions"), _find_one(found, Image, "DIR")
    assert image.volume.data.shape == segmentation.labels.shape == grid.shape
    assert image.slice_thickness_mm == 6.0
    middle = np.argwhere(segmentation.labels > 0).mean(axis=0)[::-1]
    box = [(s.start + s.stop - 1) / 2 for s in reversed(LESIONS["large"])]
    off = grid.affine_mm @ [*middle, 1] - phantom_grid().affine_mm @ [*box, 1]
    assert np.linalg.norm(off) < 3


def test_t1w_that_lies_elsewhere_is_laid_on_the_flair(model: Model) -> None:
    away = phantom_grid()
    away.affine_mm[:3, 3] += (7, -5, 6)
    found = _run(model, {"flair": Volume(_make_flair(), phantom_grid()), "t1w": Volume(phantom()[0], away)})
    assert _select_measurements(found)["T1w shifted"].value == pytest.approx(np.sqrt(49 + 25 + 36), abs=1)
    assert _select_measurements(found)["lesions"].value == len(LESIONS)


def test_flair_alone_is_a_weaker_result_that_says_so(model: Model) -> None:
    alone = Volume(phantom()[0], phantom_grid())
    found = _run(model, {"flair": alone})
    assert "No T1w" in _find_one(found, Note, "inputs").text
    assert "FLAIR alone" in _find_one(found, Image, "DIR").description
    assert "T1w shifted" not in _select_measurements(found)


def test_flair_alone_has_a_contract_of_its_own(model: Model) -> None:
    thick = Volume(phantom()[0], Grid(phantom()[0].shape, np.diag([4, 4, 5, 1.0])))
    with pytest.raises(Refused, match=r"FLAIR without T1w: flair: largest voxel spacing .* is 5 mm"):
        _run(model, {"flair": thick})


def test_a_new_lesion_is_found_against_the_prior(model: Model) -> None:
    moved = phantom_grid()
    moved.affine_mm[:3, 3] += (9, 4, -6)
    before = Volume(_make_flair("large", "third"), moved)
    inputs = {
        "flair": Volume(_make_flair(), phantom_grid()),
        "t1w": _make_t1w(),
        "prior_flair": before,
        "prior_t1w": Volume(phantom()[0], moved),
    }
    found = _run(model, inputs)
    measured = _select_measurements(found)
    assert (measured["new lesions"].value, measured["enlarged lesions"].value) == (1, 0)
    assert measured["volume of new lesions"].value == pytest.approx(8 * VOXEL_MM3 / 1000)
    growth_ml = measured["lesion load compared"].value - measured["earlier lesion load"].value
    assert growth_ml == pytest.approx(measured["volume of new lesions"].value)
    assert measured["lesion load compared"].value == measured["lesion load"].value
    (alignment,) = [each for each in found if isinstance(each, Alignment)]
    assert alignment.name == "prior_flair"
    back = alignment.correction_mm @ moved.affine_mm
    assert np.abs((back - phantom_grid().affine_mm)[:3, 3]).max() < 1.0, "the prior lies on the present head again"
    labels = _find_one(found, Segmentation, "new lesions").labels
    assert np.array_equal(labels == 1, lesion_mask("small"))
    difference = _find_one(found, Image, "subtraction").volume.data
    assert difference[lesion_mask("small")].mean() > 0.3
    assert abs(difference[lesion_mask("large")].mean()) < 0.3


def test_a_prior_outside_the_contract_is_refused_as_the_earlier_one(model: Model) -> None:
    inputs = {
        "flair": Volume(_make_flair(), phantom_grid()),
        "t1w": _make_t1w(),
        "prior_flair": Volume(_make_flair(), phantom_grid()),
    }
    facts = {**FACTS, "prior_flair": {"modality": "MR", "ti_ms": 900.0}}
    with pytest.raises(Refused, match=r"the earlier examination: flair: Inversion Time \(0018,0082\) is 900 ms"):
        synthetic_dir.run(Case(inputs, facts), model, synthetic_dir.Options(passes=1), 1, lambda fraction, step: None)


def _make_plain_volume(spacing_mm: float = 4.0) -> Volume:
    """Return the phantom without lesions, in which the structures are found without a T1w."""
    grid = Grid(phantom()[0].shape, np.diag([4, 4, spacing_mm, 1.0]))
    return Volume(phantom()[0], grid)


def test_examinations_with_different_inputs_are_compared_by_those_that_both_have(model: Model) -> None:
    """The same head at both visits has changed nowhere, although only one visit has a T1w."""
    for with_t1w, lacking in (("t1w", "earlier"), ("prior_t1w", "present")):
        inputs = {"flair": _make_plain_volume(), "prior_flair": _make_plain_volume(), with_t1w: _make_plain_volume()}
        found = _run(model, inputs)
        text = _find_one(found, Note, "inputs of the comparison").text
        assert text.startswith(f"The {lacking} examination has no T1w: both are compared from FLAIR alone")
        difference = _find_one(found, Image, "subtraction").volume.data
        assert np.abs(difference).max() < 0.05
        assert _select_measurements(found)["new lesions"].value == 0


def test_examinations_with_the_same_inputs_have_no_note_on_them(model: Model) -> None:
    volume = _make_plain_volume()
    found = _run(model, {"flair": volume, "t1w": volume, "prior_flair": volume, "prior_t1w": volume})
    assert not [f for f in found if isinstance(f, Note) and "comparison" in f.name]


def test_a_prior_that_cannot_be_compared_holds_the_result_and_gives_no_change(model: Model) -> None:
    inputs = {"flair": Volume(_make_flair(), phantom_grid()), "t1w": _make_t1w(), "prior_flair": _make_plain_volume(5)}
    found = _run(model, inputs)
    note = _find_one(found, Note, "change")
    assert note.holds_result
    assert "The earlier examination has no T1w" in note.text
    assert "the earlier examination: FLAIR without T1w: flair: largest voxel spacing" in note.text
    assert _select_measurements(found)["lesions"].value == len(LESIONS)
    assert not [f for f in found if isinstance(f, Image) and f.name == "subtraction"]
    assert "new lesions" not in _select_measurements(found)


def test_a_t1w_alone_is_refused(model: Model) -> None:
    with pytest.raises(Refused, match="needs a FLAIR; a T1w alone does not say what DIR shows"):
        _run(model, {"t1w": _make_t1w()})


def _process(bundles: Path, inputs: Mapping[str, list[Path]], **options: Any) -> processing.TaskResult:
    config = Config.model_validate({"node": {"data_dir": str(bundles)}, "worker": {"device": "cpu"}})
    task = processing.Task("key", "synthetic_dir", "", {"passes": 1} | options, inputs, 1, NOW)
    return processing.run_task(pin_installed(task, config), config, progress=lambda fraction, step: None)


def test_files_become_marked_objects(bundles: Path, tmp_path: Path) -> None:
    inputs = {"match": write_flair(tmp_path / "f", _make_flair()), "t1w": write_t1w(tmp_path / "t")}
    made = _process(bundles, inputs)
    classes = [ds.SOPClassUID for ds in made.objects]
    assert SegmentationStorage in classes
    assert len(classes) >= 3
    names = {each["name"] for each in made.report["measurements"]}
    assert {"lesions", "lesion load", "bright without support"} <= names


def test_a_comparison_that_is_impossible_holds_the_job(bundles: Path, tmp_path: Path) -> None:
    thick = Grid(phantom()[0].shape, np.diag([4, 4, 5, 1.0]))
    inputs = {
        "match": write_flair(tmp_path / "f", _make_flair()),
        "t1w": write_t1w(tmp_path / "t"),
        "prior_flair": write_flair(tmp_path / "p", phantom()[0], key="prior", grid=thick),
    }
    made = _process(bundles, inputs)
    assert made.report["verdict"] == "hold"
    assert "change: No change is measured. The earlier examination has no T1w" in made.held_because


def test_wrong_series_are_refused_with_the_reason(bundles: Path, tmp_path: Path) -> None:
    flair, t1w = write_flair(tmp_path / "f", _make_flair()), write_t1w(tmp_path / "t")
    stir = write_flair(tmp_path / "s", _make_flair(), key="stir", ti_ms=220)
    with pytest.raises(Refused, match=r"flair: Inversion Time \(0018,0082\) is 220 ms; .* takes 1400 to 3000 ms"):
        _process(bundles, {"match": stir, "t1w": t1w})
    with pytest.raises(InputRefused, match="several series"):
        _process(bundles, {"match": flair + stir, "t1w": t1w})
    with pytest.raises(InputRefused, match="needs the input 'flair'"):
        _process(bundles, {"t1w": t1w})
    with pytest.raises(Refused, match=r"t1w: Echo Time \(0018,0081\) is 120 ms"):
        _process(bundles, {"match": flair, "t1w": stir})


def test_a_smooth_field_is_taken_away_and_lesions_are_left() -> None:
    structure = torch.from_numpy(phantom()[1])
    clean = torch.from_numpy(_make_flair())
    k, j, i = (torch.linspace(-1, 1, n) for n in clean.shape)
    true = torch.exp(0.25 * k[:, None, None] - 0.2 * j[:, None] * i + 0.1 * i**2)
    found = bias_field.estimate_bias_field(clean * true, structure, 4.0)
    solid = (structure > 0) & (structure != number("csf"))
    ratio = (found / true)[solid]
    assert float(true[solid].std() / true[solid].mean()) > 0.08
    assert float(ratio.std() / ratio.mean()) < 0.03
    assert torch.equal(bias_field.estimate_bias_field(clean, torch.zeros_like(structure), 4.0), torch.ones_like(clean))
