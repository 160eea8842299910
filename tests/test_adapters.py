"""Private names of pynetdicom and pydicom that the adapters use: each exists and behaves as the adapters need."""

from __future__ import annotations

import ast
import socket
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_RELEASE_RQ
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AssociationServer, RequestHandler

from dicomnode.datasets import pydicom_adapter
from dicomnode.dimse import pynetdicom_adapter as adapter

ROOT = Path(__file__).parent.parent
_OWN_PACKAGES = ("dicomnode", "pipelines", "model_zoo", "db")
_PRIVATE = frozenset({
    "_accepted_cx", "_create_association", "_create_socket", "_decode_pdu", "_dul_ready", "_gc", "_idle_timer",
    "_is_paused", "_kill_thread", "_process_recv_primitive", "_reactor_checkpoint", "_recv_pdu", "_serve_request",
    "_servers", "_shutdown_socket",
})  # fmt: skip


@pytest.fixture
def echo_port() -> Iterator[int]:
    """Yield the port of a pynetdicom server that answers C-ECHO."""
    ae = AE("SERVER")
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    yield server.socket.getsockname()[1]
    server.shutdown()


def _associate(port: int, *, prepare: Any = None) -> Association:
    ae = adapter.SocketRecordingAE("CLIENT")
    ae.add_requested_context(Verification)
    handlers = [(evt.EVT_CONN_OPEN, lambda event: prepare(event.assoc))] if prepare else []
    assoc = ae.associate("127.0.0.1", port, evt_handlers=handlers)
    assert assoc.is_established
    return assoc


def _find_private_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in _PRIVATE:
            yield node.attr
        elif isinstance(node, ast.FunctionDef) and node.name in _PRIVATE:
            yield node.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pynetdicom", "pydicom")):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if name.startswith("_"))


@pytest.mark.slow
def test_no_module_but_the_adapters_uses_a_private_name() -> None:
    uses = {
        path.relative_to(ROOT).as_posix(): sorted(set(names))
        for package in _OWN_PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (names := list(_find_private_names(path)))
    }
    assert sorted(uses) == ["dicomnode/datasets/pydicom_adapter.py", "dicomnode/dimse/pynetdicom_adapter.py"]
    assert set(uses["dicomnode/dimse/pynetdicom_adapter.py"]) == _PRIVATE | {"_config"}
    assert uses["dicomnode/datasets/pydicom_adapter.py"] == ["_uid_dict"]


def test_only_versions_with_these_names_are_installed() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "pynetdicom>=3.0.4,<3.1" in required
    assert version("pynetdicom").startswith("3.0.")


def test_every_private_name_exists() -> None:
    ae = AE()
    assoc = Association(ae, "requestor")
    owners = {
        assoc: ("_accepted_cx", "_dul_ready", "_is_paused", "_reactor_checkpoint", "_serve_request"),
        assoc.dul: ("_decode_pdu", "_idle_timer", "_kill_thread", "_process_recv_primitive", "_recv_pdu"),
        ae: ("_create_socket", "_servers"),
        RequestHandler: ("_create_association",),
    }
    for owner, names in owners.items():
        for name in names:
            assert hasattr(owner, name), f"{owner} has no {name}"
    server = ae.make_server(("127.0.0.1", 0), contexts=[build_context(Verification)], server_class=AssociationServer)
    assert server._gc == [0, 59]
    server.server_close()


def test_identifiers_and_command_sets_are_not_logged() -> None:
    assert _config.LOG_REQUEST_IDENTIFIERS is _config.LOG_RESPONSE_IDENTIFIERS is False
    assert (_config.LOG_HANDLER_LEVEL, _config.STORE_SEND_CHUNKED_DATASET) == ("none", True)


def test_sockets_contexts_and_shutdown_are_in_reach(echo_port: int) -> None:
    ended = threading.Event()
    assoc = _associate(echo_port)
    assert [type(sock) for sock in assoc.ae.sockets] == [socket.socket]
    assert adapter.accepted_context(assoc, 1) is assoc.accepted_contexts[0]
    assert adapter.accepted_context(assoc, 3) is None
    adapter.replace_socket_shutdown(assoc, ended.set)
    assoc.abort()
    assert ended.wait(30)
    assoc.ae.sockets[0].close()


def test_a_held_reactor_lets_a_request_through(echo_port: int) -> None:
    assoc = Association(AE(), "requestor")
    assert not assoc._is_paused
    with adapter.hold_reactor(assoc):
        assert assoc._is_paused
    assert not assoc._is_paused


def test_the_checkpoint_is_where_the_reactor_stands_still(echo_port: int) -> None:
    assoc = _associate(echo_port, prepare=adapter.replace_checkpoint)
    assert isinstance(assoc._reactor_checkpoint, adapter.ReactorCheckpoint)
    assert [assoc.send_c_echo().Status for _ in range(20)] == [0] * 20
    assoc.release()


def test_a_wrapped_service_is_offered_each_request_first() -> None:
    assoc, served = Association(AE(), "acceptor"), list[tuple[str, int]]()
    assoc._serve_request = lambda message, context_id: served.append((f"pynetdicom: {message}", context_id))

    def serve(message: Any, context_id: int) -> bool:
        served.append((message, context_id))
        return bool(message == "ours")

    adapter.wrap_request_service(assoc, serve)
    assoc._serve_request("ours", 1)
    assoc._serve_request("theirs", 3)
    assert served == [("ours", 1), ("theirs", 3), ("pynetdicom: theirs", 3)]


def test_an_upper_layer_without_thread_is_ready_decodes_and_stops() -> None:
    assoc = Association(AE(), "acceptor")
    assert isinstance(assoc.dul, DULServiceProvider)
    layer = adapter.ThreadlessUpperLayer(assoc)
    layer.mark_ready()
    assert assoc._dul_ready.is_set()
    assert layer.queue_pdu(A_RELEASE_RQ().encode()) == "Evt12"  # PS3.8 table 9-10: A-RELEASE-RQ PDU received
    assert isinstance(layer._recv_pdu.get(block=False), A_RELEASE_RQ)
    assert not layer.queue_primitive_event()
    assert layer.is_alive()
    layer.mark_stopped()
    assert not layer.is_alive()


def test_transfer_syntaxes_are_those_of_the_standard_and_of_pynetdicom() -> None:
    syntaxes = set(pydicom_adapter.uids_of_kind("Transfer Syntax"))
    assert {"1.2.840.10008.1.2", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.110"} <= syntaxes
    assert "1.2.840.10008.1.1" not in syntaxes
