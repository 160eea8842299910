"""Notifications to those who are told: tried like deliveries, until they are taken or too old.

All state is in rows: a sender that dies leaves leases that lapse, and what got no answer is sent again under the same
event ID, by which a receiver can drop what it has already.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import traceback
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from db import jobs, notifications
from dicomnode.backoff import draw_backoff
from dicomnode.config.notifications import EmailConfig, SmtpConfig, WebhookConfig
from dicomnode.config.secrets import read_secret, read_text
from dicomnode.config.web_address import check_web_address, is_encrypted
from dicomnode.errors import ConfigError, NodeError, NotFound, NotSent
from dicomnode.notifications import mail, notices, webhook

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from db.notifications import ClaimedNotification
    from dicomnode.config import Config
    from dicomnode.notifications.notices import Facts

__all__ = ["check", "notify_due", "resume", "send", "send_test"]

log = logging.getLogger("dicomnode.notifications.notification")

Receiver = EmailConfig | WebhookConfig

_BATCH = 20
_TEST = uuid.UUID("a9d2a0e5-7d0c-5a63-8c0e-3f3a5b9d1f52")


def notify_due(
    sessions: sessionmaker[Session], config: Config, *, now: datetime, generator: random.Random | None = None
) -> int:
    """Send what is due, to everybody at once; returns how many notifications were taken."""
    messenger = _Messenger(sessions, config, now, generator or random.Random())
    with sessions.begin() as session:
        notifications.OUTBOX.expire_leases(session, now=now)
        too_old = now - timedelta(hours=config.delivery.give_up_after_h)
        notifications.give_up_old(session, created_before=too_old, now=now)
        claimed = [(told, messenger.claim(session, told)) for told in config.notifications.recipients]
    work = [(told, batch) for told, batch in claimed if batch]
    if not work:
        return 0
    with ThreadPoolExecutor(max_workers=len(work), thread_name_prefix="notification") as pool:
        return sum(pool.map(lambda one: messenger.send(*one), work))


def resume(sessions: sessionmaker[Session], *, now: datetime) -> int:
    """When the node starts: take back what its predecessor was sending when it died."""
    with sessions.begin() as session:
        return notifications.OUTBOX.reclaim(session, machine=socket.gethostname(), now=now)


def send(told: Receiver, config: Config, facts: Facts, created_at: datetime) -> str:
    """Send one; what is to be remembered of it. Raises NotSent, or ConfigError for what a person has to mend."""
    template = _read_template(told)
    event_id = str(facts["id"])
    if isinstance(told, EmailConfig):
        smtp = _smtp(config)
        letter = mail.make_message(
            sender=smtp.from_,
            to=told.to,
            subject=notices.make_subject_line(facts),
            text=notices.render_text(facts, template),
            event_id=event_id,
            created_at=created_at,
        )
        return mail.send(letter, smtp, password=_read_password(smtp), ca_file=_check_readable(smtp.ca_file))
    body = notices.render_json(facts, template)
    stated = webhook.make_headers(str(facts["event"]), event_id, body, _read_signing_secret(told))
    ca_file = _check_readable(told.ca_file)
    webhook.post(_read_url(told), body, stated, timeout_s=told.timeout_s, ca_file=ca_file)
    return ""


def send_test(name: str, config: Config, *, now: datetime) -> str:
    """Send a notification of nothing; what is to be remembered of it. Raises NotFound, NotSent, ConfigError."""
    for told in config.notifications.recipients:
        if told.name == name:
            return send(told, config, _example(told, config, "test", now), now)
    known = ", ".join(told.name for told in config.notifications.recipients) or "none"
    raise NotFound(f"no notification is named {name!r} in {config.path} (there: {known})")


def check(told: Receiver, config: Config, *, now: datetime) -> str:
    """What it does, in words, after a look at its files, its template and its server. Raises NodeError."""
    template = _read_template(told)
    for event in told.events:
        made = _example(told, config, event, now)
        if isinstance(told, EmailConfig):
            notices.render_text(made, template)
        else:
            notices.render_json(made, template)
    words = f"on {', '.join(told.events)}, {'with' if told.patient_data else 'without'} patient data"
    if isinstance(told, EmailConfig):
        smtp = _smtp(config)
        mail.check_server(smtp, password=_read_password(smtp), ca_file=_check_readable(smtp.ca_file))
        return f"e-mail to {len(told.to)} by {smtp.host}:{smtp.port}, {words}"
    signed = "signed" if _read_signing_secret(told) else "not signed"
    return f"POST to {webhook.host_of(_read_url(told))}, {signed}, {words}; 'dicomnode notifications test' sends one"


class _Messenger:
    """One sweep's sessions, configuration, moment and randomness."""

    def __init__(
        self, sessions: sessionmaker[Session], config: Config, now: datetime, generator: random.Random
    ) -> None:
        self.sessions, self.config, self.now, self.generator = sessions, config, now, generator
        self.worker = jobs.worker_name(os.getpid())

    def claim(self, session: Session, told: Receiver) -> list[ClaimedNotification]:
        """A batch under a lease; should a slow receiver outlast it, it gets some twice."""
        timeout_s = told.timeout_s if isinstance(told, WebhookConfig) else _smtp(self.config).timeout_s
        lease_s = 60.0 + _BATCH * timeout_s
        return notifications.claim_due(
            session, name=told.name, worker=self.worker, lease_s=lease_s, limit=_BATCH, now=self.now
        )

    def send(self, told: Receiver, batch: Sequence[ClaimedNotification]) -> int:
        """Send and record one by one; after one that its receiver did not even answer, the others wait too."""
        taken, silent = 0, ""
        for due in batch:
            if silent:
                self._failed(due, silent)
                continue
            try:
                facts = notices.make_facts(due, self.config, patient_data=told.patient_data)
                note = send(told, self.config, facts, due.created_at)
            except NodeError as error:
                self._failed(due, str(error))
                silent = str(error) if isinstance(error, NotSent) and not error.reached else ""
            except Exception as error:  # the door of every notification: its error's own words may name a patient
                last = traceback.extract_tb(error.__traceback__)[-1]
                self._failed(due, f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}")
            else:
                taken += 1
                self._sent(due, note)
        return taken

    def _sent(self, due: ClaimedNotification, note: str) -> None:
        if note:
            log.warning("notification %d to %s: %s", due.notification_id, due.name, note)
        with self.sessions.begin() as session:
            notifications.mark_sent(session, due.notification_id, worker=self.worker, note=note, now=self.now)

    def _failed(self, due: ClaimedNotification, reason: str) -> None:
        log.warning("notification %d to %s: %s", due.notification_id, due.name, reason)
        retry_at = self.now + draw_backoff(due.attempts, self.config.delivery, self.generator)
        with self.sessions.begin() as session:
            notifications.mark_failed(
                session, due.notification_id, worker=self.worker, reason=reason, retry_at=retry_at, now=self.now
            )


