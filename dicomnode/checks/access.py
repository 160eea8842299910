"""Checks of what lets people in: accounts, the provider of log-ins, and the files with secrets."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from db import accounts
from db.states import Role
from dicomnode.checks.check import Check
from dicomnode.checks.database import open_current_database
from dicomnode.config import Config
from dicomnode.config.oidc import OidcConfig
from dicomnode.config.secrets import is_exposed, read_secret
from dicomnode.config.section import Section
from dicomnode.errors import ConfigError, ProviderUnreachable

__all__ = ["check_accounts", "check_provider", "check_secret_files", "list_secret_files"]

_SUFFIXES = ("token_file", "password_file", "secret_file", "url_file")
"""Keys of files with secrets; keys of certificates and of pseudonyms have checks of their own."""
_ADD = "'dicomnode accounts add NAME --role administrator'"


def check_accounts(config: Config) -> Check | str:
    """Check that an administrator can log in."""
    with open_current_database(config.database_url) as session:
        if session is None:
            return Check("accounts", "warning", f"the database comes with the first 'dicomnode serve': {_ADD} then")
        rows = accounts.list_accounts(session)
    enabled = [row.name for row in rows if row.disabled_at is None and not row.issuer]
    administrators = [row for row in rows if row.name in enabled and row.role is Role.ADMINISTRATOR]
    oidc = config.web.oidc
    if administrators:
        return f"{len(enabled)} with a password, {len(administrators)} of them administrator"
    if oidc is not None and oidc.roles.administrator:
        return f"administrators come from {oidc.issuer} only; {_ADD} adds one for the day on which it is down"
    return Check("accounts", "warning", f"no enabled account is an administrator: {_ADD}")


def check_provider(config: Config, oidc: OidcConfig) -> Check | str:
    """Check the files of the provider of log-ins, and that it answers. Raises ConfigError."""
    from dicomnode.web import provider_login

    if oidc.ca_file is not None:
        _check_certificates(oidc.ca_file)
    provider = provider_login.make_provider(config.web, lambda: datetime.now(UTC))
    if provider is not None:
        try:
            provider.begin()
        except ProviderUnreachable as error:
            return Check("log-in provider", "warning", str(error))
    return f"{oidc.issuer} answers"


def check_secret_files(config: Config) -> Check | str:
    """Check that each secret can be read, by its owner and group only. Raises ConfigError."""
    files = [each for each in list_secret_files(config) if config.web.enabled or not each[0].startswith("web.")]
    for key, file in files:
        read_secret(file, key)
    if exposed := [str(file) for _, file in files if is_exposed(file)]:
        return Check("secret files", "warning", f"{', '.join(exposed)} can be read by others: 'chmod 600' it")
    return f"{len(files)} read"


def list_secret_files(section: Section, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield key and path of each file with a secret that the configuration names."""
    for name, value in section:
        if isinstance(value, Path) and name.endswith(_SUFFIXES):
            yield f"{prefix}{name}", value
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Section):
                yield from list_secret_files(each, f"{prefix}{name}.")


def _check_certificates(file: Path) -> None:
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        name = type(error).__name__
        raise ConfigError(f"web.oidc.ca_file: {file} cannot be read as certificates in PEM form ({name})") from None
