"""What would stop the node from working, looked for before it does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from db import engine as engines
from db import migrations
from dicomnode import spool
from dicomnode.config import Config, Peer, Route
from dicomnode.errors import NodeError

__all__ = ["Check", "run"]

ECHO_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; only ``failed`` stops work."""

    what: str
    result: Literal["ok", "warning", "failed"]
    detail: str


def run(config: Config) -> Iterator[Check]:
    """Every check, in the order in which work would meet them."""
    yield Check("configuration", "ok", str(config.path))
    yield from _senders(config)
    yield _guarded("spool", lambda: _spool(config))
    yield _guarded("database", lambda: _database(config))
    for peer in config.peers:
        yield _peer(config, peer)
    yield _guarded("device", lambda: _device(config))
    for route in config.routes:
        yield _guarded(f"route {route.name}", partial(_route, config, route))


def _guarded(what: str, look: Callable[[], Check | str]) -> Check:
    """The door of every check: whatever goes wrong is its result."""
    try:
        found = look()
    except NodeError as error:
        return Check(what, "failed", str(error))
    except Exception as error:
        text = str(error) if not isinstance(error, SQLAlchemyError) else "does not answer"
        return Check(what, "failed", f"{type(error).__name__}: {text}")
    return found if isinstance(found, Check) else Check(what, "ok", found)


def _senders(config: Config) -> Iterator[Check]:
    if config.senders:
        yield Check("senders", "ok", f"{len(config.senders)} may send")
    else:
        yield Check("senders", "warning", "none is listed: anybody who reaches the port may send")


def _spool(config: Config) -> str:
    root = config.spool_dir
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".check-{os.getpid()}"
    with probe.open("xb") as file:
        file.write(b"check")
        file.flush()
        os.fsync(file.fileno())
    probe.unlink()
    spool.check_space(root, config.spool)
    return f"{root}, {shutil.disk_usage(root).free / 1e9:.1f} GB free, fsync works"


def _database(config: Config) -> Check | str:
    engine = engines.connect(config.database_url)
    try:
        if engine.dialect.name == "sqlite" and not os.path.exists(engine.url.database or ""):
            return Check("database", "warning", "not there yet: 'dicomnode serve' makes it")
        current, head = migrations.current(engine), migrations.head()
    finally:
        engine.dispose()
    where = engine.url.render_as_string(hide_password=True)
    if current != head:
        return Check("database", "warning", f"{where} is at {current}; 'dicomnode serve' brings it to {head}")
    return f"{where} at {head}"


def _peer(config: Config, peer: Peer) -> Check:
    from dicomnode import peers

    destination = any(peer.name in route.destinations for route in config.routes)
    try:
        seconds = peers.echo(peer, calling_aet=config.node.ae_title, timeout_s=ECHO_TIMEOUT_S, tls=config.tls)
    except NodeError as error:
        return Check(f"peer {peer.name}", "failed" if destination else "warning", str(error))
    return Check(f"peer {peer.name}", "ok", f"answered C-ECHO in {1000 * seconds:.0f} ms")


def _device(config: Config) -> Check | str:
    import torch

    wanted = config.worker.device
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.startswith("cuda") and not cuda:
        return Check("device", "failed", f"worker.device is {wanted!r}, and torch sees no CUDA device")
    return f"{wanted}: {cuda} CUDA devices, {os.cpu_count()} CPU cores"


def _route(config: Config, route: Route) -> str:
    from dicomnode import processing
    from model_zoo import registry
    from pipelines import quality

    pipeline = processing.pipeline_named(route.pipeline)
    processing.options_of(pipeline, route.options, config.quality)
    names = (route.model or pipeline.bundle, *pipeline.helpers)
    bundles = [processing.bundle_named(name, config) for name in names]
    for facts in bundles:
        registry.verify(facts)
        quality.rules_of(facts.metadata)
    called = ", ".join(f"{facts.name}@{facts.version}" for facts in bundles)
    return f"{pipeline.name} with {called}, digest verified"
