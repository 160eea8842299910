"""Deliveries over the network: a research destination gets de-identified copies, the same at each retry."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from pynetdicom import evt
from sqlalchemy.orm import Session, sessionmaker

from db import jobs
from db.jobs import OutputFile
from db.states import DeliveryState
from dicomnode import cli
from dicomnode.config import Config, Peer
from dicomnode.config.delivery import DeliveryConfig
from dicomnode.config.node import NodeConfig
from dicomnode.config.results import DefacedResultsConfig
from dicomnode.delivery.delivery import deliver_due
from dicomnode.dimse import peers, queries
from dicomnode.dimse.peers import Outcome
from dicomnode.errors import PeerRefused
from dicomnode.results import marking
from dicomnode.storage import spool
from tests.identifying import find_identifiers_left, make_deidentifier, write_profile
from tests.peers import Answering, Orthanc, StoreScp, write_config, write_instance, write_result
from tests.receivers import Start, start
from tests.rows import add_job
from tests.test_delivery import rows, states

__all__ = ["start"]

Sessions = sessionmaker[Session]
PATIENT: dict[str, Any] = {"PatientName": "Müller^Jürgen", "PatientID": "4711-geheim", "PatientBirthDate": "19700131"}


def make_config(folder: Path, *found: Peer, **options: Any) -> Config:
    """Return a configuration with two peers at one address: one for copies, one for the clinic."""
    return Config(
        node=NodeConfig(data_dir=folder / "data"),
        delivery=DeliveryConfig(backoff_s=10),
        peers=found,
        deidentify=(write_profile(folder, **options),),
        path=folder / "node.toml",
    ).with_absolute_paths(folder)


def as_research_peer(peer: Peer, name: str = "research") -> Peer:
    return peer.model_copy(update={"name": name, "deidentify": "research"})


def make_result(
    sessions: Sessions,
    config: Config,
    to: list[str],
    now: datetime,
    edit: Callable[[Dataset], object] = lambda ds: None,
) -> Dataset:
    """Store the single result of a finished job in the spool."""
    path = config.data_dir / "result.dcm"
    ds = write_result(path, **PATIENT)
    edit(ds)
    ds.save_as(path, enforce_file_format=True)
    file = spool.write(config.spool_dir, path.read_bytes())
    with sessions.begin() as session:
        job = add_job(session, now, destinations=to)
        jobs.claim(session, worker="w", lease_s=60, now=now)
        output = OutputFile(ds.SOPInstanceUID, ds.SOPClassUID, ds.SeriesInstanceUID, "image", file)
        jobs.finish(session, job_id=job.id, worker="w", outputs=[output], report={}, now=now)
    return dcmread(path)


def test_a_research_destination_gets_a_copy_and_the_clinic_the_result(
    sessions: Sessions, tmp_path: Path, now: datetime, storescp: StoreScp, orthanc: Orthanc
) -> None:
    config = make_config(tmp_path, as_research_peer(orthanc.peer), storescp.peer, dates="shift")
    original = make_result(sessions, config, ["research", "storescp"], now)
    assert deliver_due(sessions, config, now=lambda: now) == 2
    (copy,), (clinical,) = orthanc.datasets(), storescp.datasets()
    assert (str(clinical.PatientName), clinical.SOPInstanceUID) == ("Müller^Jürgen", original.SOPInstanceUID)
    assert find_identifiers_left(original, copy) == set()
    assert copy.PixelData == original.PixelData
    marking.check_marks(copy)
    assert list(config.data_dir.glob("outgoing-*")) == []


@pytest.mark.slow
def test_a_retry_sends_the_same_copy(sessions: Sessions, tmp_path: Path, now: datetime) -> None:
    def lose_the_first(event: evt.Event) -> int:
        if len(server.stored) <= 2:
            event.assoc.abort()
        return 0x0000

    with Answering(lose_the_first) as server:
        config = make_config(tmp_path, as_research_peer(server.peer))
        original = make_result(sessions, config, ["research"], now)
        assert deliver_due(sessions, config, now=lambda: now) == 0
        assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=10)) == 1
    assert len(server.stored) == 3
    assert set(server.stored) == {make_deidentifier().secret.uid(original.SOPInstanceUID)}


def test_without_its_key_nothing_goes_and_with_it_everything(
    sessions: Sessions, tmp_path: Path, now: datetime, storescp: StoreScp
) -> None:
    config = make_config(tmp_path, as_research_peer(storescp.peer))
    make_result(sessions, config, ["research"], now)
    config.deidentify[0].key_file.chmod(0o644)
    assert deliver_due(sessions, config, now=lambda: now) == 0
    assert storescp.files() == []
    assert "can be read by others" in rows(sessions)[0].reason
    config.deidentify[0].key_file.chmod(0o600)
    assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=10)) == 1


def test_what_cannot_be_cleaned_is_given_up_with_the_reason(
    sessions: Sessions, tmp_path: Path, now: datetime, storescp: StoreScp
) -> None:
    def as_page(ds: Dataset) -> None:
        ds.ImageType, ds.BurnedInAnnotation = ["DERIVED", "SECONDARY", "SYNTHETIC", "PAGE"], "YES"

    config = make_config(tmp_path, as_research_peer(storescp.peer))
    make_result(sessions, config, ["research"], now, as_page)
    assert deliver_due(sessions, config, now=lambda: now) == 0
    assert storescp.files() == []
    assert states(sessions) == {DeliveryState.GIVEN_UP}
    assert "states the study's date in its pixels" in rows(sessions)[0].reason


def test_an_image_with_a_face_is_given_up_where_none_is_wanted(
    sessions: Sessions, tmp_path: Path, now: datetime, storescp: StoreScp
) -> None:
    config = make_config(tmp_path, as_research_peer(storescp.peer), deface=True)
    make_result(sessions, config, ["research"], now)
    assert deliver_due(sessions, config, now=lambda: now) == 0
    assert "may show a face" in rows(sessions)[0].reason
    assert isinstance(config.results_for("research"), DefacedResultsConfig)


def test_report_pages_are_not_even_made_for_a_research_destination(tmp_path: Path) -> None:
    peer = Peer(name="research", ae_title="LAB", port=104, deidentify="research", report_page=("pdf", "sc"))
    config = make_config(tmp_path, peer)
    assert config.results_for("research").report_page == ()


def test_nothing_but_a_copy_passes_the_last_door(tmp_path: Path, storescp: StoreScp) -> None:
    config = make_config(tmp_path, as_research_peer(storescp.peer))
    original, copy, other = tmp_path / "original.dcm", tmp_path / "copy.dcm", tmp_path / "other.dcm"
    write_instance(original, **PATIENT, ImagePositionPatient=[0, 0, 0])
    write_instance(other, **PATIENT, PatientIdentityRemoved="YES", DeidentificationMethod="of another program")
    make_deidentifier().read(original).save_as(copy, enforce_file_format=True)
    outcomes = peers.store(config.find_peer("research"), [original, other, copy], calling_aet="NODE")
    assert [each.outcome for each in outcomes] == [Outcome.UNREADABLE, Outcome.UNREADABLE, Outcome.STORED]
    assert "gets only what is de-identified" in outcomes[0].text
    assert [ds.SOPInstanceUID for ds in storescp.datasets()] == [dcmread(copy).SOPInstanceUID]


def test_a_research_destination_neither_asks_nor_is_moved_to(start: Start, tmp_path: Path, storescp: StoreScp) -> None:
    peer = as_research_peer(storescp.peer)
    receiver = start(peers=(peer,), deidentify=(write_profile(tmp_path),))
    node_peer = Peer(name="node", ae_title=receiver.config.node.ae_title, port=receiver.port)
    with pytest.raises(PeerRefused, match="0xA801"):
        queries.move(node_peer, "1.2.3", calling_aet="CLINIC", destination_aet=peer.ae_title)
    with pytest.raises(PeerRefused):
        list(queries.find(node_peer, {"PatientID": "4711-geheim"}, calling_aet=peer.ae_title))
    assert storescp.files() == []


def test_the_command_copies_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(tmp_path)
    config = write_config(tmp_path / "node", deidentify=[{"name": "research", "key_file": "../research.key"}])
    write_instance(tmp_path / "in" / "1.dcm", **PATIENT, ImagePositionPatient=[0, 0, 0])
    write_instance(tmp_path / "in" / "2.dcm", **PATIENT, sop_class_uid=EncapsulatedPDFStorage)
    arguments = ["--config", str(config), "deidentify", str(tmp_path / "in"), str(tmp_path / "out")]
    assert cli.main([*arguments, "--profile", "research"]) == 1, "one of them is refused"
    message = capsys.readouterr()
    assert "1 copied" in message.out
    assert "2.dcm: not de-identified: Encapsulated PDF Storage holds a document" in message.err
    (copy,) = (tmp_path / "out").iterdir()
    assert find_identifiers_left(dcmread(tmp_path / "in" / "1.dcm"), dcmread(copy)) == set()
    assert cli.main([*arguments, "--profile", "nobody"]) == 1
    assert "is named 'nobody'" in capsys.readouterr().err
