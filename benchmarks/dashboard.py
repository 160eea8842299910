"""Speed of the dashboard's pages with many studies: seconds per page over HTTP, the complete response read.

    python -m benchmarks.dashboard [--studies 10000] [--repeats 15] [--database URL] [--json FILE]

The database is filled with studies in every state: a job for most of them, four results and their deliveries for each
finished one, an event for each move, as the node writes them. Pages are asked for one after the other from another
thread of the same process, which costs the server some of its time; then the list of studies by eight clients at once.
The limit (300 ms for the list of 10 000 studies on two cores) is for the median of single requests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, func, insert, select

from db import engine as engines
from db import keywords
from db.models import Chain, Delivery, Event, Instance, Job, JobInput, Output, Series, Study
from db.states import DeliveryState, JobState, StudyState
from dicomnode import node
from dicomnode.config import Config
from dicomnode.web import server
from dicomnode.web.app import create_app

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
LIMIT_MS = 300.0
SERIES, INSTANCES, RESULTS, EVENTS = 3, 20, 4, 6
_BATCH = 500
_SHARES = (
    (JobState.DONE, 0.80), (JobState.REFUSED, 0.06), (JobState.HELD, 0.02), (JobState.DEAD, 0.02),
    (JobState.CANCELLED, 0.03), (JobState.READY, 0.01), (JobState.RUNNING, 0.0005),
)  # fmt: skip
PAGES = (
    ("/", "studies"), ("/?page=200", "studies, page 200"), ("/?state=delivered", "studies, delivered"),
    ("/?state=held", "studies, held"), ("/?description=flair", "studies by description"), ("/hold", "hold queue"),
    ("/failures", "failures"), ("/jobs", "jobs"), ("/peers", "peers"), ("/system", "system"),
    ("/studies/2.25.5000", "one study"), ("/api/studies?limit=100", "api, 100 studies"),
)  # fmt: skip


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--database", default="", help="default: SQLite in a temporary folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dashboard-") as folder:
        rows = measure(Path(folder), args.studies, args.repeats, args.database)
    print(f"{args.studies} studies, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| page | median ms | slowest ms | kB |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {row['page']} | {row['median_ms']:.0f} | {row['slowest_ms']:.0f} | {row['kilobytes']:.0f} |")
    print(f"\nlimit of the list: {LIMIT_MS:.0f} ms, {'kept' if rows[0]['median_ms'] < LIMIT_MS else 'MISSED'}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


def measure(folder: Path, studies: int, repeats: int, url: str) -> list[dict[str, Any]]:
    """Time each page so many times, after one call to warm up."""
    peers = [{"name": "pacs", "ae_title": "PACS", "port": 4242}]
    route = {"name": "flair-to-dir", "pipeline": "synthetic_dir", "match": {"Modality": "MR"}, "destinations": ["pacs"]}
    values = {"node": {"data_dir": str(folder / "data")}, "database": {"url": url}, "peers": peers, "routes": [route]}
    config = Config.model_validate(values | {"path": folder / "node.toml"})
    node.prepare(config)
    engine = engines.connect(config.database_url)
    fill(engine, studies)
    running = server.start_server(create_app(config, engines.sessions(engine), now=lambda: NOW), "127.0.0.1", 0)
    try:
        with httpx.Client(base_url=running.address, timeout=60) as client:
            found = [_timed(client, path, words, repeats) for path, words in PAGES]
        return [*found, _together(running.address, repeats)]
    finally:
        running.stop()
        engine.dispose()


def _timed(client: httpx.Client, path: str, words: str, repeats: int) -> dict[str, Any]:
    seconds = [_seconds(client, path) for _ in range(repeats + 1)][1:]
    size = len(client.get(path).content)
    return _row(words, seconds, size)


def _together(address: str, repeats: int, clients: int = 8) -> dict[str, Any]:
    def ask(_: int) -> float:
        with httpx.Client(base_url=address, timeout=60) as client:
            return _seconds(client, "/")

    with ThreadPoolExecutor(clients) as pool:
        return _row(f"studies, {clients} at once", list(pool.map(ask, range(clients * repeats))), 0)


def _row(words: str, seconds: Sequence[float], size: int) -> dict[str, Any]:
    milliseconds = [1000 * each for each in seconds]
    return {
        "page": words,
        "median_ms": statistics.median(milliseconds),
        "slowest_ms": max(milliseconds),
        "kilobytes": size / 1000,
    }


def _seconds(client: httpx.Client, path: str) -> float:
    start = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - start


def fill(engine: Engine, studies: int) -> None:
    """Write rows of so many studies, the same for the same number."""
    chance = random.Random(studies)
    for first in range(1, studies + 1, _BATCH):
        batch = range(first, min(first + _BATCH, studies + 1))
        rows: dict[Any, list[dict[str, Any]]] = {
            table: [] for table in (Study, Series, Instance, Job, JobInput, Output, Delivery, Event)
        }
        for id in batch:
            for table, one in _study(id, studies, chance):
                rows[table].append(one)
        with engine.begin() as connection:
            for table, values in rows.items():
                if values:
                    connection.execute(insert(table), values)
    with engine.begin() as connection:
        count = connection.scalar(select(func.max(Event.seq))) or 0
        connection.execute(Chain.__table__.update().values(seq=count))  # type: ignore[attr-defined]


def _study(id: int, studies: int, chance: random.Random) -> Iterator[tuple[Any, dict[str, Any]]]:
    at = NOW - timedelta(minutes=5 * (studies - id))
    name = f"Family{id}^Given"
    state = StudyState.ROUTED if id < studies - 5 else StudyState.RECEIVING
    yield Study, {
        "id": id, "study_uid": f"2.25.{id}", "state": state, "revision": 1, "patient_id": f"P{id:07}",
        "patient_name": name, "patient_folded": keywords.fold_name(name), "study_date": at.strftime("%Y%m%d"),
        "study_time": "081500", "study_description": f"MR head {'FLAIR' if id % 3 else 'T1w'}", "opened_at": at,
        "last_received_at": at, "completed_at": at, "completed_by": "quiet for 60 s",
    }  # fmt: skip
    for number in range(SERIES):
        series = id * SERIES + number
        attributes = {"Modality": "MR", "SeriesDescription": f"series {number}"}
        yield Series, {
            "id": series, "study_id": id, "series_uid": f"2.25.{id}.{number}", "modality": "MR",
            "attributes": attributes,
        }  # fmt: skip
        for place in range(INSTANCES):
            yield Instance, _instance(series * INSTANCES + place, series, at)
    yield from _job(id, at, state, chance)


def _instance(id: int, series: int, at: datetime) -> dict[str, Any]:
    digest = f"{id:064x}"
    return {
        "id": id, "series_id": series, "revision": 1, "sop_instance_uid": f"2.25.1.{id}", "sha256": digest,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "size_bytes": 1000, "relative_path": digest, "sender_ae_title": "MR1", "sender_address": "10.0.0.1",
        "received_at": at, "attributes": None,
    }  # fmt: skip


def _job(id: int, at: datetime, state: StudyState, chance: random.Random) -> Iterator[tuple[Any, dict[str, Any]]]:
    ended = _draw_state(chance)
    if ended is None or state is StudyState.RECEIVING:
        return
    finished = at + timedelta(seconds=chance.uniform(40, 120))
    numbers = [{"group": f"region {n}", "name": "volume", "value": 1.5, "unit": "ml"} for n in range(40)]
    yield Job, {
        "id": id, "key": f"{id:064x}", "study_id": id, "revision": 1, "route": "flair-to-dir", "model": "",
        "pipeline": "synthetic_dir", "options": {}, "destinations": ["pacs"], "priority": 0, "state": ended,
        "attempts": 1, "worker": "w:1", "not_before": at, "reason": "as it is", "progress": 0.4,
        "step": "sampling", "report": {"measurements": numbers, "reasons": ["chi-square is high"]}, "created_at": at,
        "started_at": at, "finished_at": finished, "leased_until": None,
    }  # fmt: skip
    yield JobInput, {"id": id, "job_id": id, "name": "match", "instance_id": id * SERIES * INSTANCES}
    for number in range(EVENTS):
        yield Event, {
            "seq": id * EVENTS + number, "at": at, "subject": "jobs", "subject_id": str(id), "event": "moved",
            "detail": {"from": "ready", "to": "running", "reason": "attempt 1"}, "previous": "", "hash": "",
        }  # fmt: skip
    if ended in (JobState.DONE, JobState.HELD):
        yield from _results(id, finished, ended, chance)


def _results(id: int, at: datetime, ended: JobState, chance: random.Random) -> Iterator[tuple[Any, dict[str, Any]]]:
    for number in range(RESULTS):
        output = id * RESULTS + number
        digest = f"{output:063x}f"
        yield Output, {
            "id": output, "job_id": id, "sop_instance_uid": f"2.25.2.{output}", "sop_class_uid": "1.2",
            "series_uid": f"2.25.3.{output}", "kind": ("image", "labelled image", "parametric map", "report")[number],
            "sha256": digest, "size_bytes": 1000, "relative_path": digest, "created_at": at,
            "attributes": {"SeriesDescription": "SYN result"},
        }  # fmt: skip
        if ended is JobState.DONE:
            number_drawn = chance.random()
            sent = DeliveryState.WAITING if number_drawn < 0.01 else DeliveryState.DELIVERED
            sent = DeliveryState.GIVEN_UP if number_drawn > 0.998 else sent
            yield Delivery, {
                "id": output, "output_id": output, "destination": "pacs", "state": sent, "attempts": 1,
                "not_before": at, "reason": "", "created_at": at, "worker": "", "leased_until": None,
                "delivered_at": at if sent is DeliveryState.DELIVERED else None,
            }  # fmt: skip


def _draw_state(chance: random.Random) -> JobState | None:
    number_drawn, sum_ = chance.random(), 0.0
    for state, share in _SHARES:
        sum_ += share
        if number_drawn < sum_:
            return state
    return None


if __name__ == "__main__":
    main()
