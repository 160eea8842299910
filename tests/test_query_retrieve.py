"""Query/Retrieve as SCP: independent clients find and get the node's instances, and none that is held back."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import config as pydicom_config
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import build_context, build_role, evt
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from db import engine as engines
from db import jobs, keywords, studies
from db.models import Instance
from dicomnode.config import Peer
from dicomnode.config.senders import SenderConfig
from dicomnode.datasets import headers
from dicomnode.dimse import queries
from dicomnode.dimse.associations import association
from dicomnode.errors import PeerRefused
from dicomnode.storage import spool
from tests.peers import Answering, Orthanc, StoreScp, wait_for, write_instance, write_result
from tests.peers.process import require_program
from tests.receivers import Receiver, Start, start
from tests.sending import Encoded, read_encoded, store_all

__all__ = ["start"]

FIND = StudyRootQueryRetrieveInformationModelFind
STUDY = "1.2.826.0.1.3680043.8.498.77"
NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


def here(receiver: Receiver) -> Peer:
    return Peer(name="node", ae_title=receiver.config.node.ae_title, host="127.0.0.1", port=receiver.port)


def give(receiver: Receiver, folder: Path, *written: Mapping[str, Any]) -> list[Path]:
    """Send instances with the given attributes; return their files."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, attributes in enumerate(written, start=1):
        path = folder / f"given {number}.dcm"
        values: dict[str, Any] = {"study_uid": STUDY, "series_uid": f"{STUDY}.1", "InstanceNumber": number} | dict(
            attributes
        )
        write_instance(path, **values)
        paths.append(path)
    answers = store_all(receiver.port, [read_encoded(path) for path in paths], folder / "sent")
    assert [answer.Status for answer in answers] == [0] * len(paths)
    return paths


def add_result(receiver: Receiver, folder: Path, *, held_because: str = "", marked: bool = True) -> Dataset:
    """Add a finished job of the study with a real result in the spool."""
    path = folder / f"result {held_because}{marked}.dcm"
    folder.mkdir(exist_ok=True)
    ds = write_result(path, study_uid=STUDY)
    if not marked:
        del ds.SyntheticData
        ds.save_as(path, enforce_file_format=True)
    file = spool.write(receiver.config.spool_dir, path.read_bytes())
    facts = headers.read(path)
    output = jobs.OutputFile(
        str(ds.SOPInstanceUID),
        str(ds.SOPClassUID),
        str(ds.SeriesInstanceUID),
        "image",
        file,
        attributes=keywords.pick(facts.attributes, keywords.RESULT_STORED),
    )
    with engines.sessions(receiver.engine).begin() as session:
        study = studies.find_by_uid(session, STUDY)
        assert study is not None
        instance_ids = [row.id for series in study.series for row in series.instances]
        job = jobs.enqueue(
            session,
            study_id=study.id,
            revision=1,
            route=f"{held_because}{marked}",
            pipeline="nothing",
            options={},
            inputs={"match": instance_ids},
            destinations=[],
            now=NOW,
        )
        job = jobs.claim(session, worker="w", lease_s=60, now=NOW)
        assert job is not None
        jobs.finish(session, job_id=job.id, worker="w", outputs=[output], report={}, held_because=held_because, now=NOW)
    return ds


