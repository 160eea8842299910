"""Decided results as cases: what is a target, what is left out and why, and which split a patient is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import select

from db import jobs, readings
from db.jobs import OutputFile
from db.models import Instance, Job, Series, Study
from db.states import ReadingVerdict
from dicomnode import results, uids
from dicomnode.config import Route
from dicomnode.config.learning import LearningConfig
from dicomnode.config.results import ResultsConfig
from dicomnode.datasets import headers
from dicomnode.errors import ConfigError, InputRefused
from dicomnode.learning import exporting
from dicomnode.learning.cases import Case, collect_cases, name_subject
from dicomnode.learning.targets import TARGETS, find_target
from dicomnode.nifti import images
from dicomnode.reading import folders
from dicomnode.storage import spool
from model_zoo import registry
from model_zoo.structures import STRUCTURES, Structure
from model_zoo.training import anatomy, manifest, synthetic_dir
from model_zoo.training.images import SeriesReader
from pipelines.codes import ANATOMICAL_STRUCTURE, encode_structure
from pipelines.contract import Grid, Segment, Segmentation
from tests.bundles import phantom, phantom_grid, write_anatomy_bundle
from tests.findings import NOW, PROVENANCE
from tests.learning_site import LEARNING, ROUTE, Patient, find_patients, write_study
from tests.series import write_slices
from tests.web_node import Web, encode_part10

pytestmark = pytest.mark.fast

PET = LearningConfig(**LEARNING)
ANATOMY = LearningConfig(
    name="heads", pipeline="anatomy", **{"with": {"structures": {"Modality": "SEG", "SeriesDescription": "~corrected"}}}
)
SIZE = 4


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    routes = (Route(**ROUTE), Route(name="heads", pipeline="anatomy", match={"Modality": "MR"}))
    with Web(tmp_path, sections={"routes": routes, "learning": (PET, ANATOMY)}) as web:
        yield web


def decide(
    site: Web,
    paths: list[Path],
    verdict: str = "accepted",
    *,
    pipeline: str = "standard_dose_pet",
    outputs: tuple[OutputFile, ...] = (),
) -> int:
    """Receive a study, finish a job on its first series, decide on the result; return the job's number."""
    assert site.store(paths).status_code == 200
    with site.sessions.begin() as session:
        study = session.scalars(select(Study).order_by(Study.id.desc())).first()
        assert study is not None
        low = session.scalars(select(Instance).join(Series).where(Series.study_id == study.id)).all()
        first = [row for row in low if row.series_id == study.series[0].id]
        job = jobs.enqueue(
            session, study_id=study.id, revision=study.revision, route="r", pipeline=pipeline, options={},
            inputs={"match": [row.id for row in first]}, destinations=[], now=site.now,
        )  # fmt: skip
        assert job is not None
    held = "a person must look" if verdict in ("released", "discarded") else ""
    with site.sessions.begin() as session:
        claimed = jobs.claim(session, worker="w", lease_s=60, now=site.now)
        assert claimed is not None
        report = {"verdict": "hold" if held else "accept"}
        done = jobs.finish(
            session, job_id=claimed.id, worker="w", outputs=outputs, report=report, held_because=held, now=site.now
        )
        if held:
            (jobs.release if verdict == "released" else jobs.discard)(
                session, done, reason=f"{verdict} by AB: seen", now=site.now
            )
        else:
            readings.record(
                session, done, verdict=ReadingVerdict(verdict), who="AB", reason="noise", sentence="", now=site.now
            )
        return done.id


def collect(site: Web, entry: LearningConfig = PET, recipe: str = "standard-dose-pet") -> list[Case]:
    with site.sessions() as session:
        return collect_cases(session, entry, find_target(entry, recipe), site.config)


def write(site: Web, patient: Patient, **options: Any) -> list[Path]:
    return write_study(site.folder / "in", patient, size=SIZE, **options)


def test_an_accepted_result_with_a_measured_partner_is_a_case(site: Web) -> None:
    (patient,) = find_patients(train=1)
    job = decide(site, write(site, patient))
    (case,) = collect(site)
    assert (case.job_id, case.split, case.verdict, case.target, case.left_out) == (
        job,
        "train",
        "accepted",
        "measured",
        "",
    )
    assert {column: len(paths) for column, paths in case.files.items()} == {"low": SIZE, "standard": SIZE}
    named = {column: dcmread(paths[0]).SeriesDescription for column, paths in case.files.items()}
    assert named == {"low": "low dose", "standard": "full dose"}
    assert case.subject == name_subject(f" {patient.id} ")
    assert patient.id not in str(case.describe())


