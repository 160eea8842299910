"""Any MONAI bundle as a pipeline: its output equals MONAI's own output for the same image, in the same place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from dicomnode.config import Config
from dicomnode.config.models import ModelsConfig
from dicomnode.config.node import NodeConfig
from dicomnode.deployment import pipeline_names
from dicomnode.errors import ConfigError
from dicomnode.reading import volumes
from model_zoo import installing, monai_config, registry, smoke
from model_zoo.bundle import BundleError, BundleFacts, Model
from model_zoo.installing import Policy
from pipelines import bundle, bundle_codes, bundle_volumes
from pipelines.contract import (
    Case,
    Finding,
    Grid,
    Image,
    Measurement,
    Note,
    Refused,
    Segmentation,
    Volume,
)
from tests.monai_bundles import (
    ORGANS,
    THRESHOLD_HU,
    transform,
    write_brats_bundle,
    write_doubling_bundle,
    write_spleen_bundle,
    write_whole_body_bundle,
)
from tests.scanner import ORIENTATIONS, make_grid
from tests.series import write_slices

SHAPE, SPACING_MM = (18, 30, 26), (3.0, 2.1, 1.7)
CHANNELS = ("T1c", "T1", "T2", "FLAIR")
Array = NDArray[np.float32]


def image(seed: int = 0) -> Array:
    """Return noise about 0 with a bright body of 200 that has no symmetry."""
    data = np.random.default_rng(seed).normal(0, 10, SHAPE).astype(np.float32)
    data[3:9, 5:20, 8:14] += 200
    data[9:12, 5:9, 8:20] += 200
    return data


def grid(orientation: str = "oblique") -> Grid:
    return make_grid(orientation, SHAPE, SPACING_MM, (-40, 25, 100))


def install(source: Path, root: Path, policy: Policy = Policy()) -> BundleFacts:
    with installing.stage_bundle(source, root, policy) as staged:
        smoke.run(staged.facts, "cpu", trusted_code=staged.trusted_code)
        return staged.commit()


def install_and_load(write: Callable[[Path], Path], folder: Path) -> Model:
    return registry.load_from(install(write(folder / "source" / "zoo"), folder / "models"))


def run(model: Model, *images: Array, on: Grid | None = None, modality: str = "CT", **options: Any) -> list[Finding]:
    names = CHANNELS if len(images) > 1 else ("image",)
    volumes = {name: Volume(data, on or grid(), "1", 3.0) for name, data in zip(names, images, strict=True)}
    case = Case(volumes, {"modality": modality})
    return bundle.run(case, model, bundle.Options(**options), 0, lambda done, step: None)


def segmentations(found: list[Finding]) -> list[Segmentation]:
    return [each for each in found if isinstance(each, Segmentation)]


def run_monai(source: Path, images: list[Array], on: Grid, folder: Path, model: Model) -> NDArray[np.float64]:
    """Return the values (k, j, i) that MONAI itself stores, with its reader, its writer and the whole configuration."""
    from monai.bundle import ConfigParser

    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ on.affine_mm
    files = []
    for number, data in enumerate(images):
        files.append(folder / f"in-{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(data.transpose(2, 1, 0), affine), files[-1])
    parser = ConfigParser(json.loads((source / "configs" / "inference.json").read_text()))
    parser["output_dir"] = str(folder / "out")
    with monai_config.suppress_warnings(), torch.inference_mode():
        data = parser.get_parsed_content("preprocessing")({"image": files if len(files) > 1 else files[0]})
        pred = parser.get_parsed_content("inferer")(data["image"][None], model.network)
        data["pred"] = pred[0]
        parser.get_parsed_content("postprocessing")(data)
    (stored,) = (folder / "out").rglob("*.nii.gz")
    written = nibabel.load(stored)
    assert np.allclose(written.affine, affine, atol=1e-3), "as the source lies"
    return np.asarray(np.asarray(written.dataobj).squeeze().T, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_lies_in_monais_patient_where_itk_and_nifti_say(orientation: str, tmp_path: Path) -> None:
    """ITK converts DICOM to NIfTI and MONAI's own reader reads it; no code of this project is in between."""
    from monai.transforms import LoadImage

    on = grid(orientation)
    files = write_slices(tmp_path / "dicom", on, np.round(image() + 500).astype(np.uint16))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "dicom")))
    SimpleITK.WriteImage(reader.Execute(), str(tmp_path / "image.nii.gz"))
    with monai_config.suppress_warnings():
        expected = LoadImage(image_only=True)(tmp_path / "image.nii.gz")
    ours = bundle_volumes.make_tensor([volumes.read(files).volume])
    between = np.linalg.solve(np.asarray(expected.affine), np.asarray(ours.affine))
    places = np.array([[0, 0, 0, 1], [9, 6, 4, 1], [10, 7, 11, 1], [25, 29, 17, 1]])
    for i, j, k, _ in places:
        index = between @ [i, j, k, 1]
        assert np.abs(index - index.round()).max() < 1e-2, "ITK may turn the order of slices, not their place"
        assert ours[i, j, k] == expected[tuple(index[:3].round().astype(int))]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_preprocessing_that_turns_to_ras_shows_the_network_a_patient_in_ras(orientation: str) -> None:
    from monai.transforms import Orientation

    on = grid(orientation)
    volume = Volume(image(), on)
    with monai_config.suppress_warnings():
        turned = Orientation(axcodes="RAS")(bundle_volumes.make_tensor([volume])[None])
    axes = np.asarray(turned.affine)[:3, :3] / np.linalg.norm(np.asarray(turned.affine)[:3, :3], axis=0)
    assert (np.diag(axes) > 0.4).all(), "right, anterior and superior"
    lps = bundle_volumes.read_grid(turned).affine_mm
    assert lps[0, 0] < 0
    assert lps[1, 1] < 0
    assert lps[2, 2] > 0


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_is_bright_is_found_where_it_is_and_nothing_is_flipped(orientation: str, tmp_path: Path) -> None:
    model = install_and_load(write_spleen_bundle, tmp_path)
    data = image()
    (found,) = segmentations(run(model, data, on=grid(orientation)))
    bright = data > THRESHOLD_HU
    assert 2 * (found.labels.astype(bool) & bright).sum() / (found.labels.sum() + bright.sum()) > 0.9
    for flipped in (bright[::-1], bright[:, ::-1], bright[:, :, ::-1]):
        assert 2 * (found.labels.astype(bool) & flipped).sum() / (found.labels.sum() + flipped.sum()) < 0.8


