"""Results of every kind and every pipeline, checked and read back by other software."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.reading import volumes
from dicomnode.results import marking
from pipelines.contract import Image, Volume
from pipelines.quality import Outcome, Verdict
from tests.dciodvfy import DEBIAN, find_errors
from tests.findings import NOW, PROVENANCE, grid, make_findings, save, source
from tests.job_results import FORMS, PIPELINES, JobRun, run_job
from tests.peers import Orthanc
from tests.pet_series import FACTOR, write_pet
from tests.scanner import ORIENTATIONS

pytestmark = pytest.mark.slow

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
CLASSES = {
    ("multi-frame", "image"): MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ("single-frame", "image"): SecondaryCaptureImageStorage,
    ("parametric", "image"): ParametricMapStorage,
}


@pytest.fixture(scope="module", params=PIPELINES)
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> JobRun:
    return run_job(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("form", FORMS)
def test_dciodvfy_finds_no_error_and_every_mark_is_there(job: JobRun, form: str, tmp_path: Path) -> None:
    checked_series = set()
    for ds in job.of(form):
        marking.check_marks(ds)
        if ds.SeriesInstanceUID in checked_series:
            continue  # slices of a series differ in nothing that the standard looks at
        checked_series.add(ds.SeriesInstanceUID)
        messages = [line for line in find_errors(ds, tmp_path / "result.dcm") if "that is not segmentation" not in line]
        if ds.SOPClassUID == LABEL_MAP:  # younger than Debian's dciodvfy, as references to it
            messages = [line for line in messages if not line.startswith(str(DEBIAN))]
        assert messages == [], f"{form}: {ds.SOPClassUID.name}"
    assert len(checked_series) > 1


def test_every_object_of_a_form_stands_once_and_refers_to_objects_of_that_form(job: JobRun) -> None:
    inputs = {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in job.sent}
    for form in FORMS:
        objects = job.of(form)
        uids = [ds.SOPInstanceUID for ds in objects]
        assert len(uids) == len(set(uids))
        for ds in (each for each in objects if each.SOPClassUID in (SegmentationStorage, LABEL_MAP)):
            derived = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
            assert derived.ReferencedSOPInstanceUID in {*uids, *inputs}, form


def test_orthanc_takes_every_form_and_gives_it_back(job: JobRun, orthanc: Orthanc, tmp_path: Path) -> None:
    sent: set[tuple[str, str]] = set()
    for form in FORMS:
        for ds in job.of(form):
            if ds.SOPClassUID != LABEL_MAP and ds.SeriesInstanceUID not in {each[0] for each in sent}:
                orthanc.upload(save(ds, tmp_path))
                sent.add((ds.SeriesInstanceUID, ds.SOPInstanceUID))
    assert {(ds.SeriesInstanceUID, ds.SOPInstanceUID) for ds in orthanc.datasets()} == sent


def write_pet_result(orientation: str, folder: Path) -> tuple[list[Dataset], list[Dataset], Volume]:
    """Return the sources, the result in the form of a PET, and the volume that both hold."""
    where = grid(orientation, slices=5)
    data = (np.random.default_rng(4).random(where.shape) * 3e4).astype(np.float32)
    series = volumes.read(write_pet(folder, where, data, edit=_set_decay))
    result = Volume(series.volume.data * np.float32(0.9), series.volume.grid, "Bq/ml", 3.0)
    image = Image("standard dose", result, "Standard-dose PET", 3.0, modality="PT")
    objects = results.write(
        [image], series.headers, PROVENANCE, ResultsConfig(image_kind="modality", report=False), NOW
    )
    return series.headers, objects, result


def _set_decay(k: int, ds: Dataset) -> None:
    ds.DecayFactor, ds.FrameReferenceTime, ds.ActualFrameDuration = f"{1.0 + 0.01 * k:.3f}", f"{500 * k}", "600000"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_pet_of_a_pet_keeps_its_tracer_times_and_suv_and_simpleitk_reads_it(orientation: str, tmp_path: Path) -> None:
    sources, objects, result = write_pet_result(orientation, tmp_path / "in")
    pet = [ds for ds in objects if ds.SOPClassUID == PositronEmissionTomographyImageStorage]
    assert len(pet) == 5
    files = [save(ds, tmp_path, f"{n}.dcm") for n, ds in enumerate(pet)]
    again = volumes.read(files)
    assert np.abs(again.volume.grid.affine_mm - result.grid.affine_mm).max() < 1e-3
    assert np.allclose(again.volume.data, result.data, rtol=0, atol=float(result.data.max()) / 32767)
    assert again.volume.unit == "Bq/ml"
    assert again.facts["suv_bw_per_unit"] == pytest.approx(FACTOR, rel=1e-4)
    by_place = {tuple(map(float, ds.ImagePositionPatient)): ds for ds in sources}
    for ds in pet:
        near = min(
            by_place, key=lambda place: np.linalg.norm(np.array(place) - np.array(ds.ImagePositionPatient, float))
        )
        for keyword in ("FrameReferenceTime", "DecayFactor", "ActualFrameDuration", "AcquisitionTime", "SeriesTime"):
            assert ds[keyword].value == by_place[near][keyword].value, keyword
        assert (ds.Units, float(ds.RescaleIntercept), ds.ImageType[:2]) == ("BQML", 0, ["DERIVED", "PRIMARY"])
    order = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path), pet[0].SeriesInstanceUID)
    image = sitk.ReadImage(order)
    for k, j, i in ((0, 0, 0), (4, 39, 131), (2, 7, 90)):
        place = (result.grid.affine_mm @ [i, j, k, 1])[:3]
        index = image.TransformPhysicalPointToIndex(place.tolist())
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), place, rtol=0, atol=1e-3)
        assert image.GetPixel(index) == pytest.approx(result.data[k, j, i], abs=1.0)


def test_the_labelled_twin_of_a_pet_is_no_pet(tmp_path: Path) -> None:
    _, objects, _ = write_pet_result("axial", tmp_path / "in")
    labelled = [ds for ds in objects if ds.get("BurnedInAnnotation") == "YES"]
    assert [ds.SOPClassUID for ds in labelled] == [MultiFrameGrayscaleWordSecondaryCaptureImageStorage]


@pytest.mark.parametrize("lost", ["RadiopharmaceuticalInformationSequence", "DecayCorrection", "FrameReferenceTime"])
def test_a_pet_whose_source_lacks_a_fact_becomes_a_secondary_capture(lost: str, tmp_path: Path) -> None:
    where = grid("axial")

    def edit(_: int, ds: Dataset) -> None:
        delattr(ds, lost)

    series = volumes.read(write_pet(tmp_path, where, np.ones(where.shape, np.float32), edit=edit))
    image = Image("standard dose", series.volume, "Standard-dose PET", 3.0, modality="PT")
    objects = results.write([image], series.headers, PROVENANCE, FORMS["modality"], NOW)
    assert PositronEmissionTomographyImageStorage not in {ds.SOPClassUID for ds in objects}


@pytest.mark.parametrize(("claimed", "kind"), [("PT", "mr"), ("MR", "mr"), ("", "mr"), ("PT", "raw"), ("", "raw")])
def test_no_modality_object_where_it_would_invent_a_scan(claimed: str, kind: str) -> None:
    these = make_findings(grid("axial"))
    image = Image("image", Volume(these.image, these.grid), "Image", 3.0, modality=claimed)
    classes = {ds.SOPClassUID for ds in results.write([image], [source(kind)], PROVENANCE, FORMS["modality"], NOW)}
    assert not classes & {PositronEmissionTomographyImageStorage, MRImageStorage}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_mr_of_its_own_k_space_is_read_back_where_it_was(orientation: str, tmp_path: Path) -> None:
    these = make_findings(grid(orientation))
    image = Image("image", Volume(these.image, these.grid), "Reconstruction", 3.0, modality="MR")
    objects = results.write([image], [source()], PROVENANCE, FORMS["modality"], NOW)
    mr = [ds for ds in objects if ds.SOPClassUID == MRImageStorage]
    files = [save(ds, tmp_path, f"{n}.dcm") for n, ds in enumerate(mr)]
    again = volumes.read(files).volume
    index = np.linalg.solve(these.grid.affine_mm, again.grid.affine_mm @ np.array([0, 0, 0, 1.0]))
    assert np.abs(index - np.round(index)).max() * 3.7 < 1e-3
    flipped = these.image[::-1] if round(index[2]) else these.image
    assert np.allclose(again.data, flipped, rtol=0, atol=812 / 32767)
    assert mr[0].ScanningSequence == "RM"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["raw", "mr"])
def test_an_image_as_parametric_map_keeps_every_value_as_it_was(kind: str, orientation: str, tmp_path: Path) -> None:
    these = make_findings(grid(orientation))
    objects = results.write(these.findings, [source(kind)], PROVENANCE, FORMS["parametric"], NOW)
    read = hd.imread(str(save(objects[0], tmp_path)))
    volume = read.get_volume()
    for k in range(4):
        at = np.linalg.solve(these.grid.affine_mm, volume.affine @ [k, 0, 0, 1])
        assert np.abs(at - np.round(at)).max() * 3.7 < 1e-3
        assert np.array_equal(volume.array[k], these.image[round(at[2])])
    assert objects[0].SOPClassUID == ParametricMapStorage
    mask = next(ds for ds in objects if ds.SOPClassUID == LABEL_MAP)
    assert mask.ReferencedSeriesSequence[0].SeriesInstanceUID == objects[0].SeriesInstanceUID


def test_forms_that_differ_have_other_uids_and_equal_ones_the_same() -> None:
    these = make_findings(grid("axial"))
    sets = {
        name: {ds.SOPInstanceUID: ds for ds in results.write(these.findings, [source()], PROVENANCE, form, NOW)}
        for name, form in FORMS.items()
    }
    for name, objects in sets.items():
        for other in sets.values():
            for uid in objects.keys() & other.keys():
                assert objects[uid] == other[uid], name
    assert not sets["multi-frame"].keys() & sets["single-frame"].keys()


@pytest.mark.parametrize("kind", ["raw", "mr"])
@pytest.mark.parametrize("outcome", [Outcome.HOLD, Outcome.REFUSE])
def test_a_key_object_note_tells_why_and_never_hides_the_sources(outcome: Outcome, kind: str, tmp_path: Path) -> None:
    config, why = ResultsConfig(key_object=True), "chi-square is 3.1, above 2"
    if outcome is Outcome.HOLD:
        verdict = Verdict(outcome, (why,))
        ds = results.write(make_findings(grid("axial")).findings, [source(kind)], PROVENANCE, config, NOW, verdict)[-1]
    else:
        ds = results.write_key_note(why, [source(kind)], PROVENANCE, config, NOW)
    marking.check_marks(ds)
    assert find_errors(ds, tmp_path / "note.dcm") == []
    title = ds.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodeMeaning) == {
        Outcome.HOLD: ("113000", "Of Interest"), Outcome.REFUSE: ("113010", "Quality Issue")}[outcome]  # fmt: skip
    assert title.CodeValue != "113001", "IHE IOCM: archives hide what is rejected for quality reasons"
    note = hd.ko.KeyObjectSelectionDocument.from_dataset(dcmread(tmp_path / "note.dcm"))
    (reference,) = note.content.get_references()
    assert reference.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source(kind).SOPInstanceUID
    assert reference.ValueType == ("IMAGE" if kind == "mr" else "COMPOSITE")
    said = {item.ConceptNameCodeSequence[0].CodeValue: item for item in ds.ContentSequence}
    words = str(said["113012"].TextValue)  # Key Object Description
    assert words.startswith("SYNTHETIC - RESEARCH USE ONLY")
    assert why in words


def test_a_result_that_is_accepted_has_no_key_object_note() -> None:
    objects = results.write(
        make_findings(grid("axial")).findings, [source()], PROVENANCE, ResultsConfig(key_object=True), NOW
    )
    assert "KO" not in {ds.Modality for ds in objects}


def test_the_page_is_a_series_of_its_own_that_lies_nowhere(job: JobRun) -> None:
    (page,) = [ds for ds in job.of("multi-frame") if "PAGE" in list(ds.get("ImageType") or [])]
    (pdf,) = [ds for ds in job.of("multi-frame") if ds.SOPClassUID == EncapsulatedPDFStorage]
    others = {ds.SeriesInstanceUID for ds in job.of("multi-frame") if ds not in (page, pdf)}
    assert not {page.SeriesInstanceUID, pdf.SeriesInstanceUID} & others
    for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        assert keyword not in page
    assert (page.BurnedInAnnotation, page.PhotometricInterpretation) == ("YES", "RGB")
    assert pdf.EncapsulatedDocument.startswith(b"%PDF-")
    sources = {item.ReferencedSOPInstanceUID for item in pdf.SourceInstanceSequence}
    assert {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in job.sent} <= sources
