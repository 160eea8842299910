"""Health check of a container for Docker, Compose and Kubernetes: exit status 0 while the node or worker works.

python healthy.py            the node: /readyz of the web here (URL in HEALTHY_URL, where it is not the usual one: with
                             [web] certificate_file it is https://127.0.0.1:8104/readyz)
python healthy.py worker     a worker: it has told the database within the last minute that it is alive
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

READY = "http://127.0.0.1:8104/readyz"
SILENCE = timedelta(seconds=60)
"""Workers report every ten seconds."""


def node_is_ready(url: str) -> bool:
    """Return whether /readyz answers 200. Raises OSError. The certificate, which names no loopback, is unchecked."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(url, timeout=8, context=unchecked) as answer:
        return int(answer.status) == 200


def worker_is_alive(config_file: Path, *, now: datetime) -> bool:
    """Return whether a worker of this host has reported within SILENCE."""
    from db import engine as engines
    from db import workers
    from dicomnode import config

    loaded = config.load(config_file)
    host = loaded.worker.host or socket.gethostname()
    with engines.readers(engines.connect(loaded.database_url))() as session:
        return any(worker.host == host for worker in workers.list_alive(session, since=now - SILENCE))


def main(arguments: list[str]) -> int:
    """Return 0 or 1, with the type of the error on stderr: its text may hold a URL."""
    try:
        if arguments == ["worker"]:
            is_well = worker_is_alive(Path(os.environ.get("DICOMNODE_CONFIG", "node.toml")), now=datetime.now(UTC))
        else:
            is_well = node_is_ready(os.environ.get("HEALTHY_URL", READY))
    except Exception as error:
        print(f"not well: {type(error).__name__}", file=sys.stderr)
        return 1
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
