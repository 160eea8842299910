"""Notifications to recipients: tried like deliveries, until they are taken or too old.

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
from collections.abc import Callable, Sequence
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
from dicomnode.http_requests import host_of
from dicomnode.notifications import mail, notices, webhook

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from db.notifications import ClaimedNotification
    from dicomnode.config import Config
    from dicomnode.notifications.notices import Facts

__all__ = ["check", "notify_due", "resume", "send", "send_test"]

log = logging.getLogger("dicomnode.notifications.notification")

Recipient = EmailConfig | WebhookConfig

Clock = Callable[[], datetime]

_BATCH = 20
_TEST = uuid.UUID("a9d2a0e5-7d0c-5a63-8c0e-3f3a5b9d1f52")


def notify_due(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Send the notifications that are due, to all recipients in parallel; return how many were accepted."""
    messenger = _Messenger(sessions, config, now, generator or random.Random())
    with sessions.begin() as session:
        moment = now()
        notifications.OUTBOX.expire_leases(session, now=moment)
        too_old = moment - timedelta(hours=config.delivery.give_up_after_h)
        notifications.give_up_old(session, created_before=too_old, now=moment)
        claimed = [(recipient, messenger.claim(session, recipient)) for recipient in config.notifications.recipients]
    work = [(recipient, batch) for recipient, batch in claimed if batch]
    if not work:
        return 0
    with ThreadPoolExecutor(max_workers=len(work), thread_name_prefix="notification") as pool:
        return sum(pool.map(lambda one: messenger.send(*one), work))


def resume(sessions: sessionmaker[Session], *, now: datetime) -> int:
    """Reclaim the notifications that an earlier process of this machine was sending when it died."""
    with sessions.begin() as session:
        return notifications.OUTBOX.reclaim(session, machine=socket.gethostname(), now=now)


def send(recipient: Recipient, config: Config, facts: Facts, created_at: datetime) -> str:
    """Send one notification; return a remark on it, or "". Raises NotSent, or ConfigError for a wrong configuration."""
    template = _read_template(recipient)
    event_id = str(facts["id"])
    if isinstance(recipient, EmailConfig):
        smtp = _require_smtp(config)
        letter = mail.make_message(
            sender=smtp.from_,
            to=recipient.to,
            subject=notices.make_subject_line(facts),
            text=notices.render_text(facts, template),
            event_id=event_id,
            created_at=created_at,
        )
        return mail.send(letter, smtp, password=_read_password(smtp), ca_file=_check_readable(smtp.ca_file))
    body = notices.render_json(facts, template)
    headers = webhook.make_headers(str(facts["event"]), event_id, body, _read_signing_secret(recipient))
    ca_file = _check_readable(recipient.ca_file)
    webhook.post(_read_url(recipient), body, headers, timeout_s=recipient.timeout_s, ca_file=ca_file)
    return ""


def send_test(name: str, config: Config, *, now: datetime) -> str:
    """Send a test notification; return a remark on it, or "". Raises NotFound, NotSent, ConfigError."""
    for recipient in config.notifications.recipients:
        if recipient.name == name:
            return send(recipient, config, _make_example(recipient, config, "test", now), now)
    known = ", ".join(recipient.name for recipient in config.notifications.recipients) or "none"
    raise NotFound(f"no notification is named {name!r} in {config.path} (there: {known})")


def check(recipient: Recipient, config: Config, *, now: datetime) -> str:
    """Check files, template and server of a recipient; return a description of its notifications. Raises NodeError."""
    template = _read_template(recipient)
    for event in recipient.events:
        facts = _make_example(recipient, config, event, now)
        if isinstance(recipient, EmailConfig):
            notices.render_text(facts, template)
        else:
            notices.render_json(facts, template)
    conditions = f"on {', '.join(recipient.events)}, {'with' if recipient.patient_data else 'without'} patient data"
    if isinstance(recipient, EmailConfig):
        smtp = _require_smtp(config)
        mail.check_server(smtp, password=_read_password(smtp), ca_file=_check_readable(smtp.ca_file))
        return f"e-mail to {len(recipient.to)} by {smtp.host}:{smtp.port}, {conditions}"
    signed = "signed" if _read_signing_secret(recipient) else "not signed"
    host = host_of(_read_url(recipient))
    return f"POST to {host}, {signed}, {conditions}; 'dicomnode notifications test' sends one"


