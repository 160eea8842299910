"""Checks for faults that would stop the node from working, before it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from db import engine as engines
from db import migrations
from db.states import DeploymentMode
from dicomnode import tls
from dicomnode.checks.access import check_accounts, check_provider, check_secret_files, list_secret_files
from dicomnode.checks.check import Check
from dicomnode.checks.database import open_current_database
from dicomnode.checks.ports import check_dicom_port, check_web
from dicomnode.config import Config, Peer, Route
from dicomnode.config.learning import LearningConfig
from dicomnode.config.models import ModelsConfig
from dicomnode.config.notifications import EmailConfig, WebhookConfig
from dicomnode.config.web import WebConfig
from dicomnode.config.worker import WorkerConfig
from dicomnode.errors import ConfigError, NodeError, NotSent
from dicomnode.installation import has_torch
from dicomnode.storage import spool

if TYPE_CHECKING:
    from dicomnode.deployment.in_use import VersionInUse

__all__ = ["run"]

SOON = timedelta(days=30)
_ALIVE = timedelta(seconds=60)
_RECEIVE_ONLY = "can receive and deliver, but run no jobs; its device, routes and models were not checked"


def run(config: Config) -> Iterator[Check]:
    """Yield the result of every check, in the order in which work would meet them."""
    yield Check("configuration", "ok", str(config.path))
    yield from _check_senders(config)
    yield from _check_commitment(config)
    yield _guarded("DICOM port", lambda: check_dicom_port(config.node))
    yield _guarded("data folder", lambda: _check_data_folder(config))
    yield _guarded("spool", lambda: _check_spool(config))
    yield _guarded("database", lambda: _check_database(config.database_url))
    if any(list_secret_files(config)):
        yield _guarded("secret files", lambda: check_secret_files(config))
    yield _guarded("workers", lambda: _check_workers(config))
    if config.worker.engine == "ray":
        yield _guarded("engine", lambda: _check_ray(config))
    for peer in config.peers:
        yield _check_peer(config, peer)
    for identity in tls.identities(config):
        yield _guarded(f"certificate of {identity.where}", partial(_check_certificate, identity))
    for recipient in config.notifications.recipients:
        yield _guarded(f"notification {recipient.name}", partial(_check_notification, config, recipient))
    if config.web.enabled:
        yield _guarded("web", lambda: check_web(config))
        yield from _check_access(config)
        yield _check_viewer(config.web)
    for profile in config.deidentify:
        yield _guarded(f"deidentify {profile.name}", partial(_check_profile, config, profile.name))
    yield from _check_inference(config)
    if config.models.trusted_keys:
        yield _guarded("trusted keys", lambda: _check_trusted_keys(config.models))


def _check_inference(config: Config) -> Iterator[Check]:
    if not has_torch():
        yield Check("device", "warning", f"torch is not installed: this host {_RECEIVE_ONLY}")
        return
    yield _guarded("device", lambda: _check_device(config.worker))
    for name in config.pipelines.site:
        yield _guarded(f"site pipeline {name}", partial(_check_site_pipeline, config, name))
    yield _guarded("installed models", lambda: _check_installed_models(config))
    for version in (versions := _list_versions_in_use(config)):
        yield _guarded(f"{version.mode} model of {version.pipeline}", partial(_check_version_in_use, config, version))
    current = {version.pipeline: version.model for version in versions if version.mode is DeploymentMode.CURRENT}
    for entry in config.learning:
        yield _guarded(f"learning {entry.name}", partial(_check_learning, config, entry))
    for route in config.routes:
        model = route.model or current.get(route.pipeline, "")
        yield _guarded(f"route {route.name}", partial(_check_route, config, route, model))


def _check_access(config: Config) -> Iterator[Check]:
    if config.web.accounts:
        yield _guarded("accounts", lambda: check_accounts(config))
    if (oidc := config.web.oidc) is not None:
        yield _guarded("log-in provider", lambda: check_provider(config, oidc))


def _guarded(what: str, check: Callable[[], Check | str]) -> Check:
    """Run one check and return its result; any error counts as failed."""
    try:
        result = check()
    except NodeError as error:
        return Check(what, "failed", str(error))
    except Exception as error:
        text = str(error) if not isinstance(error, SQLAlchemyError) else "does not answer"
        return Check(what, "failed", f"{type(error).__name__}: {text}")
    return result if isinstance(result, Check) else Check(what, "ok", result)


def _check_senders(config: Config) -> Iterator[Check]:
    if config.senders:
        yield Check("senders", "ok", f"{len(config.senders)} may send")
    else:
        yield Check("senders", "warning", "none is listed: anybody who reaches the port may send")


def _check_commitment(config: Config) -> Iterator[Check]:
    """Check what becomes of received studies that this node committed to their senders."""
    days = {"sources_days": config.retention.sources_days, "unrouted_days": config.retention.unrouted_days}
    deleting = ", ".join(f"{name} = {value:g}" for name, value in days.items() if value)
    if deleting and config.retention.delete_committed:
        yield Check(
            "commitment", "warning", f"delete_committed, {deleting}: a scanner that relies on this node loses data"
        )
    elif deleting:
        yield Check("commitment", "ok", f"{deleting} do not apply to what is committed to a sender")


def _check_data_folder(config: Config) -> str:
    """Check that the data folder can be made and written."""
    folder = config.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"[node] data_dir: {folder} cannot be written by this account")
    return str(folder)


def _check_trusted_keys(models: ModelsConfig) -> str:
    """Check that every key that [models] trusts can be read."""
    from model_zoo import signing

    for file in models.trusted_keys:
        signing.read_public_key(file)
    return f"{len(models.trusted_keys)} keys read"


def _check_spool(config: Config) -> str:
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


def _check_database(url: str) -> Check | str:
    engine = engines.connect(url)
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


def _check_workers(config: Config) -> Check | str:
    """Check that all living workers, on any host, have left their marker in this spool."""
    from db import workers
    from dicomnode.storage import shared
    from dicomnode.storage.high_water import check_nothing_lost

    with open_current_database(config.database_url) as session:
        if session is None:
            return "none yet: the database is made, or brought up to date, by 'dicomnode serve'"
        alive = workers.list_alive(session, since=datetime.now(UTC) - _ALIVE)
        shared.check_spool_matches_database(session, config.spool_dir)
        check_nothing_lost(session, config.spool_dir)
    if elsewhere := sorted(row.name for row in alive if not shared.is_marked(config.spool_dir, row.name)):
        return Check("workers", "failed", f"{', '.join(elsewhere)}: alive, and not on this spool: [spool] dir")
    hosts = sorted({row.host for row in alive})
    if not alive:
        return (
            "none has reported in the last minute: 'dicomnode serve' and 'dicomnode work' start them, in some seconds"
        )
    return f"{len(alive)} on {len(hosts)} host{'s' * (len(hosts) > 1)}, on this spool: {', '.join(hosts)}"


def _check_ray(config: Config) -> Check | str:
    from dicomnode.execution import ray_actors

    cluster = f"Ray {ray_actors.import_ray().__version__} at {config.worker.ray_address or 'this machine alone'}"
    if config.worker.ray_address and config.database_url.startswith("sqlite"):
        return Check("engine", "failed", f"{cluster}: other hosts cannot use SQLite; [database] url")
    return cluster


def _check_peer(config: Config, peer: Peer) -> Check:
    from dicomnode.dimse import peers

    destination = any(peer.name in route.destinations for route in config.routes)
    try:
        seconds = peers.echo(
            peer, calling_aet=config.node.ae_title, timeout_s=peers.ECHO_TIMEOUT_S, tls=config.node.tls
        )
    except NodeError as error:
        words = str(error).removeprefix(f"peer {peer.name} ")
        return Check(f"peer {peer.name}", "failed" if destination else "warning", words)
    answered = f"answered C-ECHO in {1000 * seconds:.0f} ms"
    substitutes = _describe_substitutes(config, peer) if destination else ""
    if substitutes:
        return Check(f"peer {peer.name}", "warning", f"{answered}; {substitutes}")
    return Check(f"peer {peer.name}", "ok", answered)


def _describe_substitutes(config: Config, peer: Peer) -> str:
    """Describe the kinds of results that the peer gets instead of those set for it; empty where it gets those."""
    from dicomnode.delivery import negotiation

    try:
        accepted = negotiation.query_accepted_classes(peer, config)
    except NodeError:
        return "accepts no class of result: nothing can be delivered to it"
    return negotiation.choose_kinds(config.results_for(peer.name), accepted).why


def _check_certificate(identity: tls.Identity) -> Check | str:
    what, ends_at = f"certificate of {identity.where}", identity.read_expiry()
    identity.server_context()
    left = ends_at - datetime.now(UTC)
    validity = f"{identity.certificate_file} until {ends_at:%Y-%m-%d} ({left.days} days)"
    if left.total_seconds() < 0:
        return Check(what, "failed", f"{identity.certificate_file} has expired on {ends_at:%Y-%m-%d}")
    if identity.is_key_exposed:
        return Check(what, "warning", f"{validity}; {identity.key_file} can be read by others: 'chmod 600' it")
    return Check(what, "warning" if left < SOON else "ok", validity)


def _check_notification(config: Config, recipient: EmailConfig | WebhookConfig) -> Check | str:
    from dicomnode.notifications import notification

    try:
        return notification.check(recipient, config, now=datetime.now(UTC))
    except NotSent as error:  # studies are worked on all the same
        return Check(f"notification {recipient.name}", "warning", str(error))


def _check_viewer(web: WebConfig) -> Check:
    from dicomnode.web import ohif

    where = ohif.viewer_folder(web)
    if ohif.find_installed(where) is None:
        return Check("viewer", "warning", f"not in {where}: 'dicomnode viewer install' brings it")
    return Check("viewer", "ok", f"{ohif.PACKAGE} {ohif.VERSION} in {where}")


def _check_profile(config: Config, name: str) -> str:
    from dicomnode.deidentify import copying

    deidentifier = copying.open_deidentifier(config, name)
    record = deidentifier.map_file
    return f"key read; {f'who is who is in {record}' if record else 'nobody writes down who is who'}"


def _check_device(worker: WorkerConfig) -> Check | str:
    import torch

    from model_zoo import precision

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if worker.device.startswith("cuda") and not cuda:
        return Check("device", "failed", f"worker.device is {worker.device!r}, and torch sees no CUDA device")
    numbers = "bfloat16" if precision.has_bfloat16("cuda" if cuda and worker.device != "cpu" else "cpu") else "float32"
    return f"{worker.device}: {cuda} CUDA devices, {os.cpu_count()} CPU cores, networks in {numbers}"


def _check_installed_models(config: Config) -> Check | str:
    """Check that every bundle below the models folder can be read."""
    from model_zoo import registry

    if damaged := registry.list_damaged(config.models_dir):
        return Check("installed models", "failed", str(damaged[0]))
    return f"{len(registry.list_bundles(config.models_dir))} in {config.models_dir}, besides the shipped ones"


def _list_versions_in_use(config: Config) -> list[VersionInUse]:
    from dicomnode.deployment import in_use

    with open_current_database(config.database_url) as session:
        return in_use.list_versions_in_use(session, config)


def _check_learning(config: Config, entry: LearningConfig) -> str:
    """Check that the node holds a target for the recipe of the pipeline's model."""
    from dicomnode.learning.beginning import prepare_target

    with open_current_database(config.database_url) as session:
        if session is None:
            return "not checked: the database is not of this version"
        facts, recipe, target = prepare_target(session, entry, config)
    where = "nights run in 'dicomnode serve' with local workers and in 'dicomnode work'"
    nowhere = "; 'serve' starts none: [worker] concurrency is 0" if config.worker.concurrency == 0 else ""
    trained = f"{facts.name}@{facts.version} by {recipe}; target: {target.statement}"
    return f"{trained}; {where}, not in 'serve --workers 0'{nowhere}"


