"""One notification by e-mail."""

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
    """The same event makes the same Message-ID, by which a receiver knows what it has got before."""
    mail = EmailMessage(policy=policy.SMTP)
    mail["From"], mail["To"], mail["Subject"] = sender, ", ".join(to), subject
    mail["Date"] = format_datetime(created_at)
    mail["Message-ID"] = f"<{event_id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: nobody's absence is answered to it
    mail.set_content(text)
    return mail


def send(mail: EmailMessage, smtp: SmtpConfig, *, password: str, ca_file: Path | None) -> str:
    """Give it to the server; the answer says who did not get it, in numbers. Raises NotSent."""
    try:
        with _session(smtp, password, ca_file) as server:
            refused = server.send_message(mail)
    except (OSError, smtplib.SMTPException) as error:
        raise _not_sent(smtp, error) from None
    return f"the server refused {len(refused)} of its recipients" if refused else ""


def check_server(smtp: SmtpConfig, *, password: str, ca_file: Path | None) -> None:
    """See whether the server would take something. Raises NotSent."""
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
    """Codes only: a server's words may hold addresses."""
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