def _example(told: Receiver, config: Config, event: str, now: datetime) -> Facts:
    event_id = str(uuid.uuid5(_TEST, f"{told.name} {now.isoformat()}"))
    at = now.isoformat(timespec="seconds")
    return notices.make_example(config, event, event_id, at, patient_data=told.patient_data)


def _smtp(config: Config) -> SmtpConfig:
    if config.notifications.smtp is None:
        raise ConfigError("e-mail needs a server in [notifications.smtp]")
    return config.notifications.smtp


def _read_url(told: WebhookConfig) -> str:
    """Return ``url``, or the address in ``url_file``, which must meet the same rules. Raises ConfigError."""
    if told.url_file is None:
        return str(told.url)
    try:
        url = check_web_address(read_secret(told.url_file, "url_file"))
    except ValueError as error:
        raise ConfigError(f"url_file: {told.url_file.name}: {error}") from None
    if told.patient_data and not is_encrypted(url):
        raise ConfigError(f"url_file: {told.url_file.name}: patient data are not sent without TLS")
    return url


def _read_signing_secret(told: WebhookConfig) -> bytes | None:
    return None if told.secret_file is None else read_secret(told.secret_file, "secret_file").encode()


def _read_password(smtp: SmtpConfig) -> str:
    return "" if smtp.password_file is None else read_secret(smtp.password_file, "password_file")


def _read_template(told: Receiver) -> str | None:
    return None if told.template_file is None else read_text(told.template_file, "template_file")


def _check_readable(ca_file: Path | None) -> Path | None:
    """Return the file, or None. Raises ConfigError where it cannot be read."""
    if ca_file is not None:
        read_text(ca_file, "ca_file")
    return ca_file