@pytest.mark.slow
def test_without_resampling_every_voxel_is_where_it_belongs(tmp_path: Path) -> None:
    source = write_spleen_bundle(tmp_path / "source" / "zoo")
    path = source / "configs" / "inference.json"
    content = json.loads(path.read_text())
    transforms = content["preprocessing"]["transforms"]
    content["preprocessing"]["transforms"] = [each for each in transforms if each["_target_"] != "Spacingd"]
    path.write_text(json.dumps(content))
    data = image()
    for orientation in ORIENTATIONS:
        model = registry.load_from(install(source, tmp_path / orientation))
        (found,) = segmentations(run(model, data, on=grid(orientation)))
        assert np.array_equal(found.labels, data > THRESHOLD_HU), orientation


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ["axial", "oblique", "sagittal"])
@pytest.mark.parametrize("write", [write_spleen_bundle, write_whole_body_bundle], ids=["spleen", "whole body"])
def test_labels_are_those_that_monai_itself_stores(
    write: Callable[[Path], Path], orientation: str, tmp_path: Path
) -> None:
    model, on, data = install_and_load(write, tmp_path), grid(orientation), image()
    (found,) = segmentations(run(model, data, on=on))
    expected = run_monai(tmp_path / "source" / "zoo", [data], on, tmp_path, model)
    assert len(np.unique(expected)) > 1
    assert (found.labels == expected).mean() > 0.9999  # a NIfTI file stores its affine in single precision


def test_four_images_become_the_map_that_monai_itself_stores(tmp_path: Path) -> None:
    model = install_and_load(lambda folder: write_brats_bundle(folder, to_one_map=True), tmp_path)
    images = [image(seed) for seed in range(4)]
    on = make_grid("oblique", (16, 32, 24), SPACING_MM, (0, 0, 0))
    images = [np.ascontiguousarray(np.resize(each, on.shape)) for each in images]
    names = {"1": "necrosis", "2": "edema", "4": "enhancing tumor"}
    found = run(model, *images, on=on, modality="MR", labels=names)
    (mask,) = segmentations(found)
    expected = run_monai(tmp_path / "source" / "zoo", images, on, tmp_path, model)
    assert [segment.label for segment in mask.segments] == ["Necrosis", "Edema", "Enhancing tumor"]
    assert np.array_equal(np.array([0, 1, 2, 4])[mask.labels], expected)


