"""A bundle reaches no other host: a listening socket on this machine gets no connection, whatever opens one."""

from __future__ import annotations

import inspect
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_zoo import monai_rules, registry, smoke
from model_zoo.bundle import BundleError
from model_zoo.installing import Policy, stage_bundle
from model_zoo.offline import offline
from pipelines.contract import Grid, Volume
from tests.monai_bundles import write_doubling_bundle, write_spleen_bundle

pytest.importorskip("monai")


class Host:
    """Listening socket that knows whether anything connected to it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.address: tuple[str, int] = self._socket.getsockname()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}/weights.pth"

    def was_reached(self) -> bool:
        """Return whether a connection waits in the queue of the socket."""
        with suppress(BlockingIOError):
            self._socket.accept()[0].close()
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def host() -> Iterator[Host]:
    listener = Host()
    yield listener
    listener.close()


def _by_socket(host: Host) -> None:
    socket.create_connection(host.address, timeout=1).close()


def _by_datagram(host: Host) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.sendto(b"x", host.address)


def _by_name(host: Host) -> None:
    socket.gethostbyname("localhost")


def _by_urllib(host: Host) -> None:
    urllib.request.urlopen(host.url, timeout=1)


def _by_torch(host: Host) -> None:
    torch.hub.load_state_dict_from_url(host.url, file_name="never-there.pth")


def _by_monai(host: Host) -> None:
    from monai.apps.utils import download_url

    download_url(host.url, "/nonexistent/weights.pth")


def _by_requests(host: Host) -> None:
    pytest.importorskip("requests").get(host.url, timeout=1)


WAYS = (_by_socket, _by_datagram, _by_name, _by_urllib, _by_torch, _by_monai, _by_requests)


@pytest.mark.parametrize("way", WAYS)
def test_no_library_reaches_another_host_and_the_message_names_the_bundle(way: Any, host: Host) -> None:
    with pytest.raises(BundleError, match=r"^caller@1 tried to .*a bundle makes no connections"), offline("caller@1"):
        way(host)
    assert not host.was_reached()


def test_a_thread_that_the_bundle_starts_reaches_nothing(host: Host) -> None:
    caught: list[str] = []

    def call() -> None:
        try:
            _by_socket(host)
        except BundleError as error:
            caught.append(str(error))

    with offline("caller@1"):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert caught
    assert not host.was_reached()


def test_the_node_itself_connects_before_after_and_beside_it(host: Host) -> None:
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with offline("caller@1"):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    _by_socket(host)
    done.set()
    thread.join()
    assert host.was_reached()


def test_a_socket_of_this_machine_alone_is_left_open(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        with offline("caller@1"):
            client.connect(path)


def _networks_that_load() -> dict[str, type]:
    import monai.networks.nets as nets

    found = {}
    for name, kind in vars(nets).items():
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            loading = [argument for argument in inspect.signature(kind).parameters if _names_weights(argument)]
            if loading:
                found[name] = kind
    return found


def _names_weights(argument: str) -> bool:
    """Return whether an argument's name means weights from elsewhere; ``use_checkpoint`` is about memory."""
    if argument in ("pretrained_state_dict_key", "use_checkpoint", "use_checkpointing", "gradient_checkpointing"):
        return False
    return any(
        fragment in argument for fragment in ("pretrain", "url", "checkpoint", "weights", "repo", "download", "hub")
    )


