"""The anatomy pipeline: geometry by a network that knows a phantom's grey levels, anatomy by the shipped one on real
scans.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage
from scipy import ndimage

from dicomnode.cli import main
from dicomnode.config import Config
from dicomnode.config.results import ResultsConfig
from dicomnode.deployment import models
from dicomnode.execution import processing
from dicomnode.reading import volumes
from dicomnode.results import marking
from model_zoo import registry
from model_zoo.bundle import BundleError, Model
from model_zoo.similarity import dice
from model_zoo.structures import COUNT, STRUCTURES, number
from pipelines import anatomy, quality
from pipelines.codes import encode_structure
from pipelines.contract import Case, Finding, Grid, Measurement, Refused, Segmentation, Volume
from tests.bundles import SPACING_MM, centred_grid, levels, phantom, phantom_grid, write_anatomy_bundle
from tests.dciodvfy import find_errors
from tests.findings import NOW
from tests.installed import pin_installed
from tests.peers import write_config
from tests.scanner import ORIENTATIONS
from tests.series import unpack_series, write_enhanced, write_slices

pytestmark = pytest.mark.training

ML = SPACING_MM**3 / 1000
LARGE = ("cerebral white matter", "frontal cortex", "csf", "cerebellar cortex")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a node's data folder that holds the tiny bundle."""
    data = tmp_path_factory.mktemp("data")
    write_anatomy_bundle(data / "models")
    return data


@pytest.fixture(scope="module")
def model(bundles: Path) -> Model:
    return registry.load("anatomy", root=bundles / "models")


def _make_asymmetric_phantom() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the phantom without csf on the patient's right and at the back, so that no flip goes unseen."""
    image, structure = phantom()
    gone = structure == number("csf")
    gone[:, :, 24:] = False
    gone[:, 30:] = False
    image[gone], structure[gone] = 0, 0
    return image, structure


def _resample_nearest(structure: NDArray[np.uint8], onto: Grid) -> NDArray[np.uint8]:
    """Return the phantom's structure at the centres of the voxels of another grid."""
    to_index = np.linalg.solve(phantom_grid().affine_mm, onto.affine_mm)
    k, j, i = np.indices(onto.shape).reshape(3, -1)
    at = (to_index @ np.stack([i, j, k, np.ones_like(i)]))[2::-1]
    found = ndimage.map_coordinates(structure, at, order=0, mode="constant")
    return np.asarray(found.reshape(onto.shape), np.uint8)


def test_on_the_networks_own_grid_every_voxel_is_right(model: Model) -> None:
    image, structure = _make_asymmetric_phantom()
    found = anatomy.segment_head(Volume(image, phantom_grid()), model)
    assert np.array_equal(found.image_labels, structure)
    assert found.volume_ml(number("csf")) == pytest.approx((structure == number("csf")).sum() * ML)
    assert found.mask("csf").sum() == (structure == number("csf")).sum()
    assert not (found.mask() & (structure == number("csf"))).any()
    assert all(n % 2 == 0 for n in found.labels.shape)
    assert found.grid.spacing_mm == (SPACING_MM,) * 3


