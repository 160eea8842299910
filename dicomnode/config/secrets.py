"""Secrets, which node.toml names the files of and never holds."""

from __future__ import annotations

from pathlib import Path

from dicomnode.errors import ConfigError

__all__ = ["is_exposed", "read_secret", "read_text"]


def read_secret(file: Path, key: str) -> str:
    """Return the secret in ``file``, without white space around it; no message quotes the content.

    ``key`` names the setting in messages, for example ``database.password_file``. Raises ConfigError where the file
    cannot be read or is empty.
    """
    content = read_text(file, key).strip()
    if not content:
        raise ConfigError(f"{key}: {file} is empty")
    return content


def read_text(file: Path, key: str) -> str:
    """Return the text of a file that the setting ``key`` names. Raises ConfigError."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {file} cannot be read ({type(error).__name__})") from None


def is_exposed(file: Path) -> bool:
    """Return whether users outside the file's owner and group can read it, or its group can change it."""
    return bool(file.stat().st_mode & 0o027)