def test_numbers_that_no_channel_stands_for_get_no_channels_name(tmp_path: Path) -> None:
    model = install_and_load(lambda folder: write_brats_bundle(folder, to_one_map=True), tmp_path)
    found = run(model, *(np.resize(image(n), (16, 32, 24)) for n in range(4)), on=_make_even_grid(), modality="MR")
    (mask,) = segmentations(found)
    assert {segment.label for segment in mask.segments} <= {"Label 1", "Label 2", "Label 4"}
    assert all(segment.type == bundle_codes.UNCODED for segment in mask.segments)
    assert any(isinstance(each, Note) and each.name == "labels without a name" for each in found)


def test_structures_that_overlap_are_segmentations_of_their_own(tmp_path: Path) -> None:
    model = install_and_load(lambda folder: write_brats_bundle(folder, to_one_map=False), tmp_path)
    found = run(model, *(np.resize(image(n), (16, 32, 24)) for n in range(4)), on=_make_even_grid(), modality="MR")
    masks = segmentations(found)
    assert [each.segments[0].label for each in masks] == ["Tumor core", "Whole tumor", "Enhancing tumor"]
    assert (np.sum([each.labels for each in masks], axis=0) > 1).any()
    voxel_ml = float(np.prod(_make_even_grid().spacing_mm)) / 1000
    volumes = {each.group: each.value for each in found if isinstance(each, Measurement) and each.name == "volume"}
    assert volumes["Whole tumor"] == pytest.approx(masks[1].labels.sum() * voxel_ml)


def test_from_image_to_image_the_values_come_back_to_their_voxels(tmp_path: Path) -> None:
    model, data = install_and_load(write_doubling_bundle, tmp_path), image()
    found = run(model, data, modality="MR", unit="ms")
    (picture,) = [each for each in found if isinstance(each, Image)]
    assert np.abs(picture.volume.data - (2 * data + 1)).max() < 0.01
    assert (picture.modality, picture.volume.unit) == ("", "ms"), "no object of the scanner's modality"
    assert np.array_equal(picture.volume.grid.affine_mm, grid().affine_mm)


def test_labels_between_two_labels_are_not_made(tmp_path: Path) -> None:
    """Some bundles resample labels to the image's voxels as if they were grey levels."""
    source = write_whole_body_bundle(tmp_path / "source" / "zoo")
    path = source / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["postprocessing"]["transforms"][2]["nearest_interp"] = False
    path.write_text(json.dumps(content))
    model = registry.load_from(install(source, tmp_path / "models"))
    (mask,) = segmentations(run(model, image()))
    assert [segment.label for segment in mask.segments] == ["Spleen", "Kidney right", "Kidney left", "Vertebrae L1"]


def test_the_result_says_that_its_uncertainty_is_unknown_and_what_the_authors_say(tmp_path: Path) -> None:
    found = run(install_and_load(write_spleen_bundle, tmp_path), image())
    notes = {each.name: each.text for each in found if isinstance(each, Note)}
    assert notes["uncertainty"].startswith("Unknown.")
    assert "An example, not for diagnosis" in notes["intended use"]
    assert not any(isinstance(each, Measurement) and each.intervals for each in found)


def test_an_image_of_another_modality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"Modality \(0008,0060\) is MR; this bundle takes CT"):
        run(install_and_load(write_spleen_bundle, tmp_path), image(), modality="MR")


def test_probabilities_are_refused_as_no_labels(tmp_path: Path) -> None:
    source = write_spleen_bundle(tmp_path / "source" / "zoo")
    path = source / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["postprocessing"]["transforms"] = content["postprocessing"]["transforms"][:2]
    path.write_text(json.dumps(content))
    model = registry.load_from(install(source, tmp_path / "models"))
    with pytest.raises(Refused, match="no masks of 0 and 1; its postprocessing needs AsDiscreted"):
        run(model, image())


def test_a_bundle_that_does_not_say_what_comes_out_is_refused_until_the_route_does(tmp_path: Path) -> None:
    source = write_doubling_bundle(tmp_path / "source" / "zoo")
    path = source / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    del content["network_data_format"]["outputs"]["pred"]["format"]
    path.write_text(json.dumps(content))
    model = registry.load_from(install(source, tmp_path / "models"))
    with pytest.raises(Refused, match="option 'gives' may say which it is"):
        run(model, image(), modality="MR")
    assert any(isinstance(each, Image) for each in run(model, image(), modality="MR", gives="image"))