def run_dcmtk(program: str, receiver: Receiver, *arguments: str, root: str = "-S") -> subprocess.CompletedProcess[str]:
    command = [require_program(f"/usr/bin/{program}", "dcmtk"), "-v", root, "-aec", receiver.config.node.ae_title]
    command += [*arguments, "127.0.0.1", str(receiver.port)]
    environment = os.environ | {"TCP_NODELAY": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


def search_by_findscu(receiver: Receiver, folder: Path, level: str, *keys: str, root: str = "-S") -> list[Dataset]:
    folder.mkdir(parents=True)
    arguments = [each for key in (f"QueryRetrieveLevel={level}", *keys) for each in ("-k", key)]
    done = run_dcmtk("findscu", receiver, "-X", "-od", str(folder), *arguments, root=root)
    assert done.returncode == 0, done.stderr
    return [dcmread(path, force=True) for path in sorted(folder.glob("rsp*.dcm"))]


@pytest.mark.slow
def test_findscu_finds_what_the_node_holds(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(
        receiver,
        tmp_path / "in",
        {"PatientName": "Müller^Jürgen", "PatientID": "A-1", "StudyDate": "20260101"},
        {"PatientName": "Müller^Jürgen", "PatientID": "A-1", "series_uid": f"{STUDY}.2", "Modality": "CT"},
        {"study_uid": f"{STUDY}9", "series_uid": f"{STUDY}9.1", "PatientID": "B-1", "StudyDate": "20260301"},
    )
    returned = ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "ModalitiesInStudy", "PatientName")
    (study,) = search_by_findscu(receiver, tmp_path / "1", "STUDY", "PatientID=A-*", "StudyInstanceUID", *returned)
    assert (study.StudyInstanceUID, study.QueryRetrieveLevel) == (STUDY, "STUDY")
    assert (study.NumberOfStudyRelatedSeries, study.NumberOfStudyRelatedInstances) == (2, 2)
    assert list(study.ModalitiesInStudy) == ["CT", "MR"]
    assert study.PatientName == "Müller^Jürgen"
    assert (study.RetrieveAETitle, study.InstanceAvailability) == ("DICOMNODE", "ONLINE")
    in_range = search_by_findscu(receiver, tmp_path / "2", "STUDY", "StudyDate=20260201-", "StudyInstanceUID")
    assert [each.StudyInstanceUID for each in in_range] == [f"{STUDY}9"]
    assert len(search_by_findscu(receiver, tmp_path / "3", "STUDY", "StudyInstanceUID")) == 2
    assert search_by_findscu(receiver, tmp_path / "4", "STUDY", "StudyInstanceUID=1.2.3") == []
    keys = (f"StudyInstanceUID={STUDY}", "SeriesInstanceUID", "Modality=CT", "NumberOfSeriesRelatedInstances")
    (series,) = search_by_findscu(receiver, tmp_path / "5", "SERIES", *keys)
    assert (series.SeriesInstanceUID, series.NumberOfSeriesRelatedInstances) == (f"{STUDY}.2", 1)
    keys = (f"StudyInstanceUID={STUDY}", f"SeriesInstanceUID={STUDY}.1", "InstanceNumber", "Rows")
    (image,) = search_by_findscu(receiver, tmp_path / "6", "IMAGE", *keys)
    assert (image.InstanceNumber, image.Rows) == (1, 16)


def test_orthanc_finds_and_gets_what_the_node_holds(start: Start, orthanc: Orthanc, tmp_path: Path) -> None:
    receiver = start(peers=(orthanc.peer,))
    paths = give(receiver, tmp_path / "in", {"PatientID": "ÄÖ"}, {"PatientID": "ÄÖ"}, {"series_uid": f"{STUDY}.2"})
    node = here(receiver)
    orthanc.register_peer(node)
    query = orthanc.ask("POST", "/modalities/node/query", {"Level": "Study", "Query": {"PatientID": "Ä*"}})
    (answer,) = orthanc.ask("GET", f"{query['Path']}/answers")
    content = orthanc.ask("GET", f"{query['Path']}/answers/{answer}/content?simplify")
    assert (content["StudyInstanceUID"], content["PatientID"]) == (STUDY, "ÄÖ")
    orthanc.ask("POST", f"{query['Path']}/answers/{answer}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    held = {str(ds.SOPInstanceUID): ds for ds in orthanc.datasets()}
    assert held.keys() == {str(dcmread(path).SOPInstanceUID) for path in paths}
    for path in paths:
        ds = dcmread(path)
        assert held[str(ds.SOPInstanceUID)] == ds


def test_movescu_sends_a_series_to_a_configured_peer_only(start: Start, storescp: StoreScp, tmp_path: Path) -> None:
    receiver = start(peers=(storescp.peer,))
    paths = give(receiver, tmp_path / "in", {}, {}, {"series_uid": f"{STUDY}.2"})
    keys = ["-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={STUDY}", "-k", f"SeriesInstanceUID={STUDY}.1"]
    done = run_dcmtk("movescu", receiver, "-d", "-aem", "STORESCP", *keys)
    assert done.returncode == 0, done.stderr
    moved = {read_encoded(path).data_set for path in storescp.files()}
    assert moved == {read_encoded(path).data_set for path in paths[:2]}
    elsewhere = run_dcmtk("movescu", receiver, "-d", "-aem", "SOMEBODY", *keys)
    assert elsewhere.returncode != 0
    assert "0xa801" in (elsewhere.stderr + elsewhere.stdout).lower()
    assert len(storescp.files()) == 2


def test_getscu_gets_a_study(start: Start, tmp_path: Path) -> None:
    receiver = start()
    paths = give(receiver, tmp_path / "in", {}, {}, {"series_uid": f"{STUDY}.2"})
    (tmp_path / "got").mkdir()
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
    done = run_dcmtk("getscu", receiver, "-od", str(tmp_path / "got"), *keys)
    assert done.returncode == 0, done.stderr
    got = {read_encoded(path).data_set for path in (tmp_path / "got").iterdir()}
    assert got == {read_encoded(path).data_set for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, JPEGLSLossless, RLELossless])
def test_our_own_scu_gets_each_instance_as_it_is_stored(start: Start, tmp_path: Path, syntax: UID) -> None:
    receiver = start()
    stored = write_in_syntax(tmp_path / "one.dcm", syntax)
    assert store_all(receiver.port, [stored], tmp_path / "sent")[0].Status == 0
    got: list[bytes] = []

    def keep(event: evt.Event) -> int:
        got.append(event.request.DataSet.getvalue())
        return 0x0000

    fetched = queries.fetch(here(receiver), STUDY, on_store=keep, calling_aet="ANYBODY")
    assert fetched == queries.RetrievalCounts(completed=1)
    assert got == [stored.data_set]


def write_in_syntax(path: Path, syntax: UID) -> Encoded:
    compressed = syntax.is_compressed
    first = ExplicitVRLittleEndian if compressed else syntax
    ds = write_instance(path, study_uid=STUDY, transfer_syntax_uid=first, PixelData=bytes(range(256)) * 2)
    if compressed:
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)
    return read_encoded(path)


