"""``dicomnode send`` and ``dicomnode peers`` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import select

from db import engine as engines
from db.models import Instance
from dicomnode.cli import main
from dicomnode.config import Peer, load
from dicomnode.config.senders import SenderConfig
from tests import databases
from tests.certificates import run_receiver
from tests.peers import Orthanc, StoreScp, free_port, write_config, write_instance


@pytest.fixture
def node_toml(tmp_path: Path, orthanc: Orthanc) -> Path:
    pacs = orthanc.peer.model_copy(update={"name": "pacs"})
    nobody = Peer(name="nobody", ae_title="NOBODY", host="127.0.0.1", port=free_port())
    return write_config(tmp_path, node={"ae_title": "NODE"}, peers=[pacs, nobody])


def run(node_toml: Path, *words: str) -> int:
    return main(["--config", str(node_toml), *words])


def test_send_gives_a_result_for_each_file(
    tmp_path: Path, node_toml: Path, orthanc: Orthanc, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = [write_instance(tmp_path / "study" / f"{n}.dcm").SOPInstanceUID for n in range(3)]
    (tmp_path / "study" / "notes.txt").write_text("not an image")
    assert run(node_toml, "send", str(tmp_path / "study"), "--to", "pacs", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert {r["sop_instance_uid"] for r in results} == set(sent)
    assert {(r["outcome"], r["status"]) for r in results} == {("stored", "0x0000")}
    assert {ds.SOPInstanceUID for ds in orthanc.datasets()} == set(sent)


def test_send_to_an_address_needs_no_configuration(tmp_path: Path, storescp: StoreScp) -> None:
    write_instance(tmp_path / "a.dcm")
    address = f"127.0.0.1:{storescp.peer.port}:STORESCP"
    assert run(tmp_path / "none.toml", "send", str(tmp_path / "a.dcm"), "--to", address) == 0
    assert len(storescp.files()) == 1


def test_send_calls_with_the_ae_title_of_a_listed_sender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_instance(tmp_path / "a.dcm")
    with run_receiver(tmp_path, senders=(SenderConfig(ae_title="MR1"),)) as receiver:
        words = ["send", str(tmp_path / "a.dcm"), "--to", f"127.0.0.1:{receiver.port}:DICOMNODE"]
        assert run(tmp_path / "none.toml", *words) == 1
        assert "Calling AE title not recognised" in capsys.readouterr().err
        assert run(tmp_path / "none.toml", *words, "--from", "MR1") == 0
        assert len([file for file in receiver.files() if file.suffix == ".dcm"]) == 1


@pytest.mark.parametrize("title", ["SEVENTEEN_LETTERS", "A\\B", " "])
def test_send_calls_with_no_title_that_dicom_forbids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], title: str
) -> None:
    write_instance(tmp_path / "a.dcm")
    words = ["send", str(tmp_path / "a.dcm"), "--to", "127.0.0.1:1:NODE", "--from", title]
    assert run(tmp_path / "none.toml", *words) == 2
    assert "1 to 16 printable ASCII" in capsys.readouterr().err


def test_send_fails_when_one_file_did_and_says_which(
    tmp_path: Path, node_toml: Path, orthanc: Orthanc, capsys: pytest.CaptureFixture[str]
) -> None:
    write_instance(tmp_path / "good.dcm")
    (tmp_path / "bad.dcm").write_bytes(b"junk")
    files = [str(tmp_path / "good.dcm"), str(tmp_path / "bad.dcm")]
    assert run(node_toml, "send", *files, "--to", "pacs") == 1
    out, err = capsys.readouterr()
    assert out == "pacs: 1 stored, 1 unreadable\n"
    assert err == f"{tmp_path / 'bad.dcm'}: not a DICOM file with its meta information\n"
    assert len(orthanc.instances()) == 1


def test_send_to_an_unknown_peer_is_told_in_one_line(
    tmp_path: Path, node_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_instance(tmp_path / "a.dcm")
    assert run(node_toml, "send", str(tmp_path / "a.dcm"), "--to", "elsewhere") == 1
    assert "no peer is named 'elsewhere'" in capsys.readouterr().err


def test_peers_are_listed_and_answer(node_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(node_toml, "peers", "list", "--json") == 0
    assert [peer["name"] for peer in json.loads(capsys.readouterr().out)] == ["pacs", "nobody"]
    assert run(node_toml, "peers", "echo", "pacs") == 0
    assert "pacs (ORTHANC)" in capsys.readouterr().out
    assert run(node_toml, "peers", "echo", "nobody") == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_find_lists_what_the_peer_holds(
    tmp_path: Path, node_toml: Path, orthanc: Orthanc, capsys: pytest.CaptureFixture[str]
) -> None:
    orthanc.upload(_write(tmp_path / "a.dcm", "1.2.3.1", "Müller^Jürgen"))
    orthanc.upload(_write(tmp_path / "b.dcm", "1.2.3.2", "Other"))
    assert (
        run(node_toml, "peers", "find", "pacs", "PatientName=Müller*", "NumberOfStudyRelatedInstances=", "--json") == 0
    )
    (study,) = json.loads(capsys.readouterr().out)
    assert study["StudyInstanceUID"] == "1.2.3.1"
    assert (study["PatientName"], study["NumberOfStudyRelatedInstances"]) == ("Müller^Jürgen", "1")
    assert run(node_toml, "peers", "find", "pacs", "StudyInstanceUID=1.2.3.2", "--level", "series") == 0
    assert "MR" in capsys.readouterr().out
    assert run(node_toml, "peers", "find", "pacs", "NoKeyword=1") == 2


def test_fetch_brings_a_study_into_a_folder(tmp_path: Path, node_toml: Path, orthanc: Orthanc) -> None:
    source = _write(tmp_path / "a.dcm", "1.2.3.1", "Müller^Jürgen")
    orthanc.upload(source)
    assert run(node_toml, "peers", "fetch", "pacs", "1.2.3.1", "--out", str(tmp_path / "out")) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert dcmread(path) == dcmread(source)


def test_fetch_brings_a_study_into_the_node(tmp_path: Path, node_toml: Path, orthanc: Orthanc) -> None:
    orthanc.upload(_write(tmp_path / "a.dcm", "1.2.3.1", "Müller^Jürgen"))
    config = load(node_toml)
    databases.prepare(config)
    engine = engines.connect(config.database_url)
    assert run(node_toml, "peers", "fetch", "pacs", "1.2.3.1") == 0
    with engines.sessions(engine)() as session:
        (instance,) = session.scalars(select(Instance))
        assert (config.spool_dir / instance.relative_path).exists()
        assert instance.sender_ae_title == orthanc.peer.ae_title
    engine.dispose()


def test_fetch_of_a_study_that_is_not_there_fails(node_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(node_toml, "peers", "fetch", "pacs", "1.2.3.404", "--out", str(node_toml.parent / "out")) == 1
    assert "0 came" in capsys.readouterr().err


def _write(path: Path, study_uid: str, name: str) -> Path:
    write_instance(path, study_uid=study_uid, series_uid=f"{study_uid}.1", PatientName=name)
    return path