class _Messenger:
    """Sender of the notifications of one sweep."""

    def __init__(self, sessions: sessionmaker[Session], config: Config, now: Clock, generator: random.Random) -> None:
        self.sessions, self.config, self.now, self.generator = sessions, config, now, generator
        self.worker = jobs.worker_name(os.getpid())

    def claim(self, session: Session, recipient: Recipient) -> list[ClaimedNotification]:
        """Claim a batch; a recipient that is slower than the lease may get some notifications twice."""
        timeout_s = (
            recipient.timeout_s if isinstance(recipient, WebhookConfig) else _require_smtp(self.config).timeout_s
        )
        lease_s = 60.0 + _BATCH * timeout_s
        return notifications.claim_due(
            session, name=recipient.name, worker=self.worker, lease_s=lease_s, limit=_BATCH, now=self.now()
        )

    def send(self, recipient: Recipient, batch: Sequence[ClaimedNotification]) -> int:
        """Send and record a batch one by one; after one without an answer, postpone the rest."""
        accepted, silence = 0, ""
        for due in batch:
            if silence:
                self._record_failure(due, silence)
                continue
            try:
                facts = notices.make_facts(due, self.config, patient_data=recipient.patient_data)
                note = send(recipient, self.config, facts, due.created_at)
            except NodeError as error:
                self._record_failure(due, str(error))
                silence = str(error) if isinstance(error, NotSent) and not error.reached else ""
            except Exception as error:  # any fault of one notification; the message may name a patient
                last = traceback.extract_tb(error.__traceback__)[-1]
                self._record_failure(due, f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}")
            else:
                accepted += 1
                self._record_sent(due, note)
        return accepted

    def _record_sent(self, due: ClaimedNotification, note: str) -> None:
        if note:
            log.warning("notification %d to %s: %s", due.notification_id, due.name, note)
        with self.sessions.begin() as session:
            notifications.mark_sent(session, due.notification_id, worker=self.worker, note=note, now=self.now())

    def _record_failure(self, due: ClaimedNotification, reason: str) -> None:
        log.warning("notification %d to %s: %s", due.notification_id, due.name, reason)
        retry_at = self.now() + draw_backoff(due.attempts, self.config.delivery, self.generator)
        with self.sessions.begin() as session:
            notifications.mark_failed(
                session, due.notification_id, worker=self.worker, reason=reason, retry_at=retry_at, now=self.now()
            )


def _make_example(recipient: Recipient, config: Config, event: str, now: datetime) -> Facts:
    event_id = str(uuid.uuid5(_TEST, f"{recipient.name} {now.isoformat()}"))
    at = now.isoformat(timespec="seconds")
    return notices.make_example(config, event, event_id, at, patient_data=recipient.patient_data)


def _require_smtp(config: Config) -> SmtpConfig:
    if config.notifications.smtp is None:
        raise ConfigError("e-mail needs a server in [notifications.smtp]")
    return config.notifications.smtp


def _read_url(recipient: WebhookConfig) -> str:
    """Return ``url``, or the address in ``url_file``, which must meet the same rules. Raises ConfigError."""
    if recipient.url_file is None:
        return str(recipient.url)
    try:
        url = check_web_address(read_secret(recipient.url_file, "url_file"))
    except ValueError as error:
        raise ConfigError(f"url_file: {recipient.url_file.name}: {error}") from None
    if recipient.patient_data and not is_encrypted(url):
        raise ConfigError(f"url_file: {recipient.url_file.name}: patient data are not sent without TLS")
    return url


def _read_signing_secret(recipient: WebhookConfig) -> bytes | None:
    return None if recipient.secret_file is None else read_secret(recipient.secret_file, "secret_file").encode()


def _read_password(smtp: SmtpConfig) -> str:
    return "" if smtp.password_file is None else read_secret(smtp.password_file, "password_file")


def _read_template(recipient: Recipient) -> str | None:
    return None if recipient.template_file is None else read_text(recipient.template_file, "template_file")


def _check_readable(ca_file: Path | None) -> Path | None:
    """Return the file, or None. Raises ConfigError where it cannot be read."""
    if ca_file is not None:
        read_text(ca_file, "ca_file")
    return ca_file
