"""``dicomnode check`` beside a running node."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import UID
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import MRImageStorage, Verification

from dicomnode import checks
from dicomnode.config import Config, Peer
from dicomnode.config.senders import SenderConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.config.web import WebConfig
from dicomnode.dimse.associations import association
from dicomnode.errors import PeerRefused
from tests.certificates import Authority, RunningReceiver, run_receiver
from tests.peers.hook import Hook
from tests.web_node import Web

pytestmark = pytest.mark.fast

SENDERS = (SenderConfig(ae_title="MR1"),)


def find_check(config: Config, what: str) -> checks.Check:
    return next(check for check in checks.run(config) if check.what == what)


def describe(receiver: RunningReceiver, ae_title: str) -> Config:
    """Return the configuration of a node of that title at the receiver's port."""
    node = receiver.config.node.model_copy(update={"port": receiver.port, "ae_title": ae_title})
    return receiver.config.model_copy(update={"node": node})


def test_the_node_answers_its_own_check_and_refuses_nobody(tmp_path: Path) -> None:
    with run_receiver(tmp_path, senders=SENDERS) as receiver:
        check = find_check(describe(receiver, "DICOMNODE"), "DICOM port")
        assert (check.result, check.detail) == (
            "ok",
            f"DICOMNODE at 127.0.0.1:{receiver.port}, where a node answers C-ECHO",
        )
        assert receiver.meters.refused_callers.list() == []


def test_a_node_that_refuses_the_title_is_a_node(tmp_path: Path) -> None:
    with run_receiver(tmp_path, senders=SENDERS) as receiver:
        check = find_check(describe(receiver, "ELSEWHERE"), "DICOM port")
        assert check.result == "ok"
        assert check.detail.endswith("where a node answers that ELSEWHERE is not among its senders")
        assert [caller.ae_title for caller in receiver.meters.refused_callers.list()] == ["ELSEWHERE"]


def test_a_full_node_is_a_node(tmp_path: Path) -> None:
    with run_receiver(tmp_path, node={"max_associations": 1}) as receiver:
        peer = Peer(name="node", ae_title="DICOMNODE", host="127.0.0.1", port=receiver.port)
        with association(peer, [build_context(Verification)], calling_aet="MR1", timeout_s=5):
            check = find_check(describe(receiver, "DICOMNODE"), "DICOM port")
    assert check.result == "ok"
    assert check.detail.endswith(
        "where a node answers that it takes nothing now: its disk or its number of associations is full"
    )


def test_a_node_with_tls_is_known_by_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("node.example"), authority.issue("other.example")
    with run_receiver(tmp_path, ours.tls(authority.file, require_client_certificate=True)) as receiver:
        config = describe(receiver, "DICOMNODE")
        check = find_check(config, "DICOM port")
        assert (check.result, check.detail.rpartition("where ")[2]) == (
            "ok",
            "a node answers over TLS with our certificate",
        )
        other = config.node.model_copy(update={"tls": theirs.tls(authority.file)})
        check = find_check(config.model_copy(update={"node": other}), "DICOM port")
        assert (check.result, check.detail.rpartition(", ")[2]) == (
            "failed",
            "by another program; set another [node] port",
        )


@pytest.mark.parametrize("classes", [[MRImageStorage], [Verification, MRImageStorage]], ids=["store", "both"])
def test_the_own_title_opens_nothing_but_c_echo(tmp_path: Path, classes: list[UID]) -> None:
    contexts = [build_context(uid) for uid in classes]
    with run_receiver(tmp_path, senders=SENDERS) as receiver:
        peer = Peer(name="node", ae_title="DICOMNODE", host="127.0.0.1", port=receiver.port)
        with (
            pytest.raises(PeerRefused, match="Calling AE title"),
            association(peer, contexts, calling_aet="DICOMNODE", timeout_s=5),
        ):
            pass


def check_web(web: Web) -> tuple[str, str]:
    """Return the result and the detail of the check of the web at the port that it has."""
    settings = web.config.web.model_copy(update={"port": web.port})
    check = find_check(web.config.model_copy(update={"web": settings}), "web")
    return check.result, check.detail


def test_the_web_of_a_ready_node_is_ok(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        where = f"http://127.0.0.1:{web.port}"
        assert check_web(web) == ("ok", f"{where}, where a node answers, loopback only, no token")


def test_the_web_over_https_is_ok(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("node.example")
    (tmp_path / "web.token").write_text("0123456789abcdef-not-guessed")
    settings = {"token_file": "web.token", "certificate_file": issued.certificate, "key_file": issued.key}
    with Web(tmp_path, settings) as web:
        where = f"https://127.0.0.1:{web.port}"
        assert check_web(web) == ("ok", f"{where}, where a node answers, asks for its token")


def test_the_web_of_a_node_that_is_not_ready_is_a_warning(tmp_path: Path) -> None:
    with Web(tmp_path, limits=SpoolConfig(min_free_gb=1e9)) as web:
        result, detail = check_web(web)
    assert (result, detail.rpartition("where ")[2]) == ("warning", "a node answers that it is not ready: disk")


def test_another_web_at_the_port_is_a_warning(tmp_path: Path) -> None:
    with Hook() as other:
        settings = Config(web=WebConfig(port=other.port), path=tmp_path / "node.toml")
        check = find_check(settings.with_absolute_paths(tmp_path), "web")
    assert check.result == "warning"
    assert check.detail.endswith("Address already in use, and no node answers there; set another [web] port")