def _check_version_in_use(config: Config, version: VersionInUse) -> str:
    from dicomnode.deployment import models
    from model_zoo import registry

    facts = models.find_bundle(version.model, config)
    registry.verify(facts)
    if facts.digest != version.digest:
        raise ConfigError(f"{version.model} has other weights than were deployed")
    share = f" for {version.percent:g} % of the studies" if version.percent else ""
    origin = f"deployed by {version.who}{share}" if version.who else "the default version, nothing is deployed"
    return f"{version.model}, {origin}, digest verified"


def _check_site_pipeline(config: Config, name: str) -> str:
    from dicomnode.deployment import site

    return f"{site.load_pipeline(name, config).title}: {site.describe_origin(name, config)['site pipeline']}"


def _check_route(config: Config, route: Route, model: str) -> str:
    from dicomnode.deployment import models, pipeline_names
    from dicomnode.execution.route_options import resolve_options
    from model_zoo import registry
    from pipelines import quality

    pipeline = pipeline_names.resolve_pipeline(route.pipeline, config, model)
    resolve_options(pipeline, route.options, config.quality)
    names = (model or pipeline.bundle, *pipeline.helpers)
    bundles = [models.find_bundle(name, config) for name in names]
    for facts in bundles:
        registry.verify(facts)
        models.check_monai_configuration(facts, config)
        quality.read_input_rules(facts.metadata)
    called = ", ".join(f"{facts.name}@{facts.version}" for facts in bundles)
    where = ", ".join(route.destinations) or "no destination: they stay on this node"
    return f"{pipeline.name} with {called}, digest verified; results go to {where}"
