"""Notifications by e-mail."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from datetime import datetime
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

from dicomnode.config.notifications import SmtpConfig
from dicomnode.errors import NotSent

__all__ = ["check_server", "make_message", "send"]


def make_message(
    *, sender: str, to: Sequence[str], subject: str, text: str, event_id: str, created_at: datetime
) -> EmailMessage:
    """Return the e-mail; its Message-ID is the same in every attempt, so that a receiver recognizes a repetition."""
    mail = EmailMessage(policy=policy.SMTP)
    mail["From"], mail["To"], mail["Subject"] = sender, ", ".join(to), subject
    mail["Date"] = format_datetime(created_at)
    mail["Message-ID"] = f"<{event_id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: no automatic replies
    mail.set_content(text)
    return mail


def send(mail: EmailMessage, smtp: SmtpConfig, *, password: str, ca_file: Path | None) -> str:
    """Send the e-mail; return a remark with the number of refused recipients, or "". Raises NotSent."""
    try:
        with _session(smtp, password, ca_file) as server:
            refused = server.send_message(mail)
    except (OSError, smtplib.SMTPException) as error:
        raise _not_sent(smtp, error) from None
    return f"the server refused {len(refused)} of its recipients" if refused else ""


def check_server(smtp: SmtpConfig, *, password: str, ca_file: Path | None) -> None:
    """Check that the server accepts a session. Raises NotSent."""
    try:
        with _session(smtp, password, ca_file) as server:
            server.noop()
    except (OSError, smtplib.SMTPException) as error:
        raise _not_sent(smtp, error) from None


def _session(smtp: SmtpConfig, password: str, ca_file: Path | None) -> smtplib.SMTP:
    tls = ssl.create_default_context(cafile=ca_file)
    if smtp.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(smtp.host, smtp.port, timeout=smtp.timeout_s, context=tls)
    else:
        server = smtplib.SMTP(smtp.host, smtp.port, timeout=smtp.timeout_s)
    try:
        if smtp.security == "starttls":
            server.starttls(context=tls)
        if smtp.user:
            server.login(smtp.user, password)
    except BaseException:
        server.close()
        raise
    return server


def _not_sent(smtp: SmtpConfig, error: Exception) -> NotSent:
    """Return the error with reply codes only: a server's text may contain addresses."""
    where = f"{smtp.host}:{smtp.port}"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({code for code, _ in error.recipients.values()})
        return NotSent(f"{where} refuses every recipient: {', '.join(map(str, codes))}", reached=True)
    if isinstance(error, smtplib.SMTPResponseException):
        doing = "the login" if isinstance(error, smtplib.SMTPAuthenticationError) else "the e-mail"
        return NotSent(f"{where} answers {doing} with {error.smtp_code}", reached=True)
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotSent(f"{where}: certificate not trusted: {error.verify_message}", reached=False)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return NotSent(f"{where} does not offer what 'security' and 'user' ask for", reached=False)
    why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return NotSent(f"{where}: {why}", reached=False)
