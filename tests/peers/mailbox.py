"""SMTP server of a test, with the commands that a client of RFC 5321 needs, on a free port of loopback."""

from __future__ import annotations

import base64
import email
import socketserver
import ssl
import threading
from email import policy
from email.message import EmailMessage
from typing import Any, Self, cast

__all__ = ["Mailbox"]


class Mailbox:
    """SMTP server that keeps mails, parsed in ``mails`` and as sent in ``raw``: ``with Mailbox() as box:``.

    ``tls``: offer STARTTLS. ``login``: required user and password. ``refuse``: refused recipients. ``silent``: hang up
    instead of acknowledging a mail.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        login: tuple[str, str] | None = None,
        refuse: tuple[str, ...] = (),
        silent: bool = False,
    ) -> None:
        self.tls, self.login, self.refuse, self.silent = tls, login, refuse, silent
        self.raw: list[bytes] = []
        self.commands: list[str] = []
        self._server = _Server(("127.0.0.1", port), _Conversation)
        self._server.box = self
        self.port: int = self._server.server_address[1]

    @property
    def mails(self) -> list[EmailMessage]:
        return [email.message_from_bytes(raw, policy=policy.default) for raw in self.raw]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    box: Mailbox

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that does not trust the certificate and closes the connection."""


class _Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        box = cast(_Server, self.server).box
        known, secure = box.login is None, False
        self.send_line("220 ready")
        while line := self.rfile.readline():
            words = line.decode().rstrip("\r\n")
            box.commands.append(words)
            verb = words.split(" ")[0].upper()
            if verb in ("EHLO", "HELO"):
                offers = ["mailbox"] + ["STARTTLS"] * bool(box.tls and not secure) + ["AUTH PLAIN"] * bool(box.login)
                for number, offer in enumerate(offers, 1):
                    self.send_line(f"250{'-' if number < len(offers) else ' '}{offer}")
            elif verb == "STARTTLS" and box.tls:
                self.send_line("220 go on")
                self.request = box.tls.wrap_socket(self.request, server_side=True)
                self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb")
                secure = True
            elif verb == "AUTH" and box.login:
                credentials = base64.b64decode(words.split(" ")[2]).decode().split("\0")
                known = (credentials[1], credentials[2]) == box.login
                self.send_line("235 welcome" if known else "535 no")
            elif not known:
                self.send_line("530 who is there")
            elif verb == "RCPT" and any(address in words for address in box.refuse):
                self.send_line("550 nobody of that name")
            elif verb == "DATA":
                self.send_line("354 go on")
                if not self.receive_mail(box):
                    return
            else:
                self.send_line("221 bye" if verb == "QUIT" else "250 fine")

    def finish(self) -> None:
        super().finish()
        self.request.close()  # the TLS socket, too

    def receive_mail(self, box: Mailbox) -> bool:
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        box.raw.append(b"".join(lines))
        if not box.silent:
            self.send_line("250 taken")
        return not box.silent

    def send_line(self, words: str) -> None:
        self.wfile.write(f"{words}\r\n".encode())
        self.wfile.flush()
