"""All sections of node.toml together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from dicomnode.config.completion import CompletionConfig
from dicomnode.config.database import DatabaseConfig
from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.config.delivery import DeliveryConfig
from dicomnode.config.learning import LearningConfig
from dicomnode.config.limits import LimitsConfig
from dicomnode.config.models import ModelsConfig
from dicomnode.config.node import NodeConfig
from dicomnode.config.notifications import NotificationsConfig
from dicomnode.config.peers import Peer
from dicomnode.config.pipelines import PipelinesConfig
from dicomnode.config.quality import QualityConfig
from dicomnode.config.results import ResultsConfig
from dicomnode.config.retention import RetentionConfig
from dicomnode.config.routes import Route, name_with_settings
from dicomnode.config.section import Section
from dicomnode.config.senders import SenderConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.config.web import WebConfig
from dicomnode.config.worker import WorkerConfig
from dicomnode.config.worklist import WorklistConfig
from dicomnode.errors import ConfigError

__all__ = ["Config"]


class Config(Section):
    """The whole of node.toml. ``path``: the file itself; after ``load`` all paths are absolute."""

    node: NodeConfig = NodeConfig()
    senders: tuple[SenderConfig, ...] = ()
    limits: LimitsConfig = LimitsConfig()
    database: DatabaseConfig = DatabaseConfig()
    spool: SpoolConfig = SpoolConfig()
    completion: CompletionConfig = CompletionConfig()
    peers: tuple[Peer, ...] = ()
    routes: tuple[Route, ...] = ()
    worker: WorkerConfig = WorkerConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    results: ResultsConfig = ResultsConfig()
    quality: QualityConfig = QualityConfig()
    retention: RetentionConfig = RetentionConfig()
    web: WebConfig = WebConfig()
    worklist: WorklistConfig = WorklistConfig()
    models: ModelsConfig = ModelsConfig()
    pipelines: PipelinesConfig = PipelinesConfig()
    learning: tuple[LearningConfig, ...] = ()
    notifications: NotificationsConfig = NotificationsConfig()
    deidentify: tuple[DeidentifyConfig, ...] = ()
    path: Path = Field(default=Path("node.toml"), exclude=True)

    @property
    def data_dir(self) -> Path:
        """The folder of the database, the spool and the node's own bundles."""
        return self.node.data_dir.resolve()

    @property
    def models_dir(self) -> Path:
        """The folder of the bundles that were installed on this node."""
        return self.data_dir / "models"

    @property
    def spool_dir(self) -> Path:
        """The root of the spool."""
        return self.spool.dir.resolve() if self.spool.dir else self.data_dir / "spool"

    @property
    def database_url(self) -> str:
        """The database's URL with its password, which never appears in messages."""
        return self.database.read_url(self.data_dir)

    @property
    def routed_keywords(self) -> frozenset[str]:
        """The keywords of all attributes on which some route has a condition."""
        matches = [{"": route.match} | route.with_ | route.prior for route in self.routes]
        matches += [each.with_ for each in self.learning]
        return frozenset(keyword for by_input in matches for match in by_input.values() for keyword in match)

    @property
    def learning_dir(self) -> Path:
        """The folder of the learning runs."""
        return self.data_dir / "learning"

    @property
    def recipients_by_route(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """The recipients of notifications by route, under "" of work without one: names, each with its events."""
        peers = {peer.availability_name: ("delivered",) for peer in self.peers if peer.availability_notification}
        grouped = self.notifications.group_by_route([*(route.name for route in self.routes), ""])
        return {route: {**recipients, **peers} for route, recipients in grouped.items()}

    def find_route(self, name: str) -> Route | None:
        """Return the route whose settings hold for jobs of that route's name, also those of a workitem that orders it.

        None where it is no longer in the file.
        """
        return next((each for each in self.routes if each.name == name_with_settings(name)), None)

    def sends_refusal_notes(self, route: str) -> bool:
        """Return whether the destinations of a route get a note on each refused job.

        A route that is no longer in the file follows [quality].
        """
        own = self.find_route(route)
        return self.quality.refusal_note if own is None or own.refusal_note is None else own.refusal_note

    def sends_key_objects(self, destination: str) -> bool:
        """Return whether a destination gets a Key Object note on refused studies; False if it is no peer now."""
        return any(peer.name == destination and self.results.with_overrides(peer).key_object for peer in self.peers)

    def results_for(self, destination: str) -> ResultsConfig:
        """Return the results section with the preferences and the de-identification of a destination."""
        peer = self.find_peer(destination)
        results = self.results.with_overrides(peer)
        profile = next((each for each in self.deidentify if each.name == peer.deidentify), None)
        return results if profile is None else profile.restrict_results(results)

    def find_peer(self, name: str) -> Peer:
        """Return the peer of that name. Raises ConfigError."""
        for peer in self.peers:
            if peer.name == name:
                return peer
        known = ", ".join(peer.name for peer in self.peers) or "none"
        raise ConfigError(f"no peer is named {name!r} in {self.path} (there: {known})")

    def find_learning(self, name: str) -> LearningConfig:
        """Return the [[learning]] of that name. Raises ConfigError."""
        for each in self.learning:
            if each.name == name:
                return each
        known = ", ".join(each.name for each in self.learning) or "none"
        raise ConfigError(f"no [[learning]] is named {name!r} in {self.path} (there: {known})")

    def find_profile(self, name: str) -> DeidentifyConfig:
        """Return the de-identification profile of that name. Raises ConfigError."""
        for profile in self.deidentify:
            if profile.name == name:
                return profile
        known = ", ".join(profile.name for profile in self.deidentify) or "none"
        raise ConfigError(f"no [[deidentify]] is named {name!r} in {self.path} (there: {known})")

    def allows(self, ae_title: str, address: str) -> bool:
        """Return whether an application entity may send to this node; without [[senders]] any may."""
        return not self.senders or self.find_sender(ae_title, address) is not None

    def find_sender(self, ae_title: str, address: str) -> SenderConfig | None:
        """Return the first of [[senders]] with that title and address, or None."""
        return next((sender for sender in self.senders if sender.matches(ae_title, address)), None)