@pytest.mark.parametrize("spacing_mm", [(3.1, 2.7, 2.9), (6.0, 2.5, 2.5)], ids=["thin slices", "thick slices"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_structures_are_found_where_they_are_in_any_orientation(
    orientation: str, spacing_mm: tuple[float, float, float], model: Model
) -> None:
    grid = centred_grid(orientation, spacing_mm)
    structure = _make_asymmetric_phantom()[1]
    truth = _resample_nearest(structure, grid)
    found = anatomy.segment_head(Volume(levels(truth), grid), model)
    assert dice(found.image_labels > 0, truth > 0) > 0.9
    for name in LARGE:
        assert dice(found.image_labels == number(name), truth == number(name)) > 0.6, name
        share = found.volume_ml(number(name)) / ((structure == number(name)).sum() * ML)
        assert 0.6 < share < 1.4, name


def test_what_hangs_apart_from_the_brain_is_dropped(model: Model) -> None:
    image, structure = phantom()
    image[:3, :3, :3] = 1.0
    found = anatomy.segment_head(Volume(image, phantom_grid()), model)
    assert np.array_equal(found.image_labels, structure)


def _run(model: Model, **options: Any) -> tuple[Segmentation, dict[str, Measurement]]:
    image, _ = phantom()
    case = Case(
        {"head": Volume(image, phantom_grid(), slice_thickness_mm=1.5)}, {"modality": "MR", "body_part": "BRAIN"}
    )
    findings = anatomy.run(case, model, anatomy.Options(**options), 0, lambda fraction, step: None)
    (segmentation,) = [found for found in findings if isinstance(found, Segmentation)]
    return segmentation, _by_name(findings)


def _by_name(findings: list[Finding]) -> dict[str, Measurement]:
    """Return measurements by name, "volume of hippocampus" where the group is Hippocampus."""
    found = [each for each in findings if isinstance(each, Measurement)]
    return {f"{m.name} of {m.group.lower()}" if m.group else m.name: m for m in found}


def test_every_structure_is_named_coded_coloured_and_measured(model: Model) -> None:
    segmentation, measured = _run(model)
    _, structure = phantom()
    assert [segment.number for segment in segmentation.segments] == list(range(1, COUNT + 1))
    assert [segment.type for segment in segmentation.segments] == [encode_structure(s) for s in STRUCTURES]
    assert len({segment.color for segment in segmentation.segments}) == COUNT
    assert segmentation.slice_thickness_mm == 1.5
    for s in STRUCTURES:
        expected = (structure == s.number).sum() * ML
        assert measured[f"volume of {s.name}"].value == pytest.approx(expected)
        assert 0.5 < measured[f"confidence of {s.name}"].value <= 1
    brain = (~np.isin(structure, [0, number("csf")])).sum() * ML
    assert measured["brain volume"].value == pytest.approx(brain)
    assert measured["intracranial volume"].value == pytest.approx((structure > 0).sum() * ML)
    tissues = sum(measured[f"{tissue} volume"].value for tissue in ("grey matter", "white matter", "csf"))
    assert tissues == pytest.approx(measured["intracranial volume"].value)


def test_structures_of_low_confidence_are_named(model: Model) -> None:
    flag = _run(model, least_confidence=1.0)[1]["structures of low confidence"]
    assert flag.value == COUNT
    assert "hippocampus" in flag.description
    assert _run(model, least_confidence=0.0)[1]["structures of low confidence"].value == 0


@pytest.mark.parametrize("structures", [(), ("hippocampus",)])
def test_an_anatomy_that_is_mostly_unsure_is_held(structures: tuple[str, ...], model: Model) -> None:
    limits = quality.read_output_limits(
        next(each for each in registry.list_bundles() if each.name == "anatomy").metadata
    )
    outcomes = {}
    for least in (0.0, 1.0):
        measured = _run(model, least_confidence=least, structures=structures)[1]
        outcomes[least] = quality.judge_result([measured["share of structures of low confidence"]], limits)
    assert outcomes[0.0].outcome is quality.Outcome.ACCEPT
    assert outcomes[1.0].outcome is quality.Outcome.HOLD
    assert outcomes[1.0].reason.startswith("share of structures of low confidence is 1, above the limit of 0.5: ")


def test_some_structures_only_are_numbered_anew(model: Model) -> None:
    segmentation, measured = _run(model, structures=("hippocampus", "insula"))
    _, structure = phantom()
    assert [(s.number, s.label) for s in segmentation.segments] == [(1, "Insula"), (2, "Hippocampus")]
    assert np.array_equal(segmentation.labels == 2, structure == number("hippocampus"))
    assert "volume of thalamus" not in measured
    with pytest.raises(ValidationError, match="no structure 'hipocampus'; there are: cerebral white matter"):
        anatomy.Options(structures=("hipocampus",))


@pytest.mark.parametrize(
    ("facts", "change", "reason"),
    [
        ({"modality": "PT"}, {}, "modality is PT"),
        ({"body_part": "KNEE"}, {}, "body part is KNEE"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "P", "ND")}, {}, "phase image"),
        ({}, {"spacing_mm": (1.0, 4.0, 4.0)}, "covers 48 x 224 x 192 mm"),
        ({}, {"spacing_mm": (9.0, 4.0, 4.0)}, r"9\.0 mm apart are too coarse"),
        ({}, {"value": 7.0}, "uniform"),
        ({}, {"value": np.nan}, "no numbers"),
    ],
)
def test_what_is_no_image_of_a_head_is_refused(
    facts: dict[str, Any], change: dict[str, Any], reason: str, model: Model
) -> None:
    image, _ = phantom()
    k, j, i = change.get("spacing_mm", (4.0, 4.0, 4.0))
    image = np.full_like(image, change["value"]) if "value" in change else image
    case = Case({"head": Volume(image, Grid(image.shape, np.diag([i, j, k, 1.0])))}, {"modality": "MR"} | facts)
    with pytest.raises(Refused, match=reason):
        anatomy.run(case, model, anatomy.Options(), 0, lambda fraction, step: None)


