"""The last check before sending, for every kind of object: the node's own and those of a site's pipeline or program."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    TwelveLeadECGWaveformStorage,
)
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import jobs
from db.jobs import OutputFile
from db.models import Delivery
from db.states import DeliveryState
from dicomnode import results
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.results import ResultsConfig
from dicomnode.datasets import objects
from dicomnode.delivery.delivery import deliver_due
from dicomnode.errors import NotMarked
from dicomnode.results import label, marking
from dicomnode.results.page import Page
from dicomnode.storage import spool
from pipelines.contract import Image, Volume
from pipelines.quality import Outcome, Verdict
from tests.findings import NOW, PROVENANCE, grid, make_findings, source
from tests.peers import StoreScp
from tests.rows import add_job
from tests.test_result_kinds import write_pet_result

PAGE = Page(np.zeros((20, 10, 3), np.uint8), b"%PDF-1.4 /Title (" + label.TEXT.encode() + b")\n%%EOF\n")
KINDS = ("MR", "parametric image", "single frame", "label map", "page", "PDF", "key object", "report")


@cache
def _objects() -> dict[str, Dataset]:
    phantom_findings = make_findings(grid("axial", 2))
    image = Image("image", Volume(phantom_findings.image, phantom_findings.grid), "Image", 3.0, modality="MR")
    hold = Verdict(Outcome.HOLD, ("why",))

    def write(**values: object) -> list[Dataset]:
        config = ResultsConfig().with_values(values)
        return results.write(
            [image, *phantom_findings.findings[1:]], [source()], PROVENANCE, config, NOW, hold, page=PAGE
        )

    plain = write(report_page=("sc", "pdf"), key_object=True)
    return {
        "MR": write(image_kind="modality")[0],
        "parametric image": write(image_kind="parametric")[0],
        "single frame": write(image_kind="single")[0],
        "label map": write(segmentation_kind="labelmap")[3],
        "report": plain[4],
        "page": plain[5],
        "PDF": plain[6],
        "key object": plain[7],
    }


def _copy_object(kind: str) -> Dataset:
    return deepcopy(_objects()[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_as_it_is_written(kind: str) -> None:
    marking.check_marks(_copy_object(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "keyword",
    ["SyntheticData", "ContentQualification", "ContributingEquipmentSequence", "SeriesDescription", "Manufacturer",
     "SoftwareVersions", "DeviceSerialNumber", "SeriesNumber", "PatientID", "AccessionNumber"],
)  # fmt: skip
def test_no_kind_passes_without_the_marks_that_all_have(kind: str, keyword: str) -> None:
    ds = _copy_object(kind)
    delattr(ds, keyword)
    with pytest.raises(NotMarked, match=keyword):
        marking.check_marks(ds)


def _remove_statement(ds: Dataset) -> None:
    for item in ds.ContentSequence:
        if "TextValue" in item:
            item.TextValue = "All is well"


def _remove_title(ds: Dataset) -> None:
    ds.DocumentTitle = "Report"


def _remove_file_title(ds: Dataset) -> None:
    ds.EncapsulatedDocument = b"%PDF-1.4\n%%EOF\n"


def _set_verified(ds: Dataset) -> None:
    ds.VerificationFlag = "VERIFIED"


def _remove_evidence(ds: Dataset) -> None:
    del ds.CurrentRequestedProcedureEvidenceSequence


def _remove_sources(ds: Dataset) -> None:
    del ds.SourceInstanceSequence


def _remove_burned_in_label(ds: Dataset) -> None:
    ds.BurnedInAnnotation = "NO"


def _add_position(ds: Dataset) -> None:
    ds.ImagePositionPatient = [0, 0, 0]


def _refer_to_ct(ds: Dataset) -> None:
    for item in ds.SourceInstanceSequence:
        item.ReferencedSOPClassUID = CTImageStorage


def _make_pet(ds: Dataset) -> None:
    ds.SOPClassUID = PositronEmissionTomographyImageStorage
    ds.ImageType = ["DERIVED", "PRIMARY"]


def _remove_burned_in_annotation(ds: Dataset) -> None:
    del ds.BurnedInAnnotation


@pytest.mark.parametrize(
    ("kind", "spoil", "mark"),
    [
        ("key object", _remove_statement, "words in ContentSequence"),
        ("key object", _remove_evidence, "CurrentRequestedProcedureEvidenceSequence"),
        ("report", _remove_statement, "words in ContentSequence"),
        ("PDF", _remove_title, "words in DocumentTitle"),
        ("PDF", _remove_file_title, "words in DocumentTitle and document"),
        ("PDF", _set_verified, "VerificationFlag"),
        ("PDF", _remove_sources, "SourceInstanceSequence"),
        ("PDF", _remove_burned_in_label, "BurnedInAnnotation"),
        ("page", _remove_burned_in_label, "BurnedInAnnotation"),
        ("page", _add_position, "FrameOfReferenceUID"),
        ("page", _remove_sources, "SourceInstanceSequence"),
        ("MR", _refer_to_ct, "a source of its modality"),
        ("MR", _make_pet, "a source of its modality"),
        ("MR", _remove_burned_in_annotation, "BurnedInAnnotation"),
    ],
)
def test_a_kind_is_held_back_without_its_own_marks(kind: str, spoil: Callable[[Dataset], None], mark: str) -> None:
    ds = _copy_object(kind)
    spoil(ds)
    with pytest.raises(NotMarked, match=mark):
        marking.check_marks(ds)


def test_a_pet_of_a_pet_passes_and_one_of_an_mr_does_not(tmp_path: Path) -> None:
    _, objects, _ = write_pet_result("axial", tmp_path)
    marking.check_marks(objects[0])
    for item in objects[0].SourceImageSequence:
        item.ReferencedSOPClassUID = MRImageStorage
    with pytest.raises(NotMarked, match="a source of its modality"):
        marking.check_marks(objects[0])


@pytest.mark.parametrize("uid", [EnhancedMRImageStorage, TwelveLeadECGWaveformStorage])
@pytest.mark.parametrize(
    "missing", ["SyntheticData", "DerivationDescription", "ImageType", "ContributingEquipmentSequence"]
)
def test_a_class_that_the_node_never_writes_needs_every_mark_of_an_image(uid: str, missing: str) -> None:
    ds = _copy_object("MR")
    ds.SOPClassUID = uid
    marking.check_marks(ds)
    delattr(ds, missing)
    with pytest.raises(NotMarked, match=missing):
        marking.check_marks(ds)


def _store_output(config: Config, ds: Dataset) -> OutputFile:
    file = spool.write(config.spool_dir, objects.encode(ds))
    return OutputFile(ds.SOPInstanceUID, ds.SOPClassUID, ds.SeriesInstanceUID, objects.kind_of(ds), file)


def test_an_object_of_a_sites_pipeline_that_misses_a_mark_never_goes_on_the_wire(
    sessions: sessionmaker[Session], now: datetime, storescp: StoreScp, tmp_path: Path
) -> None:
    config = Config(node=NodeConfig(data_dir=tmp_path / "data"), peers=(storescp.peer,))
    good, bad = _copy_object("MR"), _copy_object("page")
    of_site = replace(PROVENANCE, pipeline="site_pipeline", model_name="site-model")
    phantom_findings = make_findings(grid("axial", 1))
    own_objects = results.write(phantom_findings.findings, [source()], of_site, ResultsConfig(), NOW)
    del bad.SyntheticData
    with sessions.begin() as session:
        job = add_job(session, now, destinations=["storescp"], pipeline="site_pipeline")
        jobs.claim(session, worker="w", lease_s=60, now=now)
        outputs = [_store_output(config, ds) for ds in (*own_objects, good, bad)]
        jobs.finish(session, job_id=job.id, worker="w", outputs=outputs, report={}, now=now)
    assert deliver_due(sessions, config, now=lambda: now) == len(own_objects) + 1
    assert bad.SOPInstanceUID not in {ds.SOPInstanceUID for ds in storescp.datasets()}
    with sessions() as session:
        (row,) = session.scalars(select(Delivery).where(Delivery.state != DeliveryState.DELIVERED))
        assert (row.state, row.output.sop_instance_uid) == (DeliveryState.GIVEN_UP, bad.SOPInstanceUID)
        assert "SyntheticData" in row.reason
