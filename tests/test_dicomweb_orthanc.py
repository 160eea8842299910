"""Orthanc's DICOMweb plug-in as the client: it stores, finds and retrieves instances unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
)

from tests.peers import Orthanc
from tests.peers.files import write_instance
from tests.web_node import Web

STUDY = "1.2.826.0.1.3680043.8.498.7"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def write_study(folder: Path) -> list[Path]:
    """Write instances that differ in attributes that could be lost on the way."""
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = "STEP7", "PROC7"
    attributes: dict[str, Any] = {
        "study_uid": STUDY, "PatientName": "Müller^Jörg=山田^太郎", "PatientID": "P-7", "StudyDate": "20260303",
        "RequestAttributesSequence": [item], "SliceThickness": "1.2345678901", "WindowCenter": ["40", "80"],
    }  # fmt: skip
    numbers = np.random.default_rng(7).integers(0, 4096, (3, 16, 16)).astype("<u2")
    multiframe = {
        "sop_class_uid": MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "NumberOfFrames": 3,
        "PixelData": numbers.tobytes(),
    }  # fmt: skip
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "implicit": {"transfer_syntax_uid": ImplicitVRLittleEndian},
        "deflated": {"transfer_syntax_uid": DeflatedExplicitVRLittleEndian},
        "frames": multiframe,
        "compressed": multiframe,
    }
    for number, (name, more) in enumerate(forms.items(), 1):
        series = f"{STUDY}.{1 if name in ('plain', 'implicit') else number}"
        ds = write_instance(folder / f"{name}.dcm", series_uid=series, InstanceNumber=number, **attributes, **more)
        if name == "compressed":
            ds.compress(RLELossless, generate_instance_uid=False)
            ds.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return sorted(folder.glob("*.dcm"))


@pytest.fixture
def orthanc_of(tmp_path: Path) -> Iterator[Any]:
    """Yield a function that starts an Orthanc configured with a node's DICOMweb root."""
    if not PLUGIN.exists():
        pytest.skip(f"{PLUGIN} is missing: install Debian's package orthanc-dicomweb")
    started: list[Orthanc] = []

    def begin(web: Web) -> Orthanc:
        servers = {"node": {"Url": f"{web.address}/dicom-web/"}}
        settings = {"Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": servers}}
        started.append(Orthanc(tmp_path / "orthanc", settings=settings))
        started[-1].start()
        return started[-1]

    yield begin
    for orthanc in started:
        orthanc.kill()


@pytest.mark.slow
def test_orthanc_stores_finds_and_gets_a_study_unchanged(orthanc_of: Any, tmp_path: Path) -> None:
    sent = {str(ds.SOPInstanceUID): ds for ds in map(dcmread, write_study(tmp_path / "sent"))}
    with Web(tmp_path / "node") as web:
        orthanc = orthanc_of(web)
        held = [orthanc.upload(path) for path in sorted((tmp_path / "sent").glob("*.dcm"))]
        orthanc.ask("POST", "/dicom-web/servers/node/stow", {"Resources": held, "Synchronous": True})
        stored = [dcmread(web.config.spool_dir / row.relative_path) for row in web.rows()]
        assert {str(ds.SOPInstanceUID) for ds in stored} == sent.keys()
        assert all(is_equal(ds, sent[str(ds.SOPInstanceUID)]) for ds in stored)

        (study,) = qido(orthanc, "/studies", PatientID="P-7")
        assert study["0020000D"]["Value"] == STUDY
        assert study["00100010"]["Value"] == "Müller^Jörg"  # Orthanc returns the first component group
        assert len(qido(orthanc, f"/studies/{STUDY}/series", Modality="MR")) == 4
        assert len(qido(orthanc, "/instances", StudyInstanceUID=STUDY)) == len(sent)

        (study_here,) = orthanc.ask("GET", "/studies")
        orthanc.ask("DELETE", f"/studies/{study_here}")
        assert orthanc.instances() == []
        expected = {"Resources": [{"Study": STUDY}], "Synchronous": True}
        orthanc.ask("POST", "/dicom-web/servers/node/retrieve", expected)
        received = {str(ds.SOPInstanceUID): ds for ds in orthanc.datasets()}
    assert received.keys() == sent.keys()
    assert all(is_equal(ds, sent[uid]) for uid, ds in received.items())


def qido(orthanc: Orthanc, uri: str, **arguments: str) -> list[dict[str, Any]]:
    return list(orthanc.ask("POST", "/dicom-web/servers/node/qido", {"Uri": uri, "Arguments": arguments}))


def is_equal(one: Dataset, other: Dataset) -> bool:
    """Return whether attributes and pixel values are equal; compressed pixels may come decompressed."""
    if one.file_meta.TransferSyntaxUID == RLELossless != other.file_meta.TransferSyntaxUID:
        one, other = other, one
    if other.file_meta.TransferSyntaxUID == RLELossless != one.file_meta.TransferSyntaxUID:
        other.decompress(generate_instance_uid=False)
    return one == other
