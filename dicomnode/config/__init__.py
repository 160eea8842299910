"""node.toml as frozen values. Read once, by the command line, and handed down as arguments."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from dicomnode.config import conditions, toml_lines
from dicomnode.config import deidentify as deidentification
from dicomnode.config.conditions import Condition
from dicomnode.config.models import ModelsConfig, PipelinesConfig
from dicomnode.config.network import AETitle, LimitsConfig, Peer, Port, SenderConfig, TlsConfig
from dicomnode.config.notifications import NotificationsConfig
from dicomnode.config.quantities import Count, Days, Hours, PathText, Seconds, TimeZone
from dicomnode.config.results import ResultsConfig, Section
from dicomnode.config.retention import RetentionConfig
from dicomnode.config.web import WebConfig
from dicomnode.config.worker import WorkerConfig
from dicomnode.errors import ConfigError

__all__ = [
    "CompletionConfig",
    "Config",
    "DatabaseConfig",
    "DeliveryConfig",
    "LimitsConfig",
    "NodeConfig",
    "Peer",
    "QualityConfig",
    "ResultsConfig",
    "Route",
    "SenderConfig",
    "SpoolConfig",
    "TlsConfig",
    "WebConfig",
    "WorkerConfig",
    "load",
]


def _keyword(value: str) -> str:
    from pydicom.datadict import tag_for_keyword

    if tag_for_keyword(value) is None:
        raise ValueError(f"{value!r} is no DICOM keyword")
    return value


Keyword = Annotated[str, AfterValidator(_keyword)]
Match = dict[Keyword, Annotated[Condition, BeforeValidator(conditions.parse)]]


class NodeConfig(Section):
    """Who we are on the network."""

    ae_title: AETitle = "DICOMNODE"
    host: str = "0.0.0.0"
    port: Port = 11112
    data_dir: Path = Path("data")
    max_associations: Count = 32
    max_pdu: int = Field(default=131072, ge=4096, le=4294967294)
    network_timeout_s: Seconds = 60.0
    log_format: Literal["text", "json"] = "text"
    timezone: TimeZone = ""
    tls: TlsConfig | None = None

    def local(self, moment: datetime) -> datetime:
        """A moment in the zone of ``timezone``, or in the machine's."""
        return moment.astimezone(ZoneInfo(self.timezone) if self.timezone else None)


class DatabaseConfig(Section):
    """Empty: SQLite under data_dir. ``url_file``: holds the whole URL, where a part of it is a secret."""

    url: str = ""
    url_file: Path | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if self.url and self.url_file:
            raise ValueError("url and url_file are the same thing: state one")
        return self


class SpoolConfig(Section):
    """Where files are (empty: under data_dir), and when their disk is too full to take more."""

    dir: PathText = ""
    min_free_gb: float = Field(default=1.0, ge=0)
    refuse_at_percent: float = Field(default=95.0, gt=0, le=100)


class CompletionConfig(Section):
    """When a study is taken as complete."""

    quiet_s: Seconds = 60.0
    maximum_s: Seconds = 3600.0

    @model_validator(mode="after")
    def _quiet_before_the_maximum(self) -> Self:
        if self.quiet_s > self.maximum_s:
            raise ValueError(
                f"quiet_s = {self.quiet_s:g} is above maximum_s = {self.maximum_s:g}: it would never count"
            )
        return self


class Route(Section):
    """Which series goes to which pipeline, and where its results go."""

    name: str
    pipeline: str
    match: Match
    with_: dict[str, Match] = Field(default_factory=dict, alias="with")
    with_from: str = ""
    with_wait_s: Seconds = 300.0
    prior: dict[str, Match] = Field(default_factory=dict)
    prior_from: str = ""
    prior_wait_s: Seconds = 300.0
    destinations: tuple[str, ...] = ()
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    model: str = ""
    refusal_note: bool | None = None
    keep_sources_days: Days | None = None
    keep_results_days: Days | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class DeliveryConfig(Section):
    """How results that a destination does not take are tried again."""

    backoff_s: Seconds = 5.0
    backoff_max_s: Seconds = 600.0
    give_up_after_h: Hours = 72.0
    breaker_failures: Count = 3
    breaker_open_s: Seconds = 30.0


