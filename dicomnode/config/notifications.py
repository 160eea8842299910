"""[notifications] of node.toml: who is told of what becomes of jobs, by e-mail or at a web address."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from dicomnode.config.quantities import Seconds
from dicomnode.config.results import Section

__all__ = [
    "EmailConfig",
    "EventKind",
    "NotificationsConfig",
    "SmtpConfig",
    "WebAddress",
    "WebhookConfig",
    "is_loopback",
]

EventKind = Literal["delivered", "held", "failed", "refused"]


def _name(value: str) -> str:
    if not 1 <= len(value) <= 64 or not value.isprintable():
        raise ValueError("a notification's name has 1 to 64 printable characters")
    return value


def _mail_address(value: str) -> str:
    """Nothing that could end a header line or begin another command of SMTP."""
    local, at, domain = value.rpartition("@")
    plain = value.isascii() and value.isprintable() and not set(value) & set(' <>()[],;:"\\')
    if not (local and at and domain and plain):
        raise ValueError(f"{value!r} is no plain e-mail address, such as imaging@hospital.example")
    return value


def checked_address(value: str) -> str:
    """As it is. Raises ValueError for one that is not to be called."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("an address begins with http:// or https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no user and no password: secrets are files")
    return value


Name = Annotated[str, AfterValidator(_name)]
MailAddress = Annotated[str, AfterValidator(_mail_address)]
WebAddress = Annotated[str, AfterValidator(checked_address)]


class _Told(Section):
    """Somebody who is told; ``routes`` empty: of the jobs of every route."""

    name: Name
    events: tuple[EventKind, ...] = Field(default=("held", "failed", "refused"), min_length=1)
    routes: tuple[str, ...] = ()
    patient_data: bool = False
    template_file: Path | None = None


class SmtpConfig(Section):
    """The server that takes our e-mails, and who they are from."""

    host: str
    port: int = Field(default=587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_file: Path | None = None
    from_: MailAddress = Field(alias="from")
    ca_file: Path | None = None
    timeout_s: Seconds = 15.0


class EmailConfig(_Told):
    """Told by e-mail."""

    to: tuple[MailAddress, ...] = Field(min_length=1)


class WebhookConfig(_Told):
    """Told by a POST. ``url_file``: where the address itself is a secret, instead of ``url``."""

    url: WebAddress | None = None
    url_file: Path | None = None
    secret_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: Seconds = 15.0


class NotificationsConfig(Section):
    """Who is told of what becomes of jobs. What is not taken is tried again as [delivery] says."""

    smtp: SmtpConfig | None = None
    email: tuple[EmailConfig, ...] = ()
    webhook: tuple[WebhookConfig, ...] = ()

    @property
    def everybody(self) -> tuple[EmailConfig | WebhookConfig, ...]:
        """All who are told."""
        return (*self.email, *self.webhook)

    def told_of(self, routes: Collection[str]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """By route the names of those who are told, each with the events."""
        return {
            route: {each.name: each.events for each in self.everybody if not each.routes or route in each.routes}
            for route in routes
        }

    def wrong(self, routes: Collection[str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What cannot work or must not be, with where it stands."""
        seen: set[str] = set()
        kinds: dict[str, tuple[EmailConfig | WebhookConfig, ...]] = {"email": self.email, "webhook": self.webhook}
        for kind, entries in kinds.items():
            for at, each in enumerate(entries):
                here = ("notifications", kind, at)
                if each.name in seen:
                    yield (*here, "name"), f"another of the notifications is already named {each.name!r}"
                seen.add(each.name)
                for unknown in sorted(set(each.routes) - set(routes)):
                    yield (*here, "routes"), f"notification {each.name!r} is on {unknown!r}, which is no route"
                for key, why in self._refused(each):
                    yield (*here, key), f"notification {each.name!r}: {why}"
        smtp = self.smtp
        if smtp and smtp.user and smtp.security == "none" and not is_loopback(smtp.host):
            yield ("notifications", "smtp", "security"), "a password is not sent without TLS"

    def _refused(self, each: EmailConfig | WebhookConfig) -> Iterator[tuple[str, str]]:
        if isinstance(each, EmailConfig):
            if self.smtp is None:
                yield "to", "e-mail needs a server in [notifications.smtp]"
            elif each.patient_data and self.smtp.security == "none" and not is_loopback(self.smtp.host):
                yield "patient_data", "patient data are not sent without TLS"
            return
        if each.url is None and each.url_file is None:
            yield "name", "'url' is missing"
        if each.patient_data and each.url is not None and not encrypted(each.url):
            yield "patient_data", "patient data are not sent without TLS"


def encrypted(url: str) -> bool:
    """Whether nobody on the way can read what is sent there."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether that is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
