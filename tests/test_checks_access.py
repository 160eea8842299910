"""What ``dicomnode check`` says of accounts, of the provider of log-ins and of files with secrets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from db import accounts
from db import engine as engines
from db.states import Role
from dicomnode.checks import access
from dicomnode.checks.check import Check
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.peers import Peer
from dicomnode.config.web import WebConfig
from dicomnode.errors import ConfigError
from tests import databases
from tests.certificates import Authority
from tests.oidc_provider import IdentityProvider, run_provider

pytestmark = pytest.mark.fast

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
ADD = "'dicomnode accounts add NAME --role administrator'"


def make_config(folder: Path, oidc: dict[str, Any] | None = None, **settings: Any) -> Config:
    if oidc is not None:
        oidc = {"issuer": "http://127.0.0.1:9", "client_id": "x", "roles": {"viewer": ["readers"]}} | oidc
        settings |= {"oidc": oidc, "public_url": "https://node.example"}
    web = WebConfig(accounts=True, **settings)
    config = Config(node=NodeConfig(data_dir=folder / "data"), web=web, path=folder / "node.toml")
    return config.with_absolute_paths(folder)


def describe(result: Check | str) -> tuple[str, str]:
    return (result.result, result.detail) if isinstance(result, Check) else ("ok", result)


def add(config: Config, name: str, role: Role, *, is_disabled: bool = False, issuer: str = "") -> None:
    engine = engines.connect(config.database_url)
    with engines.sessions(engine).begin() as session:
        facts: dict[str, Any] = {"by": "root", "now": NOW}
        account = accounts.add(session, name=name, display_name=name, role=role, issuer=issuer, **facts)
        if is_disabled:
            accounts.disable(session, account, **facts)
    engine.dispose()


def test_a_node_that_no_administrator_can_enter_is_said(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert describe(access.check_accounts(config)) == (
        "warning",
        f"the database comes with the first 'dicomnode serve': {ADD} then",
    )
    databases.prepare(config)
    nobody = ("warning", f"no enabled account is an administrator: {ADD}")
    assert describe(access.check_accounts(config)) == nobody
    add(config, "otto", Role.OPERATOR)
    add(config, "gone", Role.ADMINISTRATOR, is_disabled=True)
    add(config, "oidc:1", Role.ADMINISTRATOR, issuer="https://idp.example")
    assert describe(access.check_accounts(config)) == nobody
    by_provider = make_config(tmp_path, {"roles": {"administrator": ["chiefs"]}})
    assert "administrators come from http://127.0.0.1:9 only" in describe(access.check_accounts(by_provider))[1]
    add(config, "anna", Role.ADMINISTRATOR)
    assert describe(access.check_accounts(config)) == ("ok", "2 with a password, 1 of them administrator")


def test_files_with_secrets_are_read_and_are_not_for_others(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"client_secret_file": "oidc.secret"}, token_file="web.token")
    secret, token = tmp_path / "oidc.secret", tmp_path / "web.token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    with pytest.raises(ConfigError, match=r"web\.oidc\.client_secret_file: .*oidc\.secret cannot be read"):
        access.check_secret_files(config)
    secret.write_text("a secret of the client")
    secret.chmod(0o640)
    assert describe(access.check_secret_files(config)) == ("ok", "2 read")
    secret.chmod(0o604)
    assert describe(access.check_secret_files(config)) == (
        "warning",
        f"{secret} can be read by others: 'chmod 600' it",
    )
    secret.write_text(" \n")
    with pytest.raises(ConfigError, match=r"oidc\.secret is empty"):
        access.check_secret_files(config)


def test_every_secret_of_the_file_is_listed(tmp_path: Path) -> None:
    peer = Peer(
        name="pacs", ae_title="A", port=1, dicomweb_url="https://pacs.example", dicomweb_token_file=Path("pacs.token"),
        verify="wado-rs",
    )  # fmt: skip
    config = make_config(tmp_path, token_file="web.token").model_copy(update={"peers": (peer,)})
    assert [key for key, _ in access.list_secret_files(config)] == ["peers.dicomweb_token_file", "web.token_file"]


def test_certificates_of_the_provider_are_read(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"ca_file": "idp.pem"})
    oidc = config.web.oidc
    assert oidc is not None
    for content in (None, "no certificate"):
        if content is not None:
            (tmp_path / "idp.pem").write_text(content)
        with pytest.raises(ConfigError, match=r"web\.oidc\.ca_file: .*idp\.pem cannot be read as certificates"):
            access.check_provider(config, oidc)
    (tmp_path / "idp.pem").write_bytes(Authority(tmp_path).file.read_bytes())
    result = describe(access.check_provider(config, oidc))
    assert (result[0], "does not answer" in result[1]) == ("warning", True)


def test_a_provider_is_asked_whether_it_is_the_one(tmp_path: Path) -> None:
    def check(provider: IdentityProvider) -> tuple[str, str]:
        config = make_config(tmp_path, {"issuer": provider.issuer})
        assert config.web.oidc is not None
        return describe(access.check_provider(config, config.web.oidc))

    with run_provider(lambda: NOW) as provider:
        assert check(provider) == ("ok", f"{provider.issuer} answers")
        provider.metadata = {"issuer": "https://other.example"}
        assert check(provider)[0] == "warning"
