"""/metrics: numbers from this process and from rows; alerts, dashboard and runbook use the same names."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from db import deliveries, destinations, jobs, migrations, notifications, studies, workers
from db import engine as engines
from db.jobs import OutputFile
from db.studies import StoredFile
from dicomnode.config import Config, Peer
from dicomnode.config.node import NodeConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.monitoring import gpus
from dicomnode.monitoring.audit_counters import AuditCounters
from dicomnode.monitoring.gauges import Gauges
from dicomnode.monitoring.log_lines import JsonLines, TextLines
from dicomnode.monitoring.meters import Meters
from dicomnode.monitoring.sweep_health import SweepHealth
from tests.peers import Node, wait_for, write_config
from tests.peers.files import write_instance
from tests.rows import add_job
from tests.web_node import Web, web

pytestmark = pytest.mark.slow

__all__ = ["web"]

ROOT = Path(__file__).parent.parent
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dicomnode.json"
RUNBOOK = ROOT / "docs" / "runbook.md"
_NAME = re.compile(r"\bdicomnode_[a-z_]+\b")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse_samples(text: str) -> Samples:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def find_value(found: Samples, metric: str, /, **labels: str) -> float:
    return found[f"dicomnode_{metric}", frozenset(labels.items())]


def collect(meters: Meters) -> Samples:
    return parse_samples(generate_latest(meters.registry).decode())


@pytest.fixture
def metric_names(web: Web) -> set[str]:
    """Return the name of every metric of a node without rows."""
    names: set[str] = set()
    for line in web.get("/metrics").text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def read_alerts() -> Iterator[tuple[str, str]]:
    """Yield name and expression of each alert."""
    for part in ALERTS.read_text().split("- alert: ")[1:]:
        name, _, rest = part.partition("\n")
        expression, _, _ = rest.partition("labels:")
        yield name.strip(), expression


def read_panels() -> list[tuple[str, str]]:
    board = json.loads(DASHBOARD.read_text())
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]


def test_every_metric_of_the_alerts_exists(metric_names: set[str]) -> None:
    used = {name: set(_NAME.findall(expression)) for name, expression in read_alerts()}
    assert len(used) > 20
    assert {name: names - metric_names for name, names in used.items() if names - metric_names} == {}


def test_every_metric_of_the_dashboard_exists_and_all_are_shown(metric_names: set[str]) -> None:
    drawn_names = {name for _, expression in read_panels() for name in _NAME.findall(expression)}
    assert drawn_names - metric_names == set()
    created = {name for name in metric_names if name.endswith("_created")}
    alerted = {name for _, expression in read_alerts() for name in _NAME.findall(expression)}
    hidden = (
        metric_names
        - created
        - drawn_names
        - alerted
        - {"dicomnode_stage_seconds_sum", "dicomnode_stage_seconds_count"}
    )
    assert hidden == set()


def test_every_alert_has_its_section_in_the_runbook() -> None:
    sections = set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert sections == {name for name, _ in read_alerts()}


def test_prometheus_takes_the_rules() -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run([program, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_way_of_a_study_is_counted_wherever_its_worker_is(
    engine: Engine, sessions: sessionmaker[Session], now: datetime
) -> None:
    meters = Meters()
    counters = AuditCounters(engines.readers(engine), meters.registry)
    counters.update()
    with sessions.begin() as session:
        job = add_job(session, now, pipeline="anatomy", model="m@1")
        row = studies.find_by_uid(session, "1.2.1")
        assert row is not None
        studies.close(session, row, reason="quiet", now=now + timedelta(seconds=40))
    with sessions.begin() as session:
        assert jobs.claim(session, worker="elsewhere:1", lease_s=60, now=now + timedelta(seconds=70)) is not None
    output = OutputFile("1.9", "1.2.840.10008.5.1.4.1.1.7.3", "1.8", "image", StoredFile("a" * 64, 9, "aa/a.dcm"))
    with sessions.begin() as session:
        jobs.finish(
            session, job_id=job.id, worker="elsewhere:1", outputs=[output], report={"verdict": "accept"},
            now=now + timedelta(seconds=170),
        )  # fmt: skip
    with sessions.begin() as session:
        (due,) = deliveries.claim_due(session, worker="w", lease_s=60, limit=9, now=now + timedelta(seconds=170))
    with sessions.begin() as session:
        deliveries.mark_delivered(session, due.delivery_id, worker="w", now=now + timedelta(seconds=175))
    counters.update()
    counters.update()  # a second update counts nothing twice
    found = collect(meters)
    assert find_value(found, "jobs_ended_total", pipeline="anatomy", model="m@1", state="done") == 1
    assert find_value(found, "gate_verdicts_total", pipeline="anatomy", verdict="accept") == 1
    assert find_value(found, "deliveries_tried_total", destination="pacs", outcome="delivered") == 1
    durations = {
        "received_to_complete": ("", 40),
        "routed_to_started": ("anatomy", 70),
        "started_to_finished": ("anatomy", 100),
        "finished_to_delivered": ("anatomy", 5),
        "complete_to_delivered": ("anatomy", 135),
    }
    for stage, (pipeline, seconds) in durations.items():
        assert find_value(found, "stage_seconds_sum", stage=stage, pipeline=pipeline) == seconds, stage
        assert find_value(found, "stage_seconds_count", stage=stage, pipeline=pipeline) == 1, stage


def test_queues_breakers_workers_and_gpus_are_told_as_they_are(
    engine: Engine, sessions: sessionmaker[Session], now: datetime, tmp_path: Path
) -> None:
    peers = (Peer(name="pacs", ae_title="PACS", port=104), Peer(name="quiet", ae_title="Q", port=104))
    config = Config(node=NodeConfig(data_dir=tmp_path), peers=peers, path=tmp_path / "node.toml")
    config.spool_dir.mkdir()
    with sessions.begin() as session:
        add_job(session, now - timedelta(seconds=90), pipeline="anatomy", model="m@1")
    with sessions.begin() as session:
        destinations.record_failure(session, "pacs", threshold=1, open_s=30, open_max_s=60, now=now)
        gpu = {"0": {"name": "H", "use": 0.5, "memory_used": 10.0, "memory_total": 100.0}}
        workers.report(session, "there:1", gpus=gpu, now=now)
        workers.report(session, "there:2", gpus=gpu, now=now)
        workers.report(session, "silent:3", gpus=gpu, now=now - timedelta(seconds=300))
    meters, sweep_health = Meters(), SweepHealth()
    Gauges(config, engines.readers(engine), lambda: now, sweep_health).register(meters.registry)
    found = collect(meters)
    assert find_value(found, "jobs", pipeline="anatomy", model="m@1", state="ready") == 1
    assert find_value(found, "oldest_seconds", what="job_ready") == 90
    assert find_value(found, "studies", state="receiving") == 1
    assert find_value(found, "breaker_open", destination="pacs") == 1
    assert find_value(found, "breaker_open", destination="quiet") == 0
    assert find_value(found, "workers", host="there") == 2
    assert ("dicomnode_workers", frozenset({("host", "silent")})) not in found
    assert find_value(found, "gpu_memory_used_bytes", host="there", gpu="0") == 10
    assert find_value(found, "gpu_use_ratio", host="there", gpu="0") == 0.5
    assert find_value(found, "disk_free_bytes") > 0


def test_what_comes_in_is_counted_and_what_is_refused_by_its_reason(web: Web, tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    write_instance(path, PatientName="Geheim^Name", PatientID="GEHEIM")
    for _ in range(2):
        assert web.store([path]).status_code == 200
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(path.read_bytes()[:-30])
    web.store([broken])
    text = web.get("/metrics").text
    found = parse_samples(text)
    assert find_value(found, "ingest_instances_total", outcome="new") == 1
    assert find_value(found, "ingest_instances_total", outcome="duplicate") == 1
    assert find_value(found, "ingest_bytes_total") >= path.stat().st_size * 2 - 1000
    refused = [count for (name, _), count in found.items() if name == "dicomnode_ingest_refused_total"]
    assert sum(refused) == 1
    assert "eheim" not in text.lower()
    assert "1.2.826" not in text  # and no UID


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with Web(tmp_path, limits=SpoolConfig(min_free_gb=1e9)) as running:
        assert find_value(parse_samples(running.get("/metrics").text), "disk_refusing") == 1


def test_a_lost_database_is_told_by_a_metric(web: Web) -> None:
    web.engine.dispose()
    for path in Path(web.config.data_dir).glob("node.sqlite*"):
        path.unlink()
    answer = web.get("/metrics")
    assert answer.status_code == 200
    assert find_value(parse_samples(answer.text), "database_up") == 0


def test_metrics_need_no_token(tmp_path: Path) -> None:
    (tmp_path / "web.token").write_text("0123456789abcdef-not-guessed\n")
    with Web(tmp_path, {"token_file": "web.token"}) as guarded:
        assert guarded.get("/metrics").status_code == 200


def test_a_database_of_another_version_is_not_ready(web: Web) -> None:
    migrations.downgrade(web.engine, "0008")
    assert web.get("/readyz").json()["database"] == "failed"


def test_a_sweep_without_success_is_late_and_one_that_fails_is_counted() -> None:
    clock = [0.0]
    sweep_health = SweepHealth(lambda: clock[0])
    sweep_health.watch("routing", 60)
    sweep_health.watch("delivery", 1800)
    clock[0] += 61
    assert sweep_health.list_late() == ["routing"]
    sweep_health.record_failure("routing")
    assert sweep_health.list_late() == ["routing"]
    sweep_health.record_success("routing")
    assert sweep_health.list_late() == []
    assert sweep_health.heartbeats()["routing"].failures == 1


def test_a_running_node_tells_of_its_clock_and_its_workers(tmp_path: Path) -> None:
    path = write_config(tmp_path, node={"log_format": "json"})
    with Node(path, "serve", "--workers", "1") as running:
        address = running.log.split("web ")[1].split(",")[0]
        ready = httpx.get(f"{address}readyz").json()
        assert (ready["clock"], ready["workers"]) == ("ok", "ok")

        def has_worker() -> bool:
            found = parse_samples(httpx.get(f"{address}metrics").text)
            return any(name == "dicomnode_workers" and count == 1 for (name, _), count in found.items())

        wait_for(has_worker, "the worker has reported", within_s=60)
        found = parse_samples(httpx.get(f"{address}metrics").text)
        assert find_value(found, "local_workers") == 1
        assert find_value(found, "sweep_late", sweep="routing") == 0
        assert running.stop() == 0
    lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
    assert {"at", "level", "logger", "message", "process"} <= set(lines[-1])


def test_a_json_line_has_the_numbers_and_not_the_words_of_an_error() -> None:
    try:
        raise ValueError("Geheim^Name")
    except ValueError as error:
        kind = (type(error), error, error.__traceback__)
    record = logging.LogRecord("dicomnode.execution.worker", logging.INFO, "", 1, "job %d: by worker %d", (12, 7), kind)
    line = json.loads(JsonLines().format(record))
    assert (line["job"], line["worker"], line["level"]) == (12, 7, "info")
    assert line["error"].startswith("ValueError in test_metrics.py, line")
    assert "Geheim" not in str(line) + TextLines().format(record)


def test_what_nvidia_smi_says_is_read_also_where_it_does_not_know() -> None:
    output = "0, NVIDIA H200, 45, 1024, 143771\n1, NVIDIA H200 MIG 1g, [N/A], 12, 16000\nno devices were found\n"
    found = gpus.parse_gpus(output)
    assert found["0"] == {"name": "NVIDIA H200", "use": 0.45, "memory_used": 2.0**30, "memory_total": 143771 * 2.0**20}
    assert "use" not in found["1"]
    assert set(found) == {"0", "1"}


def test_notifications_are_counted(engine: Engine, sessions: sessionmaker[Session], now: datetime) -> None:
    meters = Meters()
    counters = AuditCounters(engines.readers(engine), meters.registry)
    counters.update()
    with sessions.begin() as session:
        add_job(session, now, notify={"chat": ["failed"]})
        job = jobs.claim(session, worker="w", lease_s=60, now=now)
        assert job is not None
        jobs.fail(session, job_id=job.id, worker="w", reason="broken", retry=False, attempts=1, now=now)
    with sessions.begin() as session:
        (due,) = notifications.claim_due(session, name="chat", worker="w", lease_s=60, limit=9, now=now)
        notifications.mark_sent(session, due.notification_id, worker="w", now=now)
    counters.update()
    found = collect(meters)
    assert find_value(found, "notifications_tried_total", name="chat", outcome="sent") == 1
    assert find_value(found, "jobs_ended_total", pipeline="nothing", model="", state="dead") == 1
