"""The section [notifications] of node.toml: recipients of news on jobs, by e-mail or at a web address."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dicomnode.config.section import Section
from dicomnode.config.value_types import Seconds
from dicomnode.config.web_address import WebAddress, is_encrypted, is_loopback

__all__ = ["EmailConfig", "EventKind", "NotificationsConfig", "SmtpConfig", "WebhookConfig"]

EventKind = Literal["delivered", "held", "failed", "refused"]


def _check_name(value: str) -> str:
    if not 1 <= len(value) <= 64 or not value.isprintable():
        raise ValueError("a notification's name has 1 to 64 printable characters")
    return value


def _check_mail_address(value: str) -> str:
    """Return the address; refuse characters that could end a header line or begin another command of SMTP."""
    local, at, domain = value.rpartition("@")
    plain = value.isascii() and value.isprintable() and not set(value) & set(' <>()[],;:"\\')
    if not (local and at and domain and plain):
        raise ValueError(f"{value!r} is no plain e-mail address, such as imaging@hospital.example")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
MailAddress = Annotated[str, AfterValidator(_check_mail_address)]


class _RecipientConfig(Section):
    """A recipient of notifications; ``routes`` empty: on the jobs of every route."""

    name: Name
    events: tuple[EventKind, ...] = Field(default=("held", "failed", "refused"), min_length=1)
    routes: tuple[str, ...] = ()
    patient_data: bool = False
    template_file: Path | None = None


class SmtpConfig(Section):
    """The server that takes the e-mails of this node, and their sender."""

    host: str
    port: int = Field(default=587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_file: Path | None = None
    from_: MailAddress = Field(alias="from")
    ca_file: Path | None = None
    timeout_s: Seconds = 15.0


class EmailConfig(_RecipientConfig):
    """A recipient by e-mail."""

    to: tuple[MailAddress, ...] = Field(min_length=1)


class WebhookConfig(_RecipientConfig):
    """A recipient by HTTP POST. ``url_file``: instead of ``url``, where the address itself is a secret."""

    url: WebAddress | None = None
    url_file: Path | None = None
    secret_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: Seconds = 15.0


class NotificationsConfig(Section):
    """Recipients of news on jobs. [delivery] says how often a failed notification is tried again."""

    smtp: SmtpConfig | None = None
    email: tuple[EmailConfig, ...] = ()
    webhook: tuple[WebhookConfig, ...] = ()

    @property
    def recipients(self) -> tuple[EmailConfig | WebhookConfig, ...]:
        """All recipients, those by e-mail first."""
        return (*self.email, *self.webhook)

    def group_by_route(self, routes: Collection[str]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Return by route the names of its recipients, each with the events that it is notified of."""
        return {
            route: {each.name: each.events for each in self.recipients if not each.routes or route in each.routes}
            for route in routes
        }

    def find_violations(self, routes: Collection[str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield each entry that cannot work or must not be, as its place in the file and the reason."""
        names: set[str] = set()
        kinds: dict[str, tuple[EmailConfig | WebhookConfig, ...]] = {"email": self.email, "webhook": self.webhook}
        for kind, entries in kinds.items():
            for at, each in enumerate(entries):
                here = ("notifications", kind, at)
                if each.name in names:
                    yield (*here, "name"), f"another of the notifications is already named {each.name!r}"
                names.add(each.name)
                for unknown in sorted(set(each.routes) - set(routes)):
                    yield (*here, "routes"), f"notification {each.name!r} is on {unknown!r}, which is no route"
                for key, reason in self._find_refusals(each):
                    yield (*here, key), f"notification {each.name!r}: {reason}"
        smtp = self.smtp
        if smtp and smtp.user and smtp.security == "none" and not is_loopback(smtp.host):
            yield ("notifications", "smtp", "security"), "a password is not sent without TLS"

    def _find_refusals(self, each: EmailConfig | WebhookConfig) -> Iterator[tuple[str, str]]:
        if isinstance(each, EmailConfig):
            if self.smtp is None:
                yield "to", "e-mail needs a server in [notifications.smtp]"
            elif each.patient_data and self.smtp.security == "none" and not is_loopback(self.smtp.host):
                yield "patient_data", "patient data are not sent without TLS"
            return
        if each.url is None and each.url_file is None:
            yield "name", "'url' is missing"
        if each.patient_data and each.url is not None and not is_encrypted(each.url):
            yield "patient_data", "patient data are not sent without TLS"
