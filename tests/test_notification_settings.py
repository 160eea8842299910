"""Settings of notifications in node.toml: mistakes are named, secrets stay secret, receivers recognise the sender."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import ssl
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from dicomnode import checks, cli
from dicomnode import config as configuration
from dicomnode.config import Config
from dicomnode.config.notifications import EventKind
from dicomnode.errors import ConfigError, NotFound, NotSent
from dicomnode.notifications import notices, notification
from tests import databases
from tests.peers import write_config
from tests.peers.hook import Hook
from tests.peers.mailbox import Mailbox
from tests.peers.process import require_program

SMTP = {"host": "127.0.0.1", "port": 25, "security": "none", "from": "node@hospital.example"}
MAIL = {"name": "ward", "to": ["ward@hospital.example"]}
HOOK = {"name": "ward", "url": "http://127.0.0.1:1/"}
ROUTE = {"name": "flair", "pipeline": "synthetic_dir", "match": {"Modality": "MR"}}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def load_config(folder: Path, **notifications: Any) -> Config:
    return configuration.load(write_config(folder, notifications=notifications, routes=[ROUTE]))


def configure_webhook(folder: Path, url: str, **settings: Any) -> Config:
    return load_config(folder, webhook=[HOOK | {"url": url} | settings])


def configure_email(folder: Path, smtp: Mapping[str, Any], **settings: Any) -> Config:
    return load_config(folder, smtp=SMTP | dict(smtp), email=[MAIL | settings])


def check_notification(config: Config) -> tuple[str, str]:
    """Return result and detail of the notification in ``dicomnode check``."""
    found = next(each for each in checks.run(config) if each.what == "notification ward")
    return found.result, found.detail


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a file with a self-signed certificate for 127.0.0.1 and its key."""
    program, file = require_program("/usr/bin/openssl", "openssl"), tmp_path / "receiver.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(file), "-out", str(tmp_path / "ca.crt")]
    subprocess.run([program, *request, *names], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "ca.crt").read_text())
    return file


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize(
    ("notifications", "message"),
    [
        ({"email": [MAIL]}, "e-mail needs a server in [notifications.smtp]"),
        ({"smtp": SMTP, "email": [MAIL], "webhook": [HOOK]}, "another of the notifications is already named 'ward'"),
        ({"webhook": [HOOK | {"routes": ["flare"]}]}, "is on 'flare', which is no route"),
        ({"webhook": [HOOK | {"events": ["heard"]}]}, "Input should be 'delivered', 'held', 'failed' or 'refused'"),
        ({"webhook": [HOOK | {"events": []}]}, "at least 1 item"),
        ({"webhook": [{"name": "ward"}]}, "'url' is missing"),
        ({"webhook": [HOOK | {"url": "file:///etc/passwd"}]}, "begins with http:// or https://"),
        ({"webhook": [HOOK | {"url": "https://me:secret@host/"}]}, "no user and no password"),
        ({"webhook": [HOOK | {"url": "https://host/\r\nX: y"}]}, "begins with http:// or https://"),
        ({"webhook": [HOOK | {"secret": "x"}]}, "unknown key 'secret'; did you mean 'secret_file'?"),
        ({"webhook": [HOOK | {"url": "http://far.example/", "patient_data": True}]}, "not sent without TLS"),
        ({"smtp": SMTP | {"host": "far.example"}, "email": [MAIL | {"patient_data": True}]}, "not sent without TLS"),
        ({"smtp": SMTP | {"host": "far.example", "user": "me"}, "email": [MAIL]}, "not sent without TLS"),
        ({"smtp": SMTP, "email": [MAIL | {"to": ["a@b.example\nBcc: c@d.example"]}]}, "is no plain e-mail address"),
        ({"smtp": SMTP, "email": [MAIL | {"to": ["a@b.example, c@d.example"]}]}, "is no plain e-mail address"),
        ({"smtp": SMTP | {"from": "nobody"}, "email": [MAIL]}, "is no plain e-mail address"),
        ({"smtp": SMTP, "email": [MAIL | {"name": "a\nb"}]}, "1 to 64 printable characters"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, notifications: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path, **notifications)
    assert message in str(error.value)
    assert ", line " in str(error.value)
    assert "secret@" not in str(error.value)


def test_who_is_told_goes_by_the_route(tmp_path: Path) -> None:
    other = ROUTE | {"name": "other"}
    every = [HOOK, HOOK | {"name": "one", "routes": ["flair"], "events": ["delivered"]}]
    config = configuration.load(write_config(tmp_path, notifications={"webhook": every}, routes=[ROUTE, other]))
    usual = ("held", "failed", "refused")
    assert config.recipients_by_route == {
        "flair": {"ward": usual, "one": ("delivered",)},
        "other": {"ward": usual},
        "": {"ward": usual},
    }


@pytest.mark.parametrize(
    ("kind", "template", "message"),
    [
        ("email", "{{ reason", "the template, line 1: unexpected end of template"),
        ("email", "\n{% if job %}", "the template, line 2: Unexpected end of template"),
        ("email", "{{ jobb }}", "'jobb' is undefined; known are id, event, at, node, job"),
        ("email", "of {{ patient_id }}", "'patient_id' is undefined"),
        ("email", "{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("email", "{% include '/etc/passwd' %}", "the template: TypeError while it was filled in"),
        ("email", "{{ 1 // 0 }}", "the template: ZeroDivisionError while it was filled in"),
        ("webhook", '{"text": "{{ reason }}"}', "the template makes no JSON, line 1 of what it makes: write values as"),
    ],
)
def test_check_finds_an_error_in_a_template(tmp_path: Path, kind: str, template: str, message: str) -> None:
    (tmp_path / "template").write_text(template)
    with Mailbox() as box:
        server = {"smtp": SMTP | {"port": box.port}, "email": [MAIL | {"template_file": "template"}]}
        hook = {"webhook": [HOOK | {"template_file": "template"}]}
        result, detail = check_notification(load_config(tmp_path, **(server if kind == "email" else hook)))
    assert result == "failed"
    assert message in detail
    assert "\n" not in detail


def test_a_template_says_it_in_other_words(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "mail.txt").write_text(
        "{{ event }} on {{ node }}{% if patient_id is defined %} of {{ patient_id }}{% endif %}\n"
    )
    (tmp_path / "chat.json").write_text('{"text": {{ ("Why: " ~ reason) | tojson }}}')
    with Mailbox() as box, Hook() as hook:
        allowed = configure_email(tmp_path, {"port": box.port}, template_file="mail.txt", patient_data=True)
        config = configure_email(tmp_path, {"port": box.port}, template_file="mail.txt")
        for each in (allowed, config):
            notification.send_test("ward", each, now=now)
        notification.send_test("ward", configure_webhook(tmp_path, hook.url, template_file="chat.json"), now=now)
    assert [mail.get_content() for mail in box.mails] == ["test on DICOMNODE of test\r\n", "test on DICOMNODE\r\n"]
    assert hook.posts[0].json == {"text": 'Why: χ² is "2.4", above the limit of 2 \\ a test'}


def test_check_tells_what_each_does_and_what_would_not_arrive(tmp_path: Path) -> None:
    with Mailbox() as box:
        assert check_notification(configure_email(tmp_path, {"port": box.port})) == (
            "ok",
            f"e-mail to 1 by 127.0.0.1:{box.port}, on held, failed, refused, without patient data",
        )
        assert box.commands[-2:] == ["noop", "QUIT"] or box.commands[-1].upper() in ("NOOP", "QUIT")
        assert box.raw == []
    assert check_notification(configure_email(tmp_path, {"port": box.port})) == (
        "warning",
        f"127.0.0.1:{box.port}: Connection refused",
    )
    result, detail = check_notification(configure_webhook(tmp_path, "https://host.example/secret-path"))
    assert result == "ok"
    assert detail.startswith("POST to host.example, not signed, on held, failed, refused, without patient data")
    result, detail = check_notification(configure_webhook(tmp_path, "https://host.example/", secret_file="none.secret"))
    assert (result, detail) == ("failed", f"secret_file: {tmp_path / 'none.secret'} cannot be read (FileNotFoundError)")


def test_the_receiver_can_verify_who_called_and_that_nothing_was_changed(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "hook.secret").write_text("an agreed secret\n")
    with Hook() as hook:
        notification.send_test("ward", configure_webhook(tmp_path, hook.url, secret_file="hook.secret"), now=now)
        notification.send_test("ward", configure_webhook(tmp_path, hook.url), now=now)
    signed, unsigned = hook.posts

    def right(body: bytes) -> str:
        return "sha256=" + hmac.new(b"an agreed secret", body, hashlib.sha256).hexdigest()

    assert signed.headers["Dicomnode-Signature"] == right(signed.body)
    assert signed.headers["Dicomnode-Signature"] != right(signed.body.replace(b"test", b"held", 1))
    assert "Dicomnode-Signature" not in unsigned.headers
    assert signed.headers["Dicomnode-Event"] == "test"
    assert b"agreed" not in signed.body + str(signed.headers).encode()


def test_openssl_makes_the_same_signature(tmp_path: Path, now: datetime) -> None:
    program = require_program("/usr/bin/openssl", "openssl")
    (tmp_path / "hook.secret").write_text("key")
    with Hook() as hook:
        notification.send_test("ward", configure_webhook(tmp_path, hook.url, secret_file="hook.secret"), now=now)
    (post,) = hook.posts
    command = [program, "dgst", "-sha256", "-hmac", "key", "-r"]
    made = subprocess.run(command, input=post.body, capture_output=True, check=True).stdout.split()[0].decode()
    assert post.headers["Dicomnode-Signature"] == f"sha256={made}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_not_followed(tmp_path: Path, now: datetime, status: int) -> None:
    with Hook() as elsewhere, Hook(lambda post: status, location=elsewhere.url) as hook:
        with pytest.raises(NotSent, match=f"answers {status}, a redirection") as error:
            notification.send_test("ward", configure_webhook(tmp_path, hook.url), now=now)
        assert elsewhere.posts == []
    assert "secret" not in str(error.value)


def test_an_address_may_be_a_secret_of_its_own(tmp_path: Path, now: datetime) -> None:
    with Hook() as hook:
        (tmp_path / "chat.url").write_text(f"{hook.url}\n")
        entry = {"name": "ward", "url_file": "chat.url"}
        notification.send_test("ward", load_config(tmp_path, webhook=[entry]), now=now)
        assert hook.posts[0].path == "/hooks/a-secret-path"
        (tmp_path / "chat.url").write_text("http://far.example/secret")
        with pytest.raises(ConfigError, match="not sent without TLS") as error:
            notification.send_test("ward", load_config(tmp_path, webhook=[entry | {"patient_data": True}]), now=now)
        assert "far.example" not in str(error.value)


def test_a_web_server_must_have_a_certificate_that_is_trusted(
    tmp_path: Path, now: datetime, tls: ssl.SSLContext
) -> None:
    with Hook(tls=tls) as hook:
        with pytest.raises(NotSent, match="certificate not trusted: self-signed") as error:
            notification.send_test("ward", configure_webhook(tmp_path, hook.url), now=now)
        assert not error.value.reached
        assert hook.posts == []
        notification.send_test("ward", configure_webhook(tmp_path, hook.url, ca_file="ca.crt"), now=now)
    assert len(hook.posts) == 1


def test_a_mail_server_must_have_a_certificate_that_is_trusted_before_it_gets_the_password(
    tmp_path: Path, now: datetime, tls: ssl.SSLContext
) -> None:
    (tmp_path / "smtp.password").write_text("pass word\n")
    with Mailbox(tls=tls, login=("me", "pass word")) as box:
        server = {"port": box.port, "security": "starttls", "user": "me", "password_file": "smtp.password"}
        with pytest.raises(NotSent, match="certificate not trusted"):
            notification.send_test("ward", configure_email(tmp_path, server), now=now)
        assert not any(command.startswith("AUTH") for command in box.commands)
        notification.send_test("ward", configure_email(tmp_path, server | {"ca_file": "ca.crt"}), now=now)
    assert len(box.mails) == 1


def test_a_server_without_tls_gets_no_password(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "smtp.password").write_text("pass word\n")
    with Mailbox(login=("me", "pass word")) as box:
        server = {"port": box.port, "security": "starttls", "user": "me", "password_file": "smtp.password"}
        with pytest.raises(NotSent, match="does not offer"):
            notification.send_test("ward", configure_email(tmp_path, server), now=now)
    assert not any(command.startswith("AUTH") for command in box.commands)


def test_a_wrong_password_is_told_and_not_shown(
    tmp_path: Path, now: datetime, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "smtp.password").write_text("wrong\n")
    with Mailbox(login=("me", "right")) as box:
        server = {"port": box.port, "user": "me", "password_file": "smtp.password"}
        with pytest.raises(NotSent, match="answers the login with 535") as error:
            notification.send_test("ward", configure_email(tmp_path, server), now=now)
    captured = capfd.readouterr()
    assert "wrong" not in str(error.value) + caplog.text + captured.out + captured.err


def test_a_recipient_that_the_server_refuses_keeps_the_mail_from_nobody_else(tmp_path: Path, now: datetime) -> None:
    both = ["ward@hospital.example", "gone@hospital.example"]
    with Mailbox(refuse=("gone@",)) as box:
        server = {"port": box.port}
        note = notification.send_test("ward", configure_email(tmp_path, server, to=both), now=now)
        assert note == "the server refused 1 of its recipients"
        assert len(box.mails) == 1
        with pytest.raises(NotSent, match="refuses every recipient: 550") as error:
            notification.send_test("ward", configure_email(tmp_path, server, to=both[1:]), now=now)
    assert "gone" not in str(error.value)


def test_the_command_sends_one_and_lists_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], now: datetime) -> None:
    with Hook() as hook:
        config = configure_webhook(tmp_path, hook.url)
        databases.prepare(config)

        def run(*words: str) -> int:
            return cli.main(["--config", str(config.path), "notifications", *words])

        assert run("test", "ward") == 0
        assert capsys.readouterr().out == "ward: taken\n"
        assert hook.posts[0].json["event"] == "test"
        assert run("test", "nobody") == 1
        assert "no notification is named 'nobody'" in capsys.readouterr().err
    assert run("test", "ward") == 1
    assert capsys.readouterr().err == f"dicomnode: 127.0.0.1:{hook.port}: Connection refused\n"
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run("list", "--state", "lost") == 2


def test_nobody_is_told_by_default() -> None:
    assert Config().notifications.recipients == ()
    with pytest.raises(NotFound):
        notification.send_test("ward", Config(), now=datetime.now())


def test_every_name_and_event_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "notifications.md").read_text()
    events = get_args(EventKind)
    assert [name for name in (*notices.NAMES, *notices.PATIENT_NAMES, *events) if f"`{name}`" not in text] == []