def _run_task(
    paths: list[Path], bundles: Path, settings: dict[str, Any] | None = None, **options: Any
) -> processing.TaskResult:
    sections = {"node": {"data_dir": str(bundles)}, "worker": {"device": "cpu"}, "quality": settings or {}}
    config = Config.model_validate(sections)
    task = processing.Task("key", "anatomy", "", options, {"match": paths}, 1, NOW)
    return processing.run_task(pin_installed(task, config), config, progress=lambda fraction, step: None)


def _to_stored_values(image: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.round(image * 2300).astype(np.uint16)


def _edit_carelessly(_: int, ds: Dataset) -> None:
    """Edit a data set as careless scanners and converters do: a wrong spacing, an age of two digits."""
    ds.SpacingBetweenSlices = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.PatientAge = "42"


WRITERS: dict[str, Callable[[Path, Grid, NDArray[np.uint16]], list[Path]]] = {
    "single frames": lambda folder, grid, data: write_slices(folder, grid, data, edit=_edit_carelessly),
    "enhanced, frames in disorder": lambda folder, grid, data: [
        write_enhanced(folder / "e.dcm", grid, data, [*range(1, grid.shape[0], 2), *range(0, grid.shape[0], 2)])
    ],
}


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique, left-handed"])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_segmentation_opens_on_its_source(writer: str, orientation: str, bundles: Path, tmp_path: Path) -> None:
    grid = centred_grid(orientation, (5.0, 2.5, 2.5))
    _, structure = _make_asymmetric_phantom()
    truth = _resample_nearest(structure, grid)
    paths = WRITERS[writer](tmp_path / "in", grid, _to_stored_values(levels(truth)))
    produced = _run_task(paths, bundles)
    ds, _ = produced.objects
    marking.check_marks(ds)
    path = tmp_path / "seg.dcm"
    assert find_errors(ds, path) == []
    _check_on_source(path, volumes.read(paths).volume.grid, truth, grid)
    _check_references(dcmread(path), [dcmread(each) for each in paths])


def _check_on_source(path: Path, source: Grid, truth: NDArray[np.uint8], grid: Grid) -> None:
    segmentation = hd.seg.segread(str(path))
    volume = segmentation.get_volume(combine_segments=True, rescale_fractional=False, allow_missing_positions=True)
    labels = np.zeros(source.shape, np.uint8)
    assert volume.array.shape[1:] == source.shape[1:]
    for frame in range(volume.array.shape[0]):
        for j, i in ((0, 0), (source.shape[1] - 1, source.shape[2] - 1)):
            at = np.linalg.solve(source.affine_mm, volume.affine @ [frame, j, i, 1])
            assert np.allclose(at[:2], (i, j), rtol=0, atol=1e-3)
            assert abs(at[2] - round(at[2])) < 1e-3
        labels[round(at[2])] = volume.array[frame]
    if np.linalg.det(grid.affine_mm[:3, :3]) < 0:
        labels = labels[::-1]
    for name in ("cerebral white matter", "csf", "frontal cortex"):
        assert dice(labels == number(name), truth == number(name)) > 0.65, name


def _check_references(ds: Dataset, sources: list[Dataset]) -> None:
    uids = {source.SOPInstanceUID for source in sources}
    assert ds.SOPClassUID == SegmentationStorage
    assert {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence} == uids
    assert len(ds.SourceImageSequence) == len(sources)
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert ds.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert str(ds.PatientName) == "Müller^Jörg"
    frame_sources = {
        (item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber"))
        for frame in ds.PerFrameFunctionalGroupsSequence
        for item in frame.DerivationImageSequence[0].SourceImageSequence
    }
    assert {uid for uid, _ in frame_sources} <= uids
    for frame in ds.PerFrameFunctionalGroupsSequence[:: max(len(ds.PerFrameFunctionalGroupsSequence) // 20, 1)]:
        item = frame.DerivationImageSequence[0].SourceImageSequence[0]
        (source,) = [each for each in sources if each.SOPInstanceUID == item.ReferencedSOPInstanceUID]
        number_of = item.get("ReferencedFrameNumber")
        place = source.PerFrameFunctionalGroupsSequence[number_of - 1].PlanePositionSequence[0] if number_of else source
        at = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(np.array(at, float), np.array(place.ImagePositionPatient, float), atol=1e-3)
    first = ds.SegmentSequence[0]
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert "anatomy" in first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName
    assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "0.0.1"
    assert len(first.RecommendedDisplayCIELabValue) == 3
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert [segment.SegmentNumber for segment in ds.SegmentSequence] == list(range(1, COUNT + 1))


def test_a_retry_makes_the_same_object_and_the_report_tells_the_volumes(bundles: Path, tmp_path: Path) -> None:
    paths = write_slices(tmp_path, phantom_grid(), _to_stored_values(phantom()[0]))
    first, again = (_run_task(paths, bundles, structures=["hippocampus"]) for _ in range(2))
    assert first.objects == again.objects
    assert {(m["name"], m["group"]) for m in first.report["measurements"]} >= {
        ("brain volume", ""),
        ("volume", "Hippocampus"),
    }
    assert first.report["acquisition"]["modality"] == "MR"
    assert "Müller" not in str(first.report)


def _edit_deep_resolve(_: int, ds: Dataset) -> None:
    ds.Manufacturer, ds.ImageType = "SIEMENS", ["ORIGINAL", "PRIMARY", "M", "DRB", "NORM", "DIS2D"]


def test_a_reconstruction_by_deep_learning_is_stated_and_a_site_may_hold_or_refuse_it(
    bundles: Path, tmp_path: Path
) -> None:
    paths = write_slices(tmp_path, phantom_grid(), _to_stored_values(phantom()[0]), edit=_edit_deep_resolve)
    rule: dict[str, object] = {"fact": "deep_learning_reconstruction", "none_of": ["on"], "otherwise": "hold"}
    result = _run_task(paths, bundles, {"input_rules": [rule]}, structures=["hippocampus"])
    assert "is on; this node takes none of on" in result.held_because
    sentence = "The scanner reconstructed an input by deep learning (Deep Resolve Boost)."
    assert {"name": "reconstruction by deep learning", "text": f"head: {sentence}"} in result.report["notes"]
    assert result.report["acquisition"]["deep_learning_reconstruction"] == "on"
    (report,) = [ds for ds in result.objects if ds.Modality == "SR"]
    assert sentence in report.to_json()
    assert all(sentence in ds.ImageComments for ds in result.objects if ds.Modality == "SEG")
    with pytest.raises(Refused, match="is on; this node takes none of on"):
        _run_task(paths, bundles, {"input_rules": [rule | {"otherwise": "refuse"}]})


def test_a_known_limit_of_the_model_is_a_note_of_the_results_of_that_pipeline(tmp_path: Path) -> None:
    bundle = write_anatomy_bundle(tmp_path / "models")
    metadata = bundle / "configs" / "metadata.json"
    limits = {"anatomy": "Small nuclei are uncertain.", "other": "Of no concern here."}
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"known_limits": limits}))
    paths = write_slices(tmp_path / "in", phantom_grid(), _to_stored_values(phantom()[0]))
    result = _run_task(paths, tmp_path, structures=["hippocampus"])
    note = {"name": "known limit of the model", "text": "Small nuclei are uncertain."}
    assert [each for each in result.report["notes"] if each["name"] == note["name"]] == [note]
    (report,) = [ds for ds in result.objects if ds.Modality == "SR"]
    assert "Small nuclei are uncertain." in report.to_json()


def test_a_label_map_object_holds_the_same(bundles: Path, tmp_path: Path) -> None:
    image, structure = phantom()
    paths = write_slices(tmp_path / "in", phantom_grid(), _to_stored_values(image))
    config = Config.model_validate(
        {"node": {"data_dir": str(bundles)}, "results": ResultsConfig(segmentation_kind="labelmap").model_dump()}
    )
    task = processing.Task("key", "anatomy", "", {}, {"match": paths}, 1, NOW)
    ds, _ = processing.run_task(pin_installed(task, config), config, progress=lambda fraction, step: None).objects
    ds.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    _check_on_source(tmp_path / "seg.dcm", volumes.read(paths).volume.grid, structure, phantom_grid())


@pytest.fixture(scope="module")
def shipped_model() -> Model:
    try:
        return registry.load("anatomy")
    except BundleError as error:
        pytest.skip(f"no trained anatomy model: {error}")


def _check_plausible(found: anatomy.Anatomy) -> None:
    """Check for the volumes of a living adult, within generous limits."""
    measured = {name: m.value for name, m in _by_name(anatomy.measure_structures(found, anatomy.Options())).items()}
    assert 900 < measured["brain volume"] < 1800
    assert measured["brain volume"] < measured["intracranial volume"] < 2200
    assert 300 < measured["volume of cerebral white matter"] < 750
    assert 90 < measured["volume of cerebellar cortex"] + measured["volume of cerebellar white matter"] < 220
    assert 15 < measured["volume of brain stem"] < 45
    assert 2.5 < measured["volume of hippocampus"] < 14
    assert 7 < measured["volume of thalamus"] < 26
    assert 4 < measured["volume of putamen"] < 18


@pytest.fixture(scope="module")
def thin_series(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> volumes.Series:
    """Return a real T1w series of thin slices."""
    folder = tmp_path_factory.mktemp("studyforrest")
    return volumes.read(unpack_series(kit / "mri" / "t1-dicom-studyforrest" / "dicoms.tar.xz", folder))


@pytest.fixture(scope="module")
def thin_head(thin_series: volumes.Series, shipped_model: Model) -> anatomy.Anatomy:
    return anatomy.segment_head(thin_series.volume, shipped_model)


def test_a_real_t1w_scan_gets_plausible_volumes(thin_series: volumes.Series, thin_head: anatomy.Anatomy) -> None:
    anatomy.check_head(thin_series.volume, thin_series.facts)
    _check_plausible(thin_head)
    own_ml = thin_head.mask().sum() * np.prod(thin_series.volume.grid.spacing_mm) / 1000
    expected_ml = thin_head.volume_ml(*(s.number for s in STRUCTURES if s.name != "csf"))
    assert own_ml == pytest.approx(expected_ml, rel=0.02)


def test_thick_slices_of_the_same_head_agree_with_thin_ones(
    thin_series: volumes.Series, thin_head: anatomy.Anatomy, shipped_model: Model
) -> None:
    thin = thin_series.volume
    count = thin.grid.shape[0] // 7
    data = thin.data[: count * 7].reshape(count, 7, *thin.data.shape[1:]).mean(axis=1)
    affine = thin.grid.affine_mm.copy()
    affine[:3, 3] += affine[:3, 2] * 3
    affine[:3, 2] *= 7
    thick = Volume(data.astype(np.float32), Grid(data.shape, affine))
    found = anatomy.segment_head(thick, shipped_model)
    _check_plausible(found)
    middle = thin_head.image_labels[3 : count * 7 : 7]
    brain = [s.number for s in STRUCTURES if s.name != "csf"]
    assert dice(np.isin(middle, brain), np.isin(found.image_labels, brain)) > 0.9


def test_a_real_enhanced_t1w_scan_gets_plausible_volumes(shipped_model: Model, kit: Path) -> None:
    series = volumes.read([kit / "dicom" / "siemens-xa30-enhanced" / "t1w_mprage_defaced.dcm"])
    anatomy.check_head(series.volume, series.facts)
    _check_plausible(anatomy.segment_head(series.volume, shipped_model))


def test_the_shipped_bundle_is_the_default_beside_a_site_s_own(bundles: Path) -> None:
    config = Config.model_validate({"node": {"data_dir": str(bundles)}})
    assert models.find_bundle("anatomy", config).path.parent == registry.BUNDLES
    assert models.find_bundle("anatomy@0.0.1", config).path.parent == bundles / "models"
    assert models.find_bundle("mri_prior", config).path.parent == registry.BUNDLES
    with pytest.raises(BundleError, match=r"no bundle anatomy@9"):
        models.find_bundle("anatomy@9", config)


def test_the_same_network_for_a_scaled_image(model: Model) -> None:
    image, _ = phantom()
    one = anatomy.segment_head(Volume(image, phantom_grid()), model)
    other = anatomy.segment_head(replace(Volume(image, phantom_grid()), data=image * 40 + 1000), model)
    assert np.array_equal(one.image_labels, other.image_labels)


def test_run_takes_every_series_of_a_folder_and_leaves_what_is_no_image(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "node", node={"data_dir": str(bundles)})
    for key in ("one", "other"):
        write_slices(tmp_path / "in" / key, phantom_grid(), _to_stored_values(phantom()[0]), key=key)
    state = write_slices(tmp_path / "in" / "state", Grid((1, 56, 48), np.eye(4)), np.zeros((1, 56, 48), np.uint16))[0]
    no_image = dcmread(state)
    del no_image.PixelData, no_image.Rows
    no_image.save_as(state)
    arguments = [
        "run",
        "anatomy",
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--model",
        "anatomy@0.0.1",
        "--option",
        'structures=["insula"]',
        "--json",
    ]
    assert main(["--config", str(config), *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["segmentation", "report"] * 2
    studies = {dcmread(row["file"]).StudyInstanceUID for row in rows}
    assert studies == {dcmread(next((tmp_path / "in" / key).iterdir())).StudyInstanceUID for key in ("one", "other")}


def test_run_says_when_a_folder_holds_no_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert main(["run", "anatomy", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "holds no DICOM series of images" in capsys.readouterr().err
