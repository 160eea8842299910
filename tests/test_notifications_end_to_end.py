"""Notifications of real jobs, by the node as a process of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from db import engine as engines
from db import jobs
from dicomnode import cli
from dicomnode import config as configuration
from dicomnode.dimse import peers
from dicomnode.notifications.notification import notify_due
from tests import databases
from tests.peers import Node, StoreScp, make_route, wait_for, write_config
from tests.peers.hook import Hook, Post
from tests.peers.kspaces import raw_data
from tests.peers.mailbox import Mailbox
from tests.rows import add_job
from tests.test_node import put

FAST = {"steps": 2, "mean_steps": 2, "samples": 2}
ALL = ["delivered", "held", "failed", "refused"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_held_study_is_told_and_after_its_release_its_delivery(
    tmp_path: Path, now: datetime, storescp: StoreScp
) -> None:
    with Hook() as hook, Mailbox() as box:
        settings = {
            "smtp": {"host": "127.0.0.1", "port": box.port, "security": "none", "from": "node@hospital.example"},
            "email": [{"name": "mail", "to": ["ward@hospital.example"], "events": ALL}],
            "webhook": [{"name": "web", "url": hook.url, "events": ALL}],
        }
        path = write_config(
            tmp_path,
            peers=[storescp.peer],
            routes=[make_route("storescp", **FAST)],
            quality={"hold_above": {"chi-square": 0.0}},
            notifications=settings,
        )
        with Node(path) as running:
            file = raw_data(tmp_path / "raw.dcm", now, PatientName="Secret^Name", PatientID="SECRET-1")
            peers.store(running.peer, [file], calling_aet="TEST")
            job = running.wait_for_job("held")
            wait_for(lambda: hook.posts and box.raw, "it is told that the result is held")
            assert running.command("jobs", "release", str(job.id)).returncode == 0
            wait_for(lambda: len(hook.posts) == len(box.raw) == 2, "it is told that the result is delivered")
            assert [post.json["event"] for post in hook.posts] == ["held", "delivered"]
            assert hook.posts[0].json["model"].startswith("mri_prior@")
            assert "chi-square is " in hook.posts[0].json["reason"]
            said = b"".join([*box.raw, *(post.body for post in hook.posts)]).decode() + running.log
            assert "ecret" not in said
            assert str(dcmread(file).StudyInstanceUID) not in said.replace(running.log, "")
            listed = running.command("notifications", "list", "--json").stdout
            assert listed.count('"state": "sent"') == 4
            assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["not MRD", "bad option"])
def test_a_refused_and_a_failed_job_are_told(tmp_path: Path, now: datetime, damage: str) -> None:
    options = {"steps": 1} if damage == "bad option" else {}
    with Hook() as hook:
        settings = {"webhook": [{"name": "web", "url": hook.url, "events": ALL}]}
        config_path = write_config(tmp_path, routes=[make_route(**options)], notifications=settings)
        path = raw_data(tmp_path / "raw.dcm", now, PatientName="Secret^Name", PatientID="SECRET-1")
        if damage == "not MRD":
            ds = dcmread(path)
            ds.remove_private_tags()
            del ds.CreatorVersionUID
            ds.save_as(path)
        put(Node(config_path), path, now)
        assert cli.main(["--config", str(config_path), "work", "--once"]) == 0
        config = configuration.load(config_path)
        engine = engines.connect(config.database_url)
        assert notify_due(engines.sessions(engine), config, now=lambda: datetime.now(UTC)) == 1
        engine.dispose()
    (post,) = hook.posts
    expected = ("refused", "no ISMRMRD/MRD") if damage == "not MRD" else ("failed", "options of mri_reconstruction")
    assert post.json["event"] == expected[0]
    assert expected[1] in post.json["reason"]
    assert b"ecret" not in post.body


@pytest.mark.slow
def test_a_node_that_is_killed_before_it_has_noted_the_answer_tells_it_again(tmp_path: Path, now: datetime) -> None:
    def kill_the_node(post: Post) -> int:
        if len(hook.posts) == 1:
            running.kill()
        return 204

    with Hook(kill_the_node) as hook:
        settings = {"webhook": [{"name": "web", "url": hook.url, "events": ALL}]}
        running = Node(write_config(tmp_path, notifications=settings), "serve", "--workers", "0")
        databases.prepare(running.config)
        with running:
            engine = engines.connect(running.config.database_url)
            with engines.sessions(engine).begin() as session:
                job = add_job(session, datetime.now(UTC), notify={"web": ["failed"]})
                mine: dict[str, Any] = {"worker": "w", "now": datetime.now(UTC)}
                jobs.claim(session, lease_s=60, **mine)
                jobs.fail(session, job_id=job.id, reason="broken", retry=False, attempts=1, **mine)
            engine.dispose()
            wait_for(lambda: not running.program.running, "it is killed while it tells")
            running.start()
            wait_for(lambda: len(hook.posts) == 2, "it is told again")
            sent = '"state": "sent"'
            wait_for(lambda: sent in running.command("notifications", "list", "--json").stdout, "it is noted")
            assert running.stop() == 0
    assert hook.posts[0].id == hook.posts[1].id
    assert hook.posts[0].body == hook.posts[1].body