@pytest.mark.parametrize("verdict", ["rejected", "discarded"])
def test_a_rejected_result_is_a_test_case_and_never_one_of_training(site: Web, verdict: str) -> None:
    for patient in find_patients(train=1, test=1):
        decide(site, write(site, patient), verdict)
    learned, tested = collect(site)
    assert "a rejected result is a validation or test case only" in learned.left_out
    assert (tested.split, tested.verdict, tested.left_out) == ("test", verdict, "")


def test_the_last_decision_counts(site: Web) -> None:
    (patient,) = find_patients(train=1)
    job = decide(site, write(site, patient))
    with site.sessions.begin() as session:
        row = session.get_one(Job, job)
        readings.record(
            session, row, verdict=ReadingVerdict.REJECTED, who="AB", reason="late look", sentence="", now=site.now
        )
    (case,) = collect(site)
    assert (case.verdict, case.reason) == ("rejected", "late look")
    assert case.left_out


def _set_image_type(_: int, ds: Dataset) -> None:
    ds.ImageType = ["DERIVED", "PRIMARY", "SYNTHETIC"]


def _set_synthetic_data(_: int, ds: Dataset) -> None:
    ds.SyntheticData = "YES"


def _set_comment(_: int, ds: Dataset) -> None:
    ds.ImageComments = "Synthetic - research use only"


def _move(_: int, ds: Dataset) -> None:
    ds.FrameOfReferenceUID = uids.derive("elsewhere")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_set_image_type, "states that it was computed; a target is measured"),
        (_set_synthetic_data, "states that it was computed; a target is measured"),
        (_set_comment, "states that it was computed; a target is measured"),
        (_move, "does not state the frame of reference of the input"),
    ],
)
def test_a_computed_image_or_one_of_another_place_is_no_target(
    site: Web, edit: Callable[[int, Dataset], None], reason: str
) -> None:
    (patient,) = find_patients(train=1)
    decide(site, write(site, patient, edit=edit))
    (case,) = collect(site)
    assert reason in case.left_out
    assert case.files == {}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["low dose"], "no series of the study meets the conditions of with.standard"),
        (["low dose", "full dose", "full dose again"], "2 series of the study meet the conditions of with.standard"),
    ],
)
def test_a_target_that_is_missing_or_has_two_readings_is_no_target(site: Web, names: list[str], reason: str) -> None:
    (patient,) = find_patients(train=1)
    decide(site, write(site, patient, names=names))
    (case,) = collect(site)
    assert reason in case.left_out


def test_a_study_without_a_patient_id_is_in_no_split(site: Web) -> None:
    (patient,) = find_patients(train=1)
    paths = write(site, patient)
    for path in paths:
        ds = dcmread(path)
        ds.PatientID = ""
        ds.save_as(path)
    decide(site, paths)
    (case,) = collect(site)
    assert "states no Patient ID" in case.left_out
    assert (case.subject, case.split) == ("", "")


def test_the_target_is_never_an_input_of_the_job(site: Web) -> None:
    (patient,) = find_patients(train=1)
    decide(site, write(site, patient, names=["low dose"]))
    entry = LearningConfig(**LEARNING | {"with": {"standard": {"Modality": "PT"}}})
    (case,) = collect(site, entry)
    assert "is an input of the job, so it cannot be the target" in case.left_out


def test_a_held_result_that_was_superseded_is_nobodys_decision(site: Web) -> None:
    (patient,) = find_patients(test=1)
    job = decide(site, write(site, patient), "discarded")
    with site.sessions.begin() as session:
        session.get_one(Job, job).reason = "superseded by job 7"
    assert collect(site) == []


def _set_unit(_: int, ds: Dataset) -> None:
    ds.Units = "CNTS"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"edit": _set_unit}, r"the column standard is in .*, the column low in Bq/ml"),
        ({"size": 1}, "is a single slice"),
    ],
)
def test_images_on_which_training_would_stop_are_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    (patient,) = find_patients(train=1)
    write_study(tmp_path, patient, **{"size": SIZE} | options)
    folder = tmp_path / "cases"
    folder.mkdir()
    for column, name in (("low", "low dose"), ("standard", "full dose")):
        (tmp_path / patient.id / name).rename(folder / column)
    with pytest.raises(InputRefused, match=reason):
        exporting.make_row(folder, TARGETS["standard-dose-pet"], {"dose": 0.1}, lambda: pytest.fail("no anatomy"))


