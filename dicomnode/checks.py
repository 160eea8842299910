"""What would stop the node from working, looked for before it does."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from db import engine as engines
from db import migrations
from dicomnode import tls
from dicomnode.config import Config, Peer, Route
from dicomnode.config.notifications import EmailConfig, WebhookConfig
from dicomnode.errors import ConfigError, NodeError, NotSent
from dicomnode.storage import spool

__all__ = ["Check", "run"]

SOON = timedelta(days=30)
_ALIVE = timedelta(seconds=60)


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
    yield _guarded("DICOM port", lambda: _dicom_port(config))
    yield _guarded("data folder", lambda: _data_folder(config))
    yield _guarded("spool", lambda: _spool(config))
    yield _guarded("database", lambda: _database(config))
    yield _guarded("workers", lambda: _workers(config))
    if config.worker.engine == "ray":
        yield _guarded("engine", lambda: _ray(config))
    for peer in config.peers:
        yield _peer(config, peer)
    for identity in tls.identities(config):
        yield _guarded(f"certificate of {identity.where}", partial(_certificate, identity))
    for told in config.notifications.recipients:
        yield _guarded(f"notification {told.name}", partial(_notification, config, told))
    if config.web.enabled:
        yield _guarded("web", lambda: _web(config))
        yield _viewer(config)
    for profile in config.deidentify:
        yield _guarded(f"deidentify {profile.name}", partial(_profile, config, profile.name))
    yield _guarded("device", lambda: _device(config))
    for name in config.pipelines.site:
        yield _guarded(f"site pipeline {name}", partial(_site_pipeline, config, name))
    for route in config.routes:
        yield _guarded(f"route {route.name}", partial(_route, config, route))
    yield _guarded("deployed models", lambda: _deployed(config))
    if config.models.trusted_keys:
        yield _guarded("trusted keys", lambda: _trusted_keys(config))


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


def _dicom_port(config: Config) -> Check | str:
    """Whether the node can listen where [node] says, or does so already."""
    from dicomnode.dimse import peers

    node = config.node
    where = f"{node.ae_title} at {node.host}:{node.port}"
    if (taken := _reason_not_free(node.host, node.port)) is None:
        return f"{where}, free"
    if node.tls is not None and node.tls.port is None:  # its certificate need not name the address that is asked here
        return Check("DICOM port", "warning", f"{where}: {taken}; well if this node is running, else set another")
    here = "127.0.0.1" if node.host in ("0.0.0.0", "::", "") else node.host
    itself = Peer(name="node", ae_title=node.ae_title, host=here, port=node.port)
    try:
        peers.echo(itself, calling_aet=node.ae_title, timeout_s=peers.ECHO_TIMEOUT_S)
    except NodeError:
        return Check("DICOM port", "failed", f"{where}: {taken}, by another program; set another [node] port")
    return f"{where}, where a node answers C-ECHO"


def _reason_not_free(host: str, port: int) -> str | None:
    """Return why nobody can listen there, or None."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _data_folder(config: Config) -> str:
    """The folder of rows and files can be made and written."""
    folder = config.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"[node] data_dir: {folder} cannot be written by this account")
    return str(folder)


def _trusted_keys(config: Config) -> str:
    """Every key that [models] trusts can be read."""
    from model_zoo import signing

    for file in config.models.trusted_keys:
        signing.read_key(file)
    return f"{len(config.models.trusted_keys)} keys read"


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


@contextmanager
def _reading(config: Config) -> Iterator[Session | None]:
    """What the rows say; None where there is no database of this version yet, of which ``_database`` tells."""
    engine = engines.connect(config.database_url)
    try:
        there = engine.dialect.name != "sqlite" or os.path.exists(engine.url.database or "")
        if not there or migrations.current(engine) != migrations.head():
            yield None
        else:
            with engines.readers(engine)() as session:
                yield session
    finally:
        engine.dispose()


def _workers(config: Config) -> Check | str:
    """Those that say they are alive, on whatever host, have left their mark in this spool."""
    from db import workers
    from dicomnode.storage import shared
    from dicomnode.storage.high_water import check_nothing_lost

    with _reading(config) as session:
        if session is None:
            return "none is known without a database of this version"
        alive = workers.list_alive(session, since=datetime.now(UTC) - _ALIVE)
        shared.check_spool_matches_database(session, config.spool_dir)
        check_nothing_lost(session, config.spool_dir)
    if elsewhere := sorted(row.name for row in alive if not shared.is_marked(config.spool_dir, row.name)):
        return Check("workers", "failed", f"{', '.join(elsewhere)}: alive, and not on this spool: [spool] dir")
    hosts = sorted({row.host for row in alive})
    return f"{len(alive)} on {len(hosts)} hosts, on this spool: {', '.join(hosts)}" if alive else "none is alive"


def _ray(config: Config) -> Check | str:
    from dicomnode.execution import ray_actors

    found = f"Ray {ray_actors.import_ray().__version__} at {config.worker.ray_address or 'this machine alone'}"
    if config.worker.ray_address and config.database_url.startswith("sqlite"):
        return Check("engine", "failed", f"{found}: other hosts cannot use SQLite; [database] url")
    return found


