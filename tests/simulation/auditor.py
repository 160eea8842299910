"""The auditor: reads what senders and peers know, the files and the rows by plain SQL, and states what is wrong.

It imports nothing of the node. It takes for granted that a file's name is the SHA-256 of its content (ARCHITECTURE.md),
and repeats by hand the tables, the states of their rows and what the hash of an event covers. A result states a hash of
the files that it was made of, as ``subjects.run_task`` writes it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.machine import Outside
    from tests.simulation.plan import Plan

__all__ = ["audit_life", "audit_trial", "count_open", "read_head"]

_ENDED_JOBS = ("done", "held", "refused", "dead", "cancelled")
_PREAMBLE_BYTES = 132


class _Records:
    """What the auditor reads of the node, and what others know."""

    def __init__(self, folder: Path, outside: Outside, plan: Plan) -> None:
        self.folder, self.outside, self.plan = folder, outside, plan
        with closing(_connect(folder)) as connection:
            tables = ("studies", "series", "instances", "jobs", "job_inputs", "outputs", "deliveries", "proofs",
                      "quarantine", "events", "chain")  # fmt: skip
            rows = {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables}
        self.rows: dict[str, list[dict[str, Any]]] = {
            table: [dict(row) for row in found] for table, found in rows.items()
        }

    def by_id(self, table: str) -> dict[int, dict[str, Any]]:
        return {row["id"]: row for row in self.rows[table]}

    def path(self, digest: str) -> Path:
        return self.folder / "spool" / digest[:2] / f"{digest}.dcm"


def audit_trial(folder: Path, outside: Outside, plan: Plan) -> list[str]:
    """Return what is wrong after a trial, in words; empty where nothing is."""
    records = _Records(folder, outside, plan)
    return [*outside.surprises, *(finding for check in _CHECKS for finding in check(records))]


def audit_life(folder: Path, outside: Outside, plan: Plan) -> list[str]:
    """Return what is wrong at the end of a life, whatever it was about to do."""
    records = _Records(folder, outside, plan)
    return [finding for check in _ALWAYS for finding in check(records)]


def count_open(folder: Path) -> int:
    """Return the number of rows that wait for anything."""
    queries = (
        "SELECT count(*) FROM studies WHERE state != 'routed'",
        "SELECT count(*) FROM jobs WHERE state IN ('ready', 'running')",
        "SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'sending')",
        "SELECT count(*) FROM proofs WHERE state = 'sent' AND step != 'none'",
    )
    with closing(_connect(folder)) as connection:
        return sum(int(connection.execute(query).fetchone()[0]) for query in queries)


def read_head(folder: Path) -> tuple[int, str]:
    """Return number and hash of the newest event."""
    with closing(_connect(folder)) as connection:
        seq, digest = connection.execute("SELECT seq, hash FROM chain").fetchone()
    return seq, digest


def _connect(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / "node.sqlite")
    connection.row_factory = sqlite3.Row
    return connection


def _check_acknowledged(records: _Records) -> Iterator[str]:
    """Every acknowledged instance has one row, and its bytes, unless they expired by the rules of retention."""
    rows = {row["sop_instance_uid"]: row for row in records.rows["instances"]}
    for uid, digest in records.outside.acknowledged.items():
        row = rows.get(uid)
        if row is None:
            yield f"acknowledged and without a row: {uid[-6:]}"
        elif row["expired_at"] is None:
            content = _read_data_set(records.path(row["sha256"]))
            if content is None:
                yield f"acknowledged and without a file: {uid[-6:]}"
            elif hashlib.sha256(content).hexdigest() != digest:
                yield f"acknowledged and other bytes: {uid[-6:]}"


def _check_files(records: _Records) -> Iterator[str]:
    """Every row that is not expired has a file whose name is the digest of its content."""
    for table in ("instances", "outputs", "quarantine"):
        for row in records.rows[table]:
            if row.get("expired_at") or row.get("state") == "discarded":
                continue
            path = records.path(row["sha256"])
            if not path.exists():
                yield f"{table} {row['id']} has no file"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
                yield f"{table} {row['id']} has a file with other content"


def _check_incoming(records: _Records) -> Iterator[str]:
    """Nothing is left on its way."""
    for left in (records.folder / "spool" / "incoming").iterdir():
        yield f"left in incoming: {left.suffix}"


def _check_conflicts(records: _Records) -> Iterator[str]:
    """Every instance that was refused as a conflict waits in quarantine."""
    waiting = {row["sop_instance_uid"] for row in records.rows["quarantine"]}
    for uid in records.outside.conflicts - waiting:
        yield f"refused as a conflict and not in quarantine: {uid[-6:]}"


def _check_ends(records: _Records) -> Iterator[str]:
    """Everything has been sent, and every row has reached an end."""
    for number, left in records.outside.open_dispatches.items():
        if left:
            yield f"dispatch {number}: {len(left)} instances were never acknowledged"
    for row in records.rows["studies"]:
        if row["state"] != "routed":
            yield f"study {row['id']} stays {row['state']}"
    for row in records.rows["jobs"]:
        if row["state"] not in ("done", "cancelled"):
            yield f"job {row['id']} is {row['state']}: {row['reason']}"
    for row in records.rows["deliveries"]:
        if row["state"] != "delivered":
            yield f"delivery {row['id']} is {row['state']}"
    for row in records.rows["proofs"]:
        pair = (row["destination"], row["sop_instance_uid"])
        if row["step"] != "none" or (row["state"] != "verified" and pair not in records.outside.denied):
            yield f"proof {row['id']} is {row['state']}, step {row['step']}"


def _check_results(records: _Records) -> Iterator[str]:
    """Every series has one result of all its instances, which every destination got, and no other destination has."""
    inputs: dict[int, set[int]] = {}
    for row in records.rows["job_inputs"]:
        inputs.setdefault(row["job_id"], set()).add(row["instance_id"])
    done = [row for row in records.rows["jobs"] if row["state"] == "done"]
    for series in records.rows["series"]:
        members = {row["id"] for row in records.rows["instances"] if row["series_id"] == series["id"]}
        count = sum(inputs.get(job["id"], set()) == members for job in done)
        if count != 1:
            yield f"series {series['id']} has {count} results of all its instances"
    outputs = Counter(row["job_id"] for row in records.rows["outputs"])
    for job in done:
        if outputs[job["id"]] != 1:
            yield f"job {job['id']} has {outputs[job['id']]} results"
    uids = [row["sop_instance_uid"] for row in records.rows["outputs"]]
    if len(set(uids)) != len(uids):
        yield "two results have one UID"
    for peer in ("pacs", "archive"):
        held = set(records.outside.held.get(peer, {}))
        denied = {uid for name, uid in records.outside.denied if name == peer}
        for uid in sorted(set(uids) - held - denied):
            yield f"{peer} lacks a result: {uid[-6:]}"
        for uid in sorted(held - set(uids)):
            yield f"{peer} has a result that no job has: {uid[-6:]}"


def _check_contents(records: _Records) -> Iterator[str]:
    """Every result was made of the bytes of all its inputs, and peers hold it as the node does."""
    instances = records.by_id("instances")
    inputs: dict[int, list[bytes | None]] = {}
    for row in records.rows["job_inputs"]:
        path = records.path(instances[row["instance_id"]]["sha256"])
        inputs.setdefault(row["job_id"], []).append(path.read_bytes() if path.exists() else None)
    for row in records.rows["outputs"]:
        content = _read_data_set(records.path(row["sha256"]))
        if content is None:
            continue  # expired, or a finding of another check
        files = [each for each in inputs.get(row["job_id"], []) if each is not None]
        is_whole = len(files) == len(inputs.get(row["job_id"], []))
        if is_whole and hashlib.sha256(b"".join(sorted(files))).hexdigest()[:16].encode() not in content:
            yield f"result {row['id']} was made of other bytes than those of its inputs"
        for peer, held in records.outside.held.items():
            sent = held.get(row["sop_instance_uid"])
            if sent is not None and sent.sha256 != hashlib.sha256(content).hexdigest():
                yield f"{peer} holds other bytes of result {row['id']}"


def _check_deliveries(records: _Records) -> Iterator[str]:
    """Everything that counts as delivered was accepted, and everything that counts as verified was confirmed."""
    outputs = records.by_id("outputs")
    accepted = {(peer, uid) for peer, uid, _ in records.outside.accepted}
    for row in records.rows["deliveries"]:
        pair = (row["destination"], outputs[row["output_id"]]["sop_instance_uid"])
        if row["state"] == "delivered" and pair not in accepted:
            yield f"delivery {row['id']} counts as delivered, and {row['destination']} never accepted it"
    for row in records.rows["proofs"]:
        pair = (row["destination"], row["sop_instance_uid"])
        if row["state"] == "verified" and pair not in records.outside.proven:
            yield f"proof {row['id']} counts as verified, and {row['destination']} never confirmed it"
    proven = {row["delivery_id"] for row in records.rows["proofs"]}
    for row in records.rows["deliveries"]:
        if row["destination"] == "pacs" and row["state"] == "delivered" and row["id"] not in proven:
            yield f"delivery {row['id']} has no proof"


def _check_removals(records: _Records) -> Iterator[str]:
    """No file went before every destination had accepted and, where it is asked to, confirmed the results."""
    series = records.by_id("series")
    outputs = records.rows["outputs"]
    deliveries = {(row["output_id"], row["destination"]) for row in records.rows["deliveries"]}
    for digest, accepted, proven in records.outside.removed:
        studies = {series[row["series_id"]]["study_id"] for row in records.rows["instances"] if row["sha256"] == digest}
        jobs = {row["id"] for row in records.rows["jobs"] if row["study_id"] in studies and row["state"] == "done"}
        mine = [row for row in outputs if row["job_id"] in jobs or row["sha256"] == digest]
        if not studies and not mine:
            continue  # content that was never acknowledged
        if not records.plan.is_retaining:
            yield "a file was deleted, and retention deletes nothing"
        if studies and not mine:
            yield f"a file of study {min(studies)} was deleted, which has no result"
        for output in mine:
            uid = output["sop_instance_uid"]
            for peer in ("pacs", "archive"):
                is_owed = (output["id"], peer) in deliveries
                if is_owed and ((peer, uid) not in accepted or (peer == "pacs" and (peer, uid) not in proven)):
                    yield f"a file was deleted before {peer} had proven the result {uid[-6:]}"


def _check_chain(records: _Records) -> Iterator[str]:
    """The trail is a chain, holds all that it held at the end of each life, and agrees with the rows."""
    previous, at = "0" * 64, 0
    hashes = {}
    for event in records.rows["events"]:
        at += 1
        if event["seq"] != at or event["previous"] != previous or event["hash"] != _hash(event):
            yield f"the chain breaks at event {event['seq']}"
            return
        previous = hashes[at] = event["hash"]
    head = records.rows["chain"][0]
    if (head["seq"], head["hash"]) != (at, previous):
        yield "the head of the chain is not its last event"
    for seq, digest in records.outside.heads:
        if seq and hashes.get(seq) != digest:
            yield f"event {seq} was in the trail once, and is not any more"
    yield from _compare_states(records)


def _compare_states(records: _Records) -> Iterator[str]:
    states: dict[tuple[str, str], str] = {}
    received = Counter[str]()
    for event in records.rows["events"]:
        detail = json.loads(event["detail"])
        if event["event"] == "moved":
            key = (event["subject"], event["subject_id"])
            if key in states and states[key] != detail["from"]:
                yield f"{event['subject']} {event['subject_id']}: an event says that it was {detail['from']}"
            states[key] = detail["to"]
        if event["event"] == "received":
            received[event["subject_id"]] += 1
    for table in ("studies", "jobs", "deliveries", "proofs"):
        for row in records.rows[table]:
            state = states.get((table, str(row["id"])))
            if state is not None and state != row["state"]:
                yield f"{table} {row['id']} is {row['state']}, and its last event says {state}"
    for row in records.rows["instances"]:
        if not received[str(row["id"])]:
            yield f"instance {row['id']} has no event of its reception"


def _check_runs(records: _Records) -> Iterator[str]:
    """No two workers ran one job at the same time, unless the first was killed or lost its process."""
    running: dict[str, str] = {}
    for what, key, worker in records.outside.runs:
        if what == "begin":
            if key in running and running[key] != worker:
                yield f"two workers ran one job: {running[key]} and {worker}"
            running[key] = worker
        elif what == "end":
            if running.get(key) == worker:
                del running[key]
        else:
            running = {} if not worker else {key: name for key, name in running.items() if name != worker}


_ALWAYS: tuple[Callable[[_Records], Iterator[str]], ...] = (
    _check_acknowledged,
    _check_files,
    _check_conflicts,
    _check_removals,
    _check_chain,
    _check_runs,
)
_CHECKS = (*_ALWAYS, _check_incoming, _check_ends, _check_results, _check_contents, _check_deliveries)


def _hash(event: dict[str, Any]) -> str:
    """Return the SHA-256 of an event: its number, moment (UTC), subject, words and the hash of the one before it."""
    moment = datetime.fromisoformat(event["at"]).replace(tzinfo=UTC).isoformat()
    words = [event["seq"], moment, event["subject"], event["subject_id"], event["event"]]
    text = json.dumps([*words, json.loads(event["detail"]), event["previous"]], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_data_set(path: Path) -> bytes | None:
    """Return the bytes behind the file meta information of a Part 10 file (PS3.10 7.1), None without a file."""
    if not path.exists():
        return None
    content = path.read_bytes()
    group_length = int.from_bytes(content[_PREAMBLE_BYTES + 8 : _PREAMBLE_BYTES + 12], "little")
    return content[_PREAMBLE_BYTES + 12 + group_length :]
