"""The database as checks read it: only where it exists and is of this version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from db import engine as engines
from db import migrations

__all__ = ["open_current_database"]


@contextmanager
def open_current_database(url: str) -> Iterator[Session | None]:
    """Yield a reading session, or None where no database of this version exists; the check "database" reports that."""
    engine = engines.connect(url)
    try:
        exists = engine.dialect.name != "sqlite" or os.path.exists(engine.url.database or "")
        if not exists or migrations.current(engine) != migrations.head():
            yield None
        else:
            with engines.readers(engine)() as session:
                yield session
    finally:
        engine.dispose()
