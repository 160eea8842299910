"""Backup of a running node, and its restoration into an empty folder.

The spool is linked or copied, then the database is dumped at one moment, then the spool again for what has come
meanwhile. Every row of that moment has its file in one of the two passes: a file is durable before its row is
committed, and retention deletes none within an hour of its being written. Files without a row in the dump do no harm.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, inspect
from sqlalchemy.engine import URL, make_url

from db import engine as engines
from db import migrations
from db.models import WebSession
from dicomnode.config import Config
from dicomnode.errors import NodeError, NotAllowed, StorageDamaged
from dicomnode.installation import read_version

__all__ = ["create", "dump_database", "restore"]

_FACTS = "backup.json"
_DUMPS = {"sqlite": "node.sqlite", "postgresql": "database.dump"}
_FOLDER = re.compile(r"[0-9a-f]{2}")

Dump = Callable[[URL, Path], None]


def create(config: Config, into: Path, *, now: Callable[[], datetime], dump: Dump | None = None) -> dict[str, Any]:
    """Write a complete backup to the folder ``into``, or nothing; return its facts. Raises NotAllowed."""
    if into.exists():
        raise NotAllowed(f"{into} exists already: a backup goes into a folder of its own")
    part = into.with_name(f"{into.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "spool").mkdir(parents=True)
    part.chmod(0o700)  # it holds patient data
    url, started = make_url(config.database_url), now()
    kind = url.get_backend_name()
    _copy_spool(config.spool_dir, part / "spool")
    (dump or dump_database)(url, part / _DUMPS[kind])
    _copy_spool(config.spool_dir, part / "spool")
    if config.models_dir.is_dir():
        shutil.copytree(config.models_dir, part / "models")
    if config.path.is_file():
        shutil.copy2(config.path, part / "node.toml")
    files = list((part / "spool").rglob("*.dcm"))
    facts = {
        "dicomnode": read_version(),
        "schema": migrations.head(),
        "database": kind,
        "database_sha256": _digest(part / _DUMPS[kind]),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "started_at": started.isoformat(),
        "ended_at": now().isoformat(),
    }
    (part / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    os.sync()
    part.rename(into)
    return facts


def restore(config: Config, backup: Path) -> dict[str, Any]:
    """Fill the configuration's empty data folder and empty database with a backup; return its facts.

    Raises NotAllowed where folder or database are not empty, StorageDamaged where the backup is incomplete.
    """
    facts = _facts(backup)
    url = make_url(config.database_url)
    if url.get_backend_name() != facts["database"]:
        raise NotAllowed(f"the backup is of {facts['database']}, [database] names {url.get_backend_name()}")
    _refuse_if_used(config, url)
    _copy_spool(backup / "spool", config.spool_dir, link=False)
    if (backup / "models").is_dir():
        shutil.copytree(backup / "models", config.models_dir, dirs_exist_ok=True)
    _load(url, backup / _DUMPS[facts["database"]])
    _end_sessions(config)
    os.sync()
    return facts


def _end_sessions(config: Config) -> None:
    """End the web's sessions: some may have been ended after the backup was made."""
    engine = engines.connect(config.database_url)
    try:
        with engine.begin() as connection:
            if inspect(connection).has_table(WebSession.__tablename__):  # a backup of an older version has none
                connection.execute(delete(WebSession))
    finally:
        engine.dispose()


def _copy_spool(source: Path, target: Path, *, link: bool = True) -> None:
    """Copy the files that are missing; as files of the spool never change, a link on the same disk is as good."""
    for folder in sorted(path for path in source.iterdir() if _FOLDER.fullmatch(path.name)):
        (target / folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.dcm")):
            copy = target / folder.name / file.name
            if not copy.exists():
                with suppress(FileNotFoundError):  # retention took it away meanwhile
                    _link_or_copy(file, copy, link=link)


def _link_or_copy(file: Path, copy: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(file, copy)
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
    part = copy.with_suffix(".part")
    shutil.copy2(file, part)
    part.rename(copy)


def dump_database(url: URL, to: Path) -> None:
    """Dump the database at one moment, without blocking its users."""
    if url.get_backend_name() == "sqlite":
        with (
            closing(sqlite3.connect(f"file:{url.database}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(to)) as target,
        ):
            source.backup(target)
        return
    _run("pg_dump", url, "--format=custom", "--no-owner", f"--file={to}", "--dbname")


def _load(url: URL, dump: Path) -> None:
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(dump, url.database or "")
        return
    _run("pg_restore", url, "--exit-on-error", "--no-owner", "--single-transaction", str(dump), "--dbname")


def _run(program: str, url: URL, *arguments: str) -> None:
    """Run a program of PostgreSQL; the password is passed in the environment, which no list of processes shows."""
    # URL.set leaves a password where it is given None, and the rendered one, "***", would win over the environment
    where = url._replace(drivername="postgresql", password=None).render_as_string()
    environment = os.environ | ({"PGPASSWORD": str(url.password)} if url.password else {})
    try:
        done = subprocess.run([program, *arguments, where], capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise NodeError(f"{program} is not installed (apt-get install postgresql-client)") from None
    if done.returncode:
        raise NodeError(f"{program} failed: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else '?'}")


def _facts(backup: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((backup / _FACTS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise StorageDamaged(f"{backup} is no backup: {_FACTS} cannot be read") from None
    if _digest(backup / _DUMPS[facts["database"]]) != facts["database_sha256"]:
        raise StorageDamaged(f"{backup}: the database's dump is not what was written")
    if (found := len(list((backup / "spool").rglob("*.dcm")))) != facts["files"]:
        raise StorageDamaged(f"{backup}: {found} files instead of {facts['files']}")
    return facts


def _refuse_if_used(config: Config, url: URL) -> None:
    used = [path for path in config.spool_dir.rglob("*") if path.is_file()] if config.spool_dir.exists() else []
    if used:
        raise NotAllowed(f"{config.spool_dir} is not empty: a backup is restored into an empty folder")
    if url.get_backend_name() == "sqlite":
        if Path(url.database or "").exists():
            raise NotAllowed(f"{url.database} exists: a backup is restored into an empty folder")
        return
    engine = engines.connect(config.database_url)
    try:
        if inspect(engine).get_table_names():
            raise NotAllowed("the database has tables: a backup is restored into an empty one")
    finally:
        engine.dispose()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