def test_what_is_compressed_is_decompressed_for_who_takes_nothing_else(start: Start, tmp_path: Path) -> None:
    with StoreScp(tmp_path / "scp", "--implicit") as scp:
        receiver = start(peers=(scp.peer,))
        stored = write_in_syntax(tmp_path / "one.dcm", JPEGLSLossless)
        assert store_all(receiver.port, [stored], tmp_path / "sent")[0].Status == 0
        moved = queries.move(here(receiver), STUDY, destination_aet="STORESCP", calling_aet="ANYBODY")
        assert moved == queries.RetrievalCounts(completed=1)
        (ds,) = scp.datasets()
    assert ds.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert ds.SOPInstanceUID == stored.sop_instance_uid
    assert ds.PixelData == bytes(range(256)) * 2


def test_what_cannot_be_sent_counts_as_failed_and_is_named(start: Start, tmp_path: Path) -> None:
    with StoreScp(tmp_path / "scp", "--implicit") as scp:
        receiver = start(peers=(scp.peer,))
        (good,) = give(receiver, tmp_path / "in", {})
        big = write_in_syntax(tmp_path / "big.dcm", ExplicitVRBigEndian)
        missing = write_in_syntax(tmp_path / "missing.dcm", ExplicitVRLittleEndian)
        assert [answer.Status for answer in store_all(receiver.port, [big, missing], tmp_path / "sent")] == [0, 0]
        (row,) = [row for row in receiver.rows(Instance) if row.sop_instance_uid == missing.sop_instance_uid]
        (receiver.config.spool_dir / row.relative_path).unlink()
        last = Dataset()
        for status, identifier in ask(receiver, "move", {"StudyInstanceUID": STUDY}, destination="STORESCP"):
            last, failures = status, identifier
        assert len(scp.files()) == 1
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0xB000, 1, 2)
    assert sorted(failures.FailedSOPInstanceUIDList) == sorted([big.sop_instance_uid, missing.sop_instance_uid])
    assert str(dcmread(good).SOPInstanceUID) not in failures.FailedSOPInstanceUIDList