def test_what_the_steps_cannot_do_names_the_bundle_and_the_reason(tmp_path: Path) -> None:
    source = write_doubling_bundle(tmp_path / "source" / "zoo")
    path = source / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["preprocessing"]["transforms"].append(transform("Lambdad", func="$lambda x: x.reshape(-1)"))
    path.write_text(json.dumps(content))
    model = registry.load_from(install(source, tmp_path / "models"))
    with pytest.raises(BundleError, match=r"zoo@1\.0\.0 does not run on this image: "):
        run(model, image(), modality="MR")


def test_a_configuration_in_yaml_becomes_the_json_that_is_read(tmp_path: Path) -> None:
    import yaml

    source = write_spleen_bundle(tmp_path / "source" / "zoo")
    path = source / "configs" / "inference.json"
    content = json.loads(path.read_text())
    path.with_suffix(".yaml").write_text(yaml.safe_dump(content))
    path.unlink()
    facts = install(source, tmp_path / "models")
    assert json.loads((facts.path / "configs" / "inference.json").read_text()) == content
    assert segmentations(run(registry.load_from(facts), image()))


def test_the_pipeline_takes_its_inputs_and_its_title_from_the_bundle(tmp_path: Path) -> None:
    config = _make_config(tmp_path)
    install(write_brats_bundle(tmp_path / "source" / "brats", to_one_map=True), config.models_dir)
    install(write_spleen_bundle(tmp_path / "source" / "spleen"), config.models_dir)
    brats = pipeline_names.resolve_pipeline("bundle:brats", config)
    assert [each.name for each in brats.inputs] == list(CHANNELS)
    assert all(each.required for each in brats.inputs)
    assert (brats.bundle, brats.title) == ("brats", "Multimodal Brain Tumor segmentation")
    names = pipeline_names.list_pipelines(config)
    assert {"bundle:brats", "bundle:spleen", "anatomy"} <= set(names)
    assert "bundle:anatomy" not in names, "ours are pipelines of their own"
    for name, message in (("bundle", "bundle:NAME"), ("bundles:x", "no pipeline is named 'bundles:x'")):
        with pytest.raises(ConfigError, match=message):
            pipeline_names.resolve_pipeline(name, config)
    with pytest.raises(BundleError, match="no bundle nobody"):
        pipeline_names.resolve_pipeline("bundle:nobody", config)


def test_a_version_goes_with_the_pipeline_of_its_own_bundle_only() -> None:
    assert pipeline_names.allows_bundle("bundle:spleen", "spleen")
    assert not pipeline_names.allows_bundle("bundle:spleen", "liver")
    assert not pipeline_names.allows_bundle("anatomy", "mri_prior")
    assert pipeline_names.allows_bundle("a site's own", "anatomy")


def test_codes_are_those_of_the_standard_and_a_name_that_only_contains_one_has_none() -> None:
    table = bundle_codes.ANATOMY
    sct = {each.value: each for each in (codes.SCT.Spleen, codes.SCT.Kidney, codes.SCT.InferiorVenaCava)}
    assert {table["spleen"], table["kidney"], table["inferior vena cava"]} == set(sct)
    assert [bundle_codes.encode_label(name).meaning for name in ORGANS] == ["Spleen", "Kidney", "Kidney", "Vertebra"]
    assert bundle_codes.encode_label("hippocampus").value == "5366008"
    assert bundle_codes.encode_label("Tumour core").value == "108369006"
    for name in ("liver vessel", "heart atrium appendage", "something", ""):
        assert bundle_codes.encode_label(name) == bundle_codes.UNCODED


def test_every_code_of_the_table_is_in_the_dictionary_of_the_standard() -> None:
    from pydicom.sr import _concepts_dict

    dictionary: Any = _concepts_dict.concepts["SCT"]
    known = {value for each in dictionary.values() for value in each}
    abnormal = {value for value, _ in bundle_codes.ABNORMAL.values()}
    assert {*bundle_codes.ANATOMY.values(), *abnormal} <= known


def _make_even_grid() -> Grid:
    """Return a grid with even shape."""
    return make_grid("oblique", (16, 32, 24), SPACING_MM, (0, 0, 0))


def _make_config(folder: Path) -> Config:
    return Config(node=NodeConfig(data_dir=folder / "data"), models=ModelsConfig(), path=folder / "node.toml")