def _peer(config: Config, peer: Peer) -> Check:
    from dicomnode.dimse import peers

    destination = any(peer.name in route.destinations for route in config.routes)
    try:
        seconds = peers.echo(
            peer, calling_aet=config.node.ae_title, timeout_s=peers.ECHO_TIMEOUT_S, tls=config.node.tls
        )
    except NodeError as error:
        return Check(f"peer {peer.name}", "failed" if destination else "warning", str(error))
    answered = f"answered C-ECHO in {1000 * seconds:.0f} ms"
    lacking = _kinds(config, peer) if destination else ""
    return Check(f"peer {peer.name}", "warning" if lacking else "ok", f"{answered}; {lacking}" if lacking else answered)


def _kinds(config: Config, peer: Peer) -> str:
    """What it gets instead of the kinds of results that are wanted for it."""
    from dicomnode.delivery import negotiation

    try:
        taken = negotiation.ask(peer, config)
    except NodeError:
        return "accepts no class of result: nothing can be delivered to it"
    return negotiation.choose(config.results_for(peer.name), taken).why


def _certificate(identity: tls.Identity) -> Check | str:
    what, ends_at = f"certificate of {identity.where}", identity.read_expiry()
    identity.server_context()
    left = ends_at - datetime.now(UTC)
    told = f"{identity.certificate_file} until {ends_at:%Y-%m-%d} ({left.days} days)"
    if left.total_seconds() < 0:
        return Check(what, "failed", f"{identity.certificate_file} has expired on {ends_at:%Y-%m-%d}")
    if identity.is_key_exposed:
        return Check(what, "warning", f"{told}; {identity.key_file} can be read by others: 'chmod 600' it")
    return Check(what, "warning" if left < SOON else "ok", told)


def _notification(config: Config, told: EmailConfig | WebhookConfig) -> Check | str:
    from dicomnode.notifications import notification

    try:
        return notification.check(told, config, now=datetime.now(UTC))
    except NotSent as error:  # studies are worked on all the same
        return Check(f"notification {told.name}", "warning", str(error))


def _web(config: Config) -> Check | str:
    from dicomnode.web import access

    token = access.read_token(config, lambda: datetime.now(UTC))
    asks = "asks for its token" if token else "loopback only, no token"
    where = f"{config.web.host}:{config.web.port}"
    if taken := _reason_not_free(config.web.host, config.web.port):
        return Check("web", "warning", f"{where}: {taken}; well if this node is running, else set another")
    return f"{'https' if config.web.certificate_file else 'http'}://{where}, {asks}"


def _viewer(config: Config) -> Check:
    from dicomnode.web import ohif

    where = ohif.folder(config.web)
    if ohif.installed(where) is None:
        return Check("viewer", "warning", f"not in {where}: 'dicomnode viewer install' brings it")
    return Check("viewer", "ok", f"{ohif.PACKAGE} {ohif.VERSION} in {where}")


def _profile(config: Config, name: str) -> str:
    from dicomnode.deidentify import copying

    found = copying.open_deidentifier(config, name)
    return f"key read; {f'who is who is in {found.map_file}' if found.map_file else 'nobody writes down who is who'}"


def _device(config: Config) -> Check | str:
    import torch

    from model_zoo import precision

    wanted = config.worker.device
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.startswith("cuda") and not cuda:
        return Check("device", "failed", f"worker.device is {wanted!r}, and torch sees no CUDA device")
    numbers = "bfloat16" if precision.has_bfloat16("cuda" if cuda and wanted != "cpu" else "cpu") else "float32"
    return f"{wanted}: {cuda} CUDA devices, {os.cpu_count()} CPU cores, networks in {numbers}"


def _deployed(config: Config) -> Check | str:
    """Every version that is in force is here, in the weights that were deployed."""
    from db import deployments
    from dicomnode.deployment import models
    from model_zoo import registry

    if damaged := registry.damaged(config.models_dir):
        return Check("deployed models", "failed", str(damaged[0]))
    with _reading(config) as session:
        if session is None:
            return "none is known without a database of this version"
        rows = [row for row in deployments.list_history(session) if row.ended_at is None]
    for row in rows:
        facts = models.find_bundle(deployments.format_model(row), config)
        registry.verify(facts)
        if facts.digest != row.digest:
            return Check(
                "deployed models", "failed", f"{deployments.format_model(row)} has other weights than were deployed"
            )
    told = ", ".join(f"{deployments.format_model(row)} {row.mode} of {row.pipeline}" for row in rows)
    return told or "none: each pipeline uses the newest version of its bundle"


def _site_pipeline(config: Config, name: str) -> str:
    from dicomnode.deployment import site

    return f"{site.load_pipeline(name, config).title}: {site.describe_origin(name, config)['site pipeline']}"


def _route(config: Config, route: Route) -> str:
    from dicomnode.deployment import models, pipeline_names
    from dicomnode.execution import processing
    from model_zoo import registry
    from pipelines import quality

    pipeline = pipeline_names.resolve_pipeline(route.pipeline, config, route.model)
    processing.options_of(pipeline, route.options, config.quality)
    names = (route.model or pipeline.bundle, *pipeline.helpers)
    bundles = [models.find_bundle(name, config) for name in names]
    for facts in bundles:
        registry.verify(facts)
        models.check_monai_configuration(facts, config)
        quality.read_input_rules(facts.metadata)
    called = ", ".join(f"{facts.name}@{facts.version}" for facts in bundles)
    return f"{pipeline.name} with {called}, digest verified"