def ask(
    receiver: Receiver,
    service: str,
    keys: Mapping[str, Any],
    *,
    level: str = "STUDY",
    destination: str = "",
    flags: bytes = b"",
    syntax: UID = ExplicitVRLittleEndian,
    before: Callable[[Any, int], None] = lambda assoc, number: None,
    ae_title: str = "ANYBODY",
    model: str = "",
) -> list[tuple[Dataset, Dataset]]:
    """Return every response with its identifier; ``before`` is called with the association and the number of each."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        identifier.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=pydicom_config.IGNORE))
    model = (
        model
        or {
            "find": FIND,
            "get": StudyRootQueryRetrieveInformationModelGet,
            "move": StudyRootQueryRetrieveInformationModelMove,
        }[service]
    )
    more: list[Any] = [build_role(MRImageStorage, scp_role=True)]
    if flags:
        more.append(SOPClassExtendedNegotiation())
        more[-1].sop_class_uid, more[-1].service_class_application_information = FIND, flags
    contexts = [build_context(model, syntax), build_context(MRImageStorage, [ExplicitVRLittleEndian])]
    handlers = [(evt.EVT_C_STORE, lambda event: 0x0000)]
    responses = []
    with association(
        here(receiver), contexts, calling_aet=ae_title, timeout_s=20, roles=more, handlers=handlers
    ) as assoc:
        if service == "move":
            answers = assoc.send_c_move(identifier, destination, model, msg_id=7)
        else:
            answers = getattr(assoc, f"send_c_{service}")(identifier, model, msg_id=7)
        for number, (status, answer) in enumerate(answers):
            before(assoc, number)
            responses.append((status, answer))
    return responses


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_queries_are_answered_in_the_syntax_of_their_context(start: Start, tmp_path: Path, syntax: UID) -> None:
    receiver = start()
    give(receiver, tmp_path / "in", {"PatientName": "Doe^Jane"})
    keys = {"PatientName": "doe*", "StudyInstanceUID": "", "NumberOfStudyRelatedInstances": None}
    (pending, found), (last, nothing) = ask(receiver, "find", keys, syntax=syntax)
    assert (pending.Status, last.Status) == (0xFF00, 0x0000)
    assert (found.PatientName, found.NumberOfStudyRelatedInstances) == ("Doe^Jane", 1)
    assert nothing is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("character_set", "answered"),
    [("ISO_IR 100", "ISO_IR 100"), ("ISO_IR 192", "ISO_IR 192"), ("ISO_IR 144", "ISO_IR 192"), ("", "ISO_IR 192")],
)
def test_names_are_matched_and_answered_across_character_sets(
    start: Start, tmp_path: Path, character_set: str, answered: str
) -> None:
    receiver = start()
    german = {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100"}
    give(receiver, tmp_path / "in", german, {"study_uid": f"{STUDY}9", "series_uid": f"{STUDY}9.1"})
    name = "MÜLLER*" if answered == character_set else "M?LLER*"
    keys = {"SpecificCharacterSet": character_set, "PatientName": name}
    (_, found), _ = ask(receiver, "find", keys)
    assert found.SpecificCharacterSet == answered
    assert found.PatientName == "Müller^Jürgen"


def test_an_answer_in_ascii_names_no_character_set(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(receiver, tmp_path / "in", {})
    (_, found), _ = ask(receiver, "find", {"PatientName": ""})
    assert "SpecificCharacterSet" not in found


def test_keys_that_are_not_supported_are_said_to_be_not(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(receiver, tmp_path / "in", {})
    procedure = Dataset()
    procedure.CodeValue = "X"
    for further in ({"PatientComments": "nice"}, {"ProcedureCodeSequence": [procedure]}, {"Modality": "CT"}):
        (pending, found), last = ask(receiver, "find", {"StudyInstanceUID": "", **further})
        assert (pending.Status, last[0].Status) == (0xFF01, 0x0000)
        assert not set(further) & {element.keyword for element in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "keys", "status"),
    [
        ("SERIES", {"SeriesInstanceUID": ""}, 0xA900),
        ("IMAGE", {"StudyInstanceUID": STUDY}, 0xA900),
        ("SERIES", {"StudyInstanceUID": "1.2\\1.3"}, 0xA900),
        ("PATIENT", {"PatientID": ""}, 0xA900),
        ("STUDY", {"StudyDate": "20261399x"}, 0xC000),
    ],
)
def test_a_query_that_makes_no_sense_gets_its_status(
    start: Start, tmp_path: Path, level: str, keys: Mapping[str, str], status: int
) -> None:
    receiver = start()
    ((last, _),) = ask(receiver, "find", keys, level=level)
    assert last.Status == status
    assert last.ErrorComment


def test_relational_queries_and_ranges_of_moments_are_negotiated(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(
        receiver,
        tmp_path / "in",
        {"StudyDate": "20260101", "StudyTime": "200000"},
        {"study_uid": f"{STUDY}9", "series_uid": f"{STUDY}9.1", "StudyDate": "20260102", "StudyTime": "070000"},
    )
    *series, last = ask(receiver, "find", {"SeriesInstanceUID": ""}, level="SERIES", flags=b"\1\0\0")
    assert last[0].Status == 0x0000
    assert sorted(str(found.SeriesInstanceUID) for _, found in series) == [f"{STUDY}.1", f"{STUDY}9.1"]
    moments = {"StudyDate": "20260101-20260102", "StudyTime": "1900-0800", "StudyInstanceUID": ""}
    assert len(ask(receiver, "find", moments, flags=b"\0\1")) == 3
    assert len(ask(receiver, "find", moments)) == 1
    (_, fuzzy), _ = ask(receiver, "find", {"PatientName": "phan te", "StudyTime": "07"}, flags=b"\0\0\1")
    assert fuzzy.StudyInstanceUID == f"{STUDY}9"


@pytest.mark.slow
def test_a_query_is_cancelled(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(receiver, tmp_path / "in", *({"study_uid": f"{STUDY}{n}", "series_uid": f"{STUDY}{n}.1"} for n in range(300)))

    def cancel(assoc: Any, number: int) -> None:
        if number == 0:
            assoc.send_c_cancel(7, query_model=FIND)

    responses = ask(receiver, "find", {"StudyInstanceUID": "", "ModalitiesInStudy": ""}, before=cancel)
    assert responses[-1][0].Status == 0xFE00
    assert len(responses) < 301


@pytest.mark.slow
def test_a_retrieval_is_cancelled_and_says_what_remains(start: Start, tmp_path: Path) -> None:
    going_on = threading.Event()

    def slowly(event: evt.Event) -> int:
        going_on.wait(10)
        return 0x0000

    with Answering(slowly) as server:
        receiver = start(peers=(server.peer,))
        give(receiver, tmp_path / "in", {}, {}, {}, {})
        model = StudyRootQueryRetrieveInformationModelMove
        identifier = Dataset()
        identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
        with association(here(receiver), [build_context(model)], calling_aet="ANYBODY", timeout_s=20) as assoc:
            answers = assoc.send_c_move(identifier, server.peer.ae_title, model, msg_id=7)
            wait_for(lambda: server.stored, "the first instance is on its way")
            assoc.send_c_cancel(7, query_model=model)
            going_on.set()
            statuses = [status for status, _ in answers]
    assert statuses[-1].Status == 0xFE00
    assert statuses[-1].NumberOfCompletedSuboperations == len(server.stored)
    assert statuses[-1].NumberOfRemainingSuboperations == 4 - len(server.stored) > 0


def test_counts_go_up_and_what_remains_goes_down(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(receiver, tmp_path / "in", {}, {}, {})
    responses = [status for status, _ in ask(receiver, "get", {"StudyInstanceUID": STUDY})]
    assert [status.Status for status in responses] == [0xFF00, 0xFF00, 0x0000]
    assert [status.get("NumberOfRemainingSuboperations") for status in responses] == [2, 1, None]
    assert [status.NumberOfCompletedSuboperations for status in responses] == [1, 2, 3]


def test_nothing_to_retrieve_is_no_failure_and_no_uid_is_one(start: Start) -> None:
    receiver = start()
    ((status, _),) = ask(receiver, "get", {"StudyInstanceUID": "1.2.3"})
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0x0000, 0)
    ((status, _),) = ask(receiver, "get", {"StudyInstanceUID": "*"})
    assert status.Status == 0xA900


def test_a_peer_that_is_down_fails_every_instance(start: Start, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        down = Peer(name="down", ae_title="DOWN", port=sock.getsockname()[1])
        receiver = start(peers=(down,))
        give(receiver, tmp_path / "in", {}, {})
        ((status, failures),) = ask(receiver, "move", {"StudyInstanceUID": STUDY}, destination="DOWN")
    assert (status.Status, status.NumberOfFailedSuboperations) == (0xA702, 2)
    assert len(failures.FailedSOPInstanceUIDList) == 2


@pytest.mark.slow
def test_a_receiver_that_refuses_some_is_counted(start: Start, tmp_path: Path) -> None:
    statuses = iter([0x0000, 0xA700, 0xB000])
    with Answering(lambda event: next(statuses)) as server:
        receiver = start(peers=(server.peer,))
        give(receiver, tmp_path / "in", {}, {}, {})
        *_, (last, _) = ask(receiver, "move", {"StudyInstanceUID": STUDY}, destination=server.peer.ae_title)
    assert last.Status == 0xB000
    counts = last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations, last.NumberOfWarningSuboperations
    assert counts == (1, 1, 1)


def test_results_go_out_and_held_ones_are_invisible(start: Start, storescp: StoreScp, tmp_path: Path) -> None:
    receiver = start(peers=(storescp.peer,))
    give(receiver, tmp_path / "in", {})
    held = add_result(receiver, tmp_path / "results", held_because="uncertain")
    keys = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "", "Modality": "", "SeriesDescription": ""}
    assert len(ask(receiver, "find", keys, level="SERIES")) == 2
    requested = {"StudyInstanceUID": STUDY, "NumberOfStudyRelatedInstances": None, "ModalitiesInStudy": ""}
    ((_, study), _) = ask(receiver, "find", requested)
    assert study.NumberOfStudyRelatedInstances == 1
    unique = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": str(held.SeriesInstanceUID)}
    unique |= {"SOPInstanceUID": str(held.SOPInstanceUID)}
    ((status, _),) = ask(receiver, "move", unique, level="IMAGE", destination="STORESCP")
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0x0000, 0)
    done = add_result(receiver, tmp_path / "results")
    assert queries.move(here(receiver), STUDY, destination_aet="STORESCP", calling_aet="ANYBODY").completed == 2
    assert str(done.SOPInstanceUID) in {str(ds.SOPInstanceUID) for ds in storescp.datasets()}


def test_a_result_without_its_marks_goes_on_no_wire(start: Start, storescp: StoreScp, tmp_path: Path) -> None:
    receiver = start(peers=(storescp.peer,))
    give(receiver, tmp_path / "in", {})
    unmarked = add_result(receiver, tmp_path / "results", marked=False)
    *_, (last, failures) = ask(receiver, "move", {"StudyInstanceUID": STUDY}, destination="STORESCP")
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0xB000, 1, 1)
    assert failures.FailedSOPInstanceUIDList == unmarked.SOPInstanceUID
    assert len(storescp.files()) == 1


def test_only_senders_may_ask(start: Start) -> None:
    receiver = start(senders=(SenderConfig(ae_title="FRIEND"),))
    with pytest.raises(PeerRefused, match="rejected the association"):
        ask(receiver, "find", {"StudyInstanceUID": ""}, ae_title="STRANGER")
    ((last, _),) = ask(receiver, "find", {"StudyInstanceUID": ""}, ae_title="FRIEND")
    assert last.Status == 0x0000


def test_storing_still_works_on_an_association_that_has_asked(start: Start, tmp_path: Path) -> None:
    receiver = start()
    write_instance(tmp_path / "one.dcm", study_uid=STUDY)
    one = read_encoded(tmp_path / "one.dcm")
    contexts = [build_context(FIND), build_context(one.sop_class_uid, one.transfer_syntax_uid)]
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
    with association(here(receiver), contexts, calling_aet="ANYBODY", timeout_s=20) as assoc:
        assert [status.Status for status, _ in assoc.send_c_find(identifier, FIND)] == [0x0000]
        assert assoc.send_c_store(tmp_path / "one.dcm").Status == 0x0000
        assert [status.Status for status, _ in assoc.send_c_find(identifier, FIND)] == [0xFF00, 0x0000]


@pytest.mark.slow
def test_a_large_instance_is_sent_in_pieces_of_bounded_size(start: Start, tmp_path: Path) -> None:
    longest = 0

    def keep(event: evt.Event) -> None:
        nonlocal longest
        longest = max(longest, len(event.data))

    receiver = start()
    give(receiver, tmp_path / "in", {"frames_bytes": 20_000_000})
    digest = hashlib.sha256()

    def store(event: evt.Event) -> int:
        digest.update(event.request.DataSet.getvalue())
        return 0x0000

    contexts = [build_context(StudyRootQueryRetrieveInformationModelGet), build_context(MRImageStorage)]
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
    with association(
        here(receiver),
        contexts,
        calling_aet="ANYBODY",
        timeout_s=20,
        roles=[build_role(MRImageStorage, scp_role=True)],
        handlers=[(evt.EVT_C_STORE, store), (evt.EVT_DATA_RECV, keep)],
    ) as assoc:
        answers = list(assoc.send_c_get(identifier, StudyRootQueryRetrieveInformationModelGet))
    assert answers[-1][0].Status == 0x0000
    assert 10_000 < longest <= 256 * 1024 + 6
