"""The section [database] of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from dicomnode.config.secrets import read_secret
from dicomnode.config.section import Section

__all__ = ["DatabaseConfig"]


class DatabaseConfig(Section):
    """The database, SQLite under data_dir by default. ``url_file``: a file with the whole URL, where a part of it is a
    secret."""

    url: str = ""
    url_file: Path | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _check_one_url(self) -> Self:
        if self.url and self.url_file:
            raise ValueError("url and url_file are the same thing: state one")
        return self

    def read_url(self, data_dir: Path) -> str:
        """Return the URL with its password, which no message may show. Raises ConfigError for an unreadable file."""
        url = self.url if self.url_file is None else read_secret(self.url_file, "database.url_file")
        if not url:
            return f"sqlite:///{data_dir / 'node.sqlite'}"
        if self.password_file is None:
            return url
        from sqlalchemy.engine import make_url

        password = read_secret(self.password_file, "database.password_file")
        return make_url(url).set(password=password).render_as_string(hide_password=False)