class QualityConfig(Section):
    """What counts as uncertain, and the limits of measurements beyond which a result is held or refused: they replace
    those of the model's bundle. ``clinical_numbers``: whether models trained on simulation only may give any.
    ``refusal_note``: whether a refused job tells so at the destinations of its route, unless the route says otherwise.
    """

    low_confidence: float = Field(default=0.15, gt=0)
    hold_above: dict[str, float] = Field(default_factory=dict)
    hold_below: dict[str, float] = Field(default_factory=dict)
    refuse_above: dict[str, float] = Field(default_factory=dict)
    refuse_below: dict[str, float] = Field(default_factory=dict)
    clinical_numbers: Literal["withhold", "give"] = "withhold"
    refusal_note: bool = False


class Config(Section):
    """The whole file; ``path`` is where it was read, and relative paths are relative to its folder."""

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
    models: ModelsConfig = ModelsConfig()
    pipelines: PipelinesConfig = PipelinesConfig()
    notifications: NotificationsConfig = NotificationsConfig()
    deidentify: tuple[deidentification.DeidentifyConfig, ...] = ()
    path: Path = Field(default=Path("node.toml"), exclude=True)

    @property
    def data_dir(self) -> Path:
        """Where rows and files live."""
        return (self.path.parent / self.node.data_dir).resolve()

    @property
    def models_dir(self) -> Path:
        """Bundles of this node's own; they come before the shipped ones of the same name."""
        return self.data_dir / "models"

    @property
    def spool_dir(self) -> Path:
        """Root of the spool."""
        return (self.path.parent / self.spool.dir).resolve() if self.spool.dir else self.data_dir / "spool"

    @property
    def database_url(self) -> str:
        """The database's URL with its password, which never appears in messages."""
        stated = self._secret("database.url_file", self.database.url_file) or self.database.url
        if not stated:
            return f"sqlite:///{self.data_dir / 'node.sqlite'}"
        if self.database.password_file is None:
            return stated
        from sqlalchemy.engine import make_url

        password = self._secret("database.password_file", self.database.password_file)
        return make_url(stated).set(password=password).render_as_string(hide_password=False)

    @property
    def tls(self) -> TlsConfig | None:
        """Our certificate and whom we trust, with paths that hold from anywhere."""
        stated = self.node.tls
        if stated is None:
            return None
        files = {name: value for name, value in stated if isinstance(value, Path)}
        return stated.model_copy(update={name: self.path.parent / file for name, file in files.items()})

    @property
    def routed_keywords(self) -> frozenset[str]:
        """Every attribute that some route looks at."""
        named = [{"": route.match} | route.with_ | route.prior for route in self.routes]
        return frozenset(keyword for matches in named for match in matches.values() for keyword in match)

    @property
    def told_of(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """By route who is told of which events of its jobs."""
        return self.notifications.told_of([route.name for route in self.routes])

    def notes_refusals(self, route: str) -> bool:
        """Whether refused jobs of that route are told to its destinations; the route may have gone since."""
        stated = [each.refusal_note for each in self.routes if each.name == route]
        return self.quality.refusal_note if stated in ([], [None]) else bool(stated[0])

    def marks_refusals(self, destination: str) -> bool:
        """Whether a Key Object note tells the destination of what is refused; it may have gone since."""
        return any(peer.name == destination and self.results.preferring(peer).key_object for peer in self.peers)

    def results_for(self, destination: str) -> ResultsConfig:
        """What results look like that go to the peer of that name."""
        peer = self.peer(destination)
        return deidentification.results_of(self.results.preferring(peer), peer, self.deidentify)

    def peer(self, name: str) -> Peer:
        """The peer of that name."""
        for peer in self.peers:
            if peer.name == name:
                return peer
        known = ", ".join(peer.name for peer in self.peers) or "none"
        raise ConfigError(f"no peer is named {name!r} in {self.path} (there: {known})")

    def allows(self, ae_title: str, address: str) -> bool:
        """Whether the application entity may send to us; with no sender listed, any may."""
        return not self.senders or self.sender(ae_title, address) is not None

    def sender(self, ae_title: str, address: str) -> SenderConfig | None:
        """The first of the senders that it is."""
        return next((sender for sender in self.senders if sender.is_it(ae_title, address)), None)

    def _secret(self, key: str, file: Path | None) -> str:
        """What the file holds; its content is in no message."""
        if file is None:
            return ""
        try:
            content = (self.path.parent / file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{key}: {self.path.parent / file} cannot be read ({type(error).__name__})") from None
        if not content:
            raise ConfigError(f"{key}: {self.path.parent / file} is empty")
        return content


def load(path: Path) -> Config:
    """Read and check the file; ConfigError names the line and, for an unknown key, the nearest known one."""
    text = _text(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    if "path" in values:
        raise ConfigError(f"{path}, line {toml_lines.line_of(text, ('path',))}: unknown key 'path'")
    try:
        config = Config.model_validate(values | {"path": path.resolve()})
        config = config.model_copy(update={"peers": tuple(peer.beside(config.path.parent) for peer in config.peers)})
    except ValidationError as error:
        raise ConfigError(_explain(path, text, error)) from None
    for where, wrong in _wrong_names(config):
        raise ConfigError(f"{path}, line {toml_lines.line_of(text, where)}: {wrong}")
    return config


def _text(path: Path) -> str:
    """Return the text of the file without a byte order mark. Raises ConfigError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: run 'dicomnode init' or name another with --config") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError(f"{path}, line {line}: byte 0x{byte:02x} is no UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty: 'dicomnode init' writes one with every key")
    return text


def _wrong_names(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Names that stand twice, and names that nothing has, with where they stand."""
    for section in ("peers", "routes", "deidentify"):
        names = [entry.name for entry in getattr(config, section)]
        for at, name in enumerate(names):
            if name in names[:at]:
                yield (section, at, "name"), f"another of the {section} is already named {name!r}"
    for at, peer in enumerate(config.peers):
        try:
            config.results.preferring(peer)
        except ValueError:
            yield ("peers", at, "name"), f"peer {peer.name!r}: labelled and clean cannot both be off, with [results]"
    peers = {peer.name for peer in config.peers}
    for at, route in enumerate(config.routes):
        for unknown in set(route.destinations) - peers:
            yield ("routes", at, "destinations"), f"route {route.name!r} delivers to {unknown!r}, which is no peer"
        for key in ("with_from", "prior_from"):
            if (asked := getattr(route, key)) and asked not in peers:
                yield ("routes", at, key), f"route {route.name!r} asks {asked!r}, which is no peer"
        for twice in sorted(set(route.with_) & set(route.prior)):
            yield ("routes", at, "prior"), f"route {route.name!r} has the input {twice!r} under 'with' and 'prior'"
    yield from deidentification.wrong(config)
    yield from config.notifications.wrong([route.name for route in config.routes])


def _explain(path: Path, text: str, error: ValidationError) -> str:
    """One line for the first thing that is wrong."""
    first, *others = error.errors(include_url=False, include_input=False)
    where = tuple(part for part in first["loc"] if part != "[key]")
    line = toml_lines.line_of(text, where)
    name = ".".join(str(part + 1) if isinstance(part, int) else part for part in where)
    if first["type"] == "extra_forbidden":
        message = f"unknown key {where[-1]!r}{_suggestion(where)}"
    elif first["type"] == "missing":
        message = f"{where[-1]!r} is missing"
    elif first["type"] == "tuple_type" and len(where) == 1:
        message = f"there may be several: write [[{name}]]"
    elif first["type"] == "model_type" and len(where) == 1:
        message = f"there is one: write [{name}]"
    else:
        message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(others)} more)" if others else ""
    return f"{path}, line {line}: {name}: {message}{more}" if where else f"{path}: {message}{more}"


def _suggestion(where: tuple[str | int, ...]) -> str:
    from difflib import get_close_matches

    known = _known_keys(where[:-1])
    near = get_close_matches(str(where[-1]), known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(known))}"


def _known_keys(where: tuple[str | int, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in where:
        if isinstance(part, str):
            section = next(kind for kind in _sections(section.model_fields[_field(section, part)].annotation))
    return [field.alias or name for name, field in section.model_fields.items() if not field.exclude]


def _field(section: type[BaseModel], key: str) -> str:
    return next(name for name, field in section.model_fields.items() if key in (name, field.alias))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    from typing import get_args

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


def documented_keys() -> Mapping[str, list[str]]:
    """Every section of node.toml ("" for the top) with its keys, for the test that the shipped file names them."""
    found: dict[str, list[str]] = {}
    pending: list[tuple[str, type[BaseModel]]] = [("", Config)]
    while pending:
        name, section = pending.pop()
        found[name] = [field.alias or key for key, field in section.model_fields.items() if not field.exclude]
        for key, field in section.model_fields.items():
            pending += [(f"{name}.{key}".strip("."), inner) for inner in _sections(field.annotation)]
    return found