def test_what_the_box_of_a_refinement_leaves_out_counts_as_missed() -> None:
    truth = torch.zeros((4, 4, 4), dtype=torch.uint8)
    truth[:2], truth[2:] = 1, 2
    found = anatomy.place_in_box(torch.ones((2, 4, 4), dtype=torch.long), torch.tensor([[0, 2], [0, 4], [0, 4]]), truth)
    assert anatomy.score_structures(found, truth) == {1: 1.0, 2: 0.0}


GRID = Grid((4, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0]))


def make_head(site: Web, patient: Patient) -> tuple[list[Path], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Write an MR series, and label maps of it with every structure."""

    def prepare(_: int, ds: Dataset) -> None:
        ds.StudyInstanceUID, ds.PatientID = patient.study_uid, patient.id

    labels = np.zeros(GRID.shape, np.uint8)
    for each in STRUCTURES:
        labels[1:3, each.number % 24, 2:20] = each.number
    data = (labels.astype(np.uint16) + 1) * 10
    return write_slices(site.folder / "in" / patient.id, GRID, data, edit=prepare, key=patient.id), labels


def write_segmentation(
    paths: list[Path], labels: np.ndarray[Any, np.dtype[np.uint8]], structures: Sequence[Structure] = STRUCTURES
) -> Dataset:
    """Return the result of ``anatomy`` with these labels, its segments numbered from 1."""
    segments = tuple(
        Segment(number, each.name.capitalize(), ANATOMICAL_STRUCTURE, encode_structure(each))
        for number, each in enumerate(structures, start=1)
    )
    found = Segmentation("anatomy", labels, GRID, segments, "Structures of the brain", 2.0)
    return results.write([found], [dcmread(each) for each in paths], PROVENANCE, ResultsConfig(), NOW)[0]


def store_output(site: Web, ds: Dataset) -> OutputFile:
    stored = spool.write(site.config.spool_dir, encode_part10(ds))
    facts = headers.read(spool.path(site.config.spool_dir, stored))
    return OutputFile(facts.sop_instance_uid, facts.sop_class_uid, facts.series_uid, "segmentation", stored)


@pytest.mark.parametrize(
    ("split", "verdict", "reason"),
    [
        ("train", "accepted", ""),
        ("validation", "accepted", ""),
        ("test", "accepted", "it cannot test the model that made it"),
        ("train", "released", "its result was released, not accepted by a reader"),
        ("test", "rejected", "its result was rejected, not accepted by a reader"),
    ],
)
def test_an_accepted_label_map_trains_and_never_tests(site: Web, split: str, verdict: str, reason: str) -> None:
    (patient,) = find_patients(**{split: 1})
    paths, labels = make_head(site, patient)
    output = store_output(site, write_segmentation(paths, labels))
    decide(site, paths, verdict, pipeline="anatomy", outputs=(output,))
    (case,) = collect(site, ANATOMY, "anatomy")
    assert reason in case.left_out
    assert bool(case.left_out) is bool(reason)
    if not reason:
        assert case.target == "accepted by a reader"
        assert read_labels(site, case).tolist() == labels.tolist()


def read_labels(site: Web, case: Case) -> np.ndarray[Any, np.dtype[Any]]:
    """Export a case, and read its label map back."""
    folder = site.folder / "cases" / str(case.job_id)
    exporting.link_files(case, folder)

    def refuse() -> Any:
        raise AssertionError("this recipe needs no model of the anatomy")

    cells = exporting.make_row(folder, TARGETS["anatomy"], {}, refuse)
    assert cells == {"image": f"cases/{case.job_id}/image", "structures": f"cases/{case.job_id}/structures.nii.gz"}
    found = images.read(site.folder / cells["structures"])
    assert found.grid.matches(GRID)
    return found.values


@pytest.mark.parametrize("kind", ["MANUAL", "SEMIAUTOMATIC", "AUTOMATIC"])
def test_a_label_map_that_a_person_drew_is_a_target_also_of_a_test(site: Web, kind: str) -> None:
    (patient,) = find_patients(test=1)
    paths, labels = make_head(site, patient)
    drawn = write_segmentation(paths, labels)
    drawn.SOPInstanceUID = drawn.file_meta.MediaStorageSOPInstanceUID = uids.derive("drawn", patient.id)
    drawn.SeriesDescription, drawn.SeriesInstanceUID = "corrected", uids.derive("drawn series", patient.id)
    for item in drawn.SegmentSequence:
        item.SegmentAlgorithmType = kind
    drawn.save_as(site.folder / "drawn.dcm")
    decide(site, [*paths, site.folder / "drawn.dcm"], "rejected", pipeline="anatomy")
    (case,) = collect(site, ANATOMY, "anatomy")
    if kind == "AUTOMATIC":
        assert "is no Segmentation whose segments are all MANUAL or SEMIAUTOMATIC" in case.left_out
        return
    assert (case.left_out, case.target, case.split) == ("", "drawn by a person", "test")
    assert read_labels(site, case).tolist() == labels.tolist()


def test_a_label_map_that_lacks_a_structure_is_refused_by_name(site: Web) -> None:
    (patient,) = find_patients(train=1)
    paths, labels = make_head(site, patient)
    without = [each for each in STRUCTURES if each.name != "ventral diencephalon"]  # the last number
    labels[labels == len(STRUCTURES)] = 0
    output = store_output(site, write_segmentation(paths, labels, without))
    decide(site, paths, pipeline="anatomy", outputs=(output,))
    (case,) = collect(site, ANATOMY, "anatomy")
    with pytest.raises(InputRefused, match="its label map has no segment for: ventral diencephalon"):
        read_labels(site, case)


def test_a_table_of_flair_and_dir_is_one_that_training_reads(tmp_path: Path) -> None:
    """The anatomy model fills the structures, the DIR lies on another grid, and each lesion counts as one."""
    values, structure = phantom()
    image, where = (1000 * values).astype(np.uint16), phantom_grid()
    half = Grid((24, 56, 48), where.affine_mm @ np.diag([1.0, 1, 2, 1]))
    folder = tmp_path / "cases" / "1"
    flair = write_slices(folder / "flair", where, image, key="flair")
    write_slices(folder / "dir", half, image[::2], key="dir")
    drawn = np.zeros(where.shape, np.uint8)
    drawn[20:24, 20:24, 20:24], drawn[30, 30, 30] = 1, 2
    code = ANATOMICAL_STRUCTURE
    segments = tuple(Segment(n, f"Lesion {n}", code, code) for n in (1, 2))
    found = Segmentation("lesions", drawn, where, segments, "Lesions", 4.0)
    (folder / "lesions").mkdir()
    results.write([found], [dcmread(each) for each in flair], PROVENANCE, ResultsConfig(), NOW)[0].save_as(
        folder / "lesions" / "00000.dcm"
    )
    bundle = write_anatomy_bundle(tmp_path / "models")
    cells = exporting.make_row(
        folder, TARGETS["synthetic-dir"], {}, lambda: registry.load_from(registry.read_facts(bundle))
    )
    rows = [{"subject": f"s{n}", "split": split, **cells} for n, split in enumerate(("train", "validation", "test"))]
    exporting.write_table(tmp_path / "table.csv", rows)
    series = SeriesReader(folders.read_grid, folders.read_values)
    cohort = manifest.read(
        tmp_path / "table.csv", synthetic_dir.RECIPE.columns, series, ("train", "validation", "test")
    )
    read = {name: cohort.read_volume(cohort.rows[0], name).values.numpy() for name in cohort.rows[0].images}
    assert {name: each.shape for name, each in read.items()} == dict.fromkeys(
        ("flair", "dir", "structures", "lesions"), where.shape
    )
    assert cohort.rows[0].resample
    assert float((read["structures"] == structure).mean()) > 0.98
    assert read["lesions"].tolist() == (drawn > 0).tolist()


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("pet-synthesis", {}, "its target is a PET of another examination"),
        ("standard-dose-pet-semi", {}, "its table mixes pairs and single images"),
        ("", {}, "the node knows no measured or accepted target for it"),
        ("standard-dose-pet", {"with": {}}, "'with' lacks 'standard': the standard-dose PET that the scanner measured"),
        ("standard-dose-pet", {"with": LEARNING["with"] | {"mr": {"Modality": "MR"}}}, "'with' names 'mr'"),
        ("standard-dose-pet", {"numbers": {}}, "'numbers' needs exactly dose"),
        ("synthetic-dir", {"with": {}, "numbers": {}}, "'with' lacks 'dir'"),
    ],
)
def test_a_recipe_without_a_target_here_is_refused(recipe: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_target(LearningConfig(**LEARNING | changes), recipe)


def test_no_recipe_has_a_generated_image_as_its_target() -> None:
    for target in TARGETS.values():
        assert target.column in (*target.measured, *target.label_maps)
        assert target.column not in target.inputs