def test_every_network_of_monai_is_built_without_the_weights_of_others() -> None:
    found = _networks_that_load()
    assert {"EfficientNetBN", "HoVerNet", "MILModel", "TorchVisionFCModel", "DenseNet121", "AHNet"} <= set(found)
    for name, kind in found.items():
        requested = {argument: "asked" for argument in inspect.signature(kind).parameters if _names_weights(argument)}
        if name == "Transchex":
            with pytest.raises(BundleError, match="always downloads"):
                monai_rules.disable_downloads("b@1", kind, requested)
            continue
        arguments = monai_rules.disable_downloads("b@1", kind, requested)
        assert all(arguments[argument] in (False, None) for argument in requested), (name, arguments)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "EfficientNetBN": {"model_name": "efficientnet-b0", "spatial_dims": 2, "num_classes": 2},
    "HoVerNet": {"mode": "fast", "out_classes": 2},
    "DenseNet121": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "pretrained": True},
    "SEResNet50": {"spatial_dims": 2, "in_channels": 3, "num_classes": 2, "pretrained": True},
    "FlexibleUNet": {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0", "pretrained": True,
                     "spatial_dims": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_network_that_would_download_by_its_defaults_is_built_from_nothing(name: str, host: Host) -> None:
    import monai.networks.nets as nets

    kind = getattr(nets, name)
    arguments = ARGUMENTS[name] | ({"pretrained_url": host.url} if name == "HoVerNet" else {})
    with offline("b@1"):
        assert isinstance(kind(**monai_rules.disable_downloads("b@1", kind, arguments)), torch.nn.Module)
    with pytest.raises(BundleError, match="tried to"), offline("b@1"):
        kind(**({"pretrained": True} if name == "EfficientNetBN" else {}) | arguments)
    assert not host.was_reached()


def test_an_address_in_the_networks_definition_is_refused(tmp_path: Path, host: Host) -> None:
    bundle = write_doubling_bundle(tmp_path / "doubling")
    path = bundle / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["network_def"]["act"] = ["prelu", {"init": host.url}]
    path.write_text(json.dumps(content))
    with (
        pytest.raises(BundleError, match=r"network_def holds the address"),
        stage_bundle(bundle, tmp_path / "models", Policy()) as found,
    ):
        smoke.run(found.facts, "cpu")
    assert not host.was_reached()


def test_an_address_in_the_configuration_is_refused_at_installation(tmp_path: Path, host: Host) -> None:
    bundle = write_spleen_bundle(tmp_path / "spleen")
    path = bundle / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["inferer"]["mode"] = host.url
    path.write_text(json.dumps(content))
    with (
        pytest.raises(BundleError, match=r"inferer\.mode = .* is an address"),
        stage_bundle(bundle, tmp_path / "models", Policy()),
    ):
        pass


def _write_calling_bundle(folder: Path, host: Host, part: str) -> Path:
    """Write a bundle whose code calls the host in one of its steps or while it is built, and which its site allows."""
    call = f"__import__('urllib.request').request.urlopen('{host.url}')"
    bundle = write_doubling_bundle(folder / "doubling")
    path = bundle / "configs" / "inference.json"
    content = json.loads(path.read_text())
    at = content["preprocessing" if part == "built" else part]["transforms"]
    func = f"${call}" if part == "built" else f"$lambda x: {call}"
    at.append({"_target_": "Lambdad", "keys": "pred" if part == "postprocessing" else "image", "func": func})
    path.write_text(json.dumps(content))
    return bundle


@pytest.mark.parametrize("part", ["built", "preprocessing", "postprocessing"])
def test_code_that_the_site_allows_makes_no_connection_either(part: str, host: Host, tmp_path: Path) -> None:
    from pipelines import bundle as pipeline
    from pipelines.contract import Case

    source = _write_calling_bundle(tmp_path, host, part)
    allowed = Policy(trusted_code={"doubling": monai_rules.configuration_digest(source)})
    with stage_bundle(source, tmp_path / "models", allowed) as found:
        assert found.trusted_code
        facts = found.commit()
    model = replace(registry.load_from(facts), trusted_code=True)
    volume = Volume(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)))
    with pytest.raises(BundleError, match=r"doubling@1\.0\.0 tried to"):
        pipeline.run(Case({"image": volume}, {"modality": "MR"}), model, pipeline.Options(), 1, lambda *_: None)
    assert not host.was_reached()
