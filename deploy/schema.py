"""The revision of the database's schema, shown or changed, for upgrades that are taken back.

    python schema.py NODE_TOML                   the database's revision, and this program's
    python schema.py NODE_TOML up                to this program's, which 'dicomnode serve' does by itself
    python schema.py NODE_TOML down REVISION     to an older one: with this program, before the older is started

Before going down, make a backup and stop everything: values that an older schema lacks become the nearest it has.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine

from db import engine as engines
from db import migrations, workers
from dicomnode import config

SILENCE = timedelta(seconds=60)


def list_working(engine: Engine, *, now: datetime) -> list[str]:
    """Return the workers that reported within the last minute; none where the schema is an older one."""
    if migrations.current(engine) != migrations.head():
        return []
    with engines.readers(engine)() as session:
        return [worker.name for worker in workers.list_alive(session, since=now - SILENCE)]


def main(arguments: list[str]) -> int:
    """Return 0, or 1 with the reason on stderr, or 2 for wrong usage."""
    match arguments:
        case [file, *rest] if rest in ([], ["up"]) or (len(rest) == 2 and rest[0] == "down"):
            engine = engines.connect(config.load(Path(file)).database_url)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    if rest == ["up"]:
        migrations.upgrade(engine)
    elif rest:
        if working := list_working(engine, now=datetime.now(UTC)):
            print(f"stop everything first: {', '.join(working)} at work", file=sys.stderr)
            return 1
        migrations.downgrade(engine, rest[1])
    print(f"database {migrations.current(engine)}, program {migrations.head()}")
    engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
