"""Notifications: each reaches its recipient at least once and under one ID, whatever happens to either side."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, deliveries, jobs, notifications
from db.jobs import OutputFile
from db.models import Job, Notification
from db.states import JobState, NotificationState
from db.studies import StoredFile
from dicomnode.config import Config
from dicomnode.config.delivery import DeliveryConfig
from dicomnode.config.node import NodeConfig
from dicomnode.config.notifications import NotificationsConfig
from dicomnode.delivery.delivery import deliver_due
from dicomnode.notifications import notices, notification
from dicomnode.notifications.notification import notify_due
from tests.peers import Answering, free_port
from tests.peers.hook import Hook
from tests.peers.mailbox import Mailbox
from tests.rows import add_job, finish_job

Sessions = sessionmaker[Session]
ALL = ["delivered", "held", "failed", "refused"]
EVERYTHING = {"ward": ALL}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def make_config(folder: Path, **notifications: Any) -> Config:
    return Config(
        node=NodeConfig(data_dir=folder / "data"),
        delivery=DeliveryConfig(backoff_s=10, backoff_max_s=80, give_up_after_h=72),
        notifications=NotificationsConfig.model_validate(notifications),
        path=folder / "node.toml",
    ).with_absolute_paths(folder)


def configure_webhook(folder: Path, url: str, **settings: Any) -> Config:
    return make_config(folder, webhook=[{"name": "ward", "url": url, "events": ALL} | settings])


def configure_email(folder: Path, port: int, smtp: Mapping[str, Any] | None = None, **settings: Any) -> Config:
    server = {"host": "127.0.0.1", "port": port, "security": "none", "from": "node@hospital.example"}
    email = {"name": "ward", "to": ["ward@hospital.example", "pacs@hospital.example"], "events": ALL}
    return make_config(folder, smtp=server | dict(smtp or {}), email=[email | settings])


def make_output(uid: str = "2.25.1", **changes: Any) -> OutputFile:
    return OutputFile(
        uid, "1.2.840.10008.5.1.4.1.1.7", f"{uid}.1", "image", StoredFile("a" * 64, 9, "a.dcm"), **changes
    )


def end_job(sessions: Sessions, how: str, now: datetime, *, reason: str = "chi-square is 9", **changes: Any) -> int:
    """Add a job that ended as ``how`` says, on a study whose patient no notification may name; return its number."""
    with sessions.begin() as session:
        job = add_job(session, now, **({"notify": EVERYTHING} | changes))
        job.study.patient_id, job.study.patient_name = "PAT-4711", "Müller^Jürgen"
        job.study.accession_number, job.study.study_date = "ACC-0815", "20261119"
        jobs.claim(session, worker="w", lease_s=60, now=now)
        mine: dict[str, Any] = {"job_id": job.id, "worker": "w", "now": now}
        if how == "held":
            jobs.finish(session, outputs=[make_output()], report={"model": "m@1.0"}, held_because=reason, **mine)
        elif how == "refused":
            jobs.refuse(session, reason=reason, report={}, **mine)
        else:
            jobs.fail(session, reason=reason, retry=False, attempts=3, **mine)
        return job.id


def list_notifications(sessions: Sessions) -> list[Notification]:
    with sessions() as session:
        return list(session.scalars(select(Notification).order_by(Notification.id)))


def list_states(sessions: Sessions) -> list[NotificationState]:
    return [row.state for row in list_notifications(sessions)]


@pytest.mark.parametrize("event", ["held", "refused", "failed"])
def test_an_end_of_a_job_is_told_by_mail_and_by_web(
    sessions: Sessions, tmp_path: Path, now: datetime, event: str
) -> None:
    with Mailbox() as box, Hook() as hook:
        config = make_config(
            tmp_path,
            smtp={"host": "127.0.0.1", "port": box.port, "security": "none", "from": "node@hospital.example"},
            email=[{"name": "mail", "to": ["ward@hospital.example"]}],
            webhook=[{"name": "web", "url": hook.url}],
        )
        id = end_job(sessions, event, now, notify={"mail": [event], "web": [event]})
        assert notify_due(sessions, config, now=lambda: now) == 2
        assert notify_due(sessions, config, now=lambda: now + timedelta(hours=1)) == 0
    (mail,), (post,) = box.mails, hook.posts
    assert mail["Subject"] == f"DICOMNODE: {event}, job {id}, flair"
    assert "reason:   chi-square is 9" in mail.get_content()
    assert mail["Message-ID"] == f"<{list_notifications(sessions)[0].event_id}@hospital.example>"
    assert (post.json["event"], post.json["job"], post.json["reason"]) == (event, id, "chi-square is 9")
    assert (
        post.json["id"]
        == post.id
        == list_notifications(sessions)[1].event_id
        != list_notifications(sessions)[0].event_id
    )
    assert post.json["model"] == ("m@1.0" if event == "held" else "")
    assert all(row.sent_at == now for row in list_notifications(sessions))
    with sessions() as session:
        assert audit.verify(session) is None


def test_only_the_events_that_are_asked_for_are_told(sessions: Sessions, now: datetime) -> None:
    end_job(sessions, "held", now, notify={"a": ["failed"], "b": ["held", "failed"]})
    assert [(row.name, row.event) for row in list_notifications(sessions)] == [("b", "held")]


def test_a_change_that_is_rolled_back_is_not_told(sessions: Sessions, now: datetime) -> None:
    with sessions.begin() as session:
        job_id = add_job(session, now, notify=EVERYTHING).id
    with sessions() as session:
        jobs.claim(session, worker="w", lease_s=60, now=now)
        jobs.fail(session, job_id=job_id, worker="w", reason="no", retry=False, attempts=1, now=now)
        session.rollback()
    assert list_notifications(sessions) == []


@pytest.mark.slow
def test_delivered_is_told_once_when_every_object_is_everywhere(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    with Answering(lambda event: 0x0000) as first, Answering(lambda event: 0x0000) as second, Hook() as hook:
        config = configure_webhook(tmp_path, hook.url)
        peers = first.peer, second.peer.model_copy(update={"name": "other"})
        for number in range(4):
            with_jobs = config.model_copy(update={"peers": peers})
            finish_job(
                sessions, with_jobs, ["answering", "other"], now, count=3, study=f"1.2.{number}", notify=EVERYTHING
            )
        assert notify_due(sessions, config, now=lambda: now) == 0, "nothing is there yet"
        assert deliver_due(sessions, config.model_copy(update={"peers": peers[:1]}), now=lambda: now) == 12
        assert notify_due(sessions, config, now=lambda: now) == 0, "the other one has nothing"
        assert deliver_due(sessions, config.model_copy(update={"peers": peers}), now=lambda: now) == 12
        assert notify_due(sessions, config, now=lambda: now) == 4
    assert [post.json["event"] for post in hook.posts] == ["delivered"] * 4
    assert hook.posts[0].json["reason"] == "6 objects at answering, other"


@pytest.mark.slow
def test_two_destinations_that_end_at_the_same_time_make_one_notification(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    finish_job(sessions, make_config(tmp_path), ["one", "other"], now, notify=EVERYTHING)
    with sessions.begin() as session:
        first, second = deliveries.claim_due(session, worker="w", lease_s=9, limit=9, now=now)

    def end_the_second() -> None:
        with sessions.begin() as session:
            deliveries.mark_delivered(session, second.delivery_id, worker="w", now=now)

    later = threading.Thread(target=end_the_second)
    with sessions.begin() as session:
        deliveries.mark_delivered(session, first.delivery_id, worker="w", now=now)
        later.start()
        later.join(0.5)
        assert later.is_alive(), "it waits for what the first one says of the job"
    later.join()
    assert [row.event for row in list_notifications(sessions)] == ["delivered"]


def test_a_result_that_is_given_up_is_a_failure_and_never_delivered(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    finish_job(sessions, make_config(tmp_path), ["down", "up"], now, count=2, notify=EVERYTHING)
    with sessions.begin() as session:
        for due in deliveries.claim_due(session, worker="w", lease_s=9, limit=9, destination="up", now=now):
            deliveries.mark_delivered(session, due.delivery_id, worker="w", now=now)
        deliveries.give_up_old(session, created_before=now + timedelta(1), now=now)
    (row,) = list_notifications(sessions)
    assert (row.event, row.message) == ("failed", "not delivered to down: given up: never tried")


def test_a_destination_that_got_another_kind_instead_has_the_results(sessions: Sessions, now: datetime) -> None:
    with sessions.begin() as session:
        job = add_job(session, now, notify=EVERYTHING)
        jobs.claim(session, worker="w", lease_s=60, now=now)
        outputs = [
            make_output("2.25.1", destinations=("pacs",)),
            make_output("2.25.2", destinations=(), spare_for=("pacs",)),
        ]
        jobs.finish(session, job_id=job.id, worker="w", outputs=outputs, report={}, now=now)
        deliveries.fall_back(session, job.id, "pacs", reason="does not take it", now=now)
        (due,) = deliveries.claim_due(session, worker="w", lease_s=9, limit=9, now=now)
        deliveries.mark_delivered(session, due.delivery_id, worker="w", now=now)
    assert [(row.event, row.message) for row in list_notifications(sessions)] == [("delivered", "1 objects at pacs")]


def test_held_results_are_told_as_delivered_after_their_release(sessions: Sessions, now: datetime) -> None:
    job_id = end_job(sessions, "held", now)
    with sessions.begin() as session:
        jobs.release(session, session.get_one(Job, job_id), reason="seen", now=now)
        (due,) = deliveries.claim_due(session, worker="w", lease_s=9, limit=9, now=now)
        deliveries.mark_delivered(session, due.delivery_id, worker="w", now=now)
    assert [row.event for row in list_notifications(sessions)] == ["held", "delivered"]


def test_a_job_that_is_retried_and_refused_again_is_told_of_again(sessions: Sessions, now: datetime) -> None:
    job_id = end_job(sessions, "refused", now)
    later = now + timedelta(minutes=5)
    with sessions.begin() as session:
        jobs.retry(session, session.get_one(Job, job_id), reason="again", now=later)
        jobs.claim(session, worker="w", lease_s=60, now=later)
        jobs.refuse(session, job_id=job_id, worker="w", reason="still", report={}, now=later)
    assert [row.message for row in list_notifications(sessions)] == ["chi-square is 9", "still"]
    assert len({row.event_id for row in list_notifications(sessions)}) == 2


def test_a_receiver_that_was_down_is_told_when_it_is_back(sessions: Sessions, tmp_path: Path, now: datetime) -> None:
    port = free_port()
    config = configure_webhook(tmp_path, f"http://127.0.0.1:{port}/")
    end_job(sessions, "held", now)
    assert notify_due(sessions, config, now=lambda: now, generator=random.Random(1)) == 0
    (row,) = list_notifications(sessions)
    assert (row.state, row.reason) == (NotificationState.WAITING, f"127.0.0.1:{port}: Connection refused")
    with Hook(port=port) as hook:
        assert notify_due(sessions, config, now=lambda: now + timedelta(seconds=4)) == 0, "the back-off is not over"
        assert notify_due(sessions, config, now=lambda: now + timedelta(seconds=10)) == 1
    assert [post.id for post in hook.posts] == [row.event_id]
    assert list_states(sessions) == [NotificationState.SENT]


def test_a_mail_server_that_was_down_gets_the_mail_later(sessions: Sessions, tmp_path: Path, now: datetime) -> None:
    port = free_port()
    config = configure_email(tmp_path, port)
    end_job(sessions, "failed", now)
    assert notify_due(sessions, config, now=lambda: now) == 0
    with Mailbox(port=port) as box:
        assert notify_due(sessions, config, now=lambda: now + timedelta(seconds=10)) == 1
    assert [mail["To"] for mail in box.mails] == ["ward@hospital.example, pacs@hospital.example"]


def test_a_receiver_that_does_not_answer_is_asked_once_in_a_sweep(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    answers = iter([500, 204])
    for number in range(3):
        end_job(sessions, "held", now, study=f"1.2.{number}")
    with Mailbox(silent=True) as box:
        assert notify_due(sessions, configure_email(tmp_path, box.port), now=lambda: now) == 0
    assert len(box.raw) == 1
    assert [row.reason for row in list_notifications(sessions)] == [f"127.0.0.1:{box.port}: SMTPServerDisconnected"] * 3
    later = now + timedelta(minutes=1)
    with Hook(lambda post: next(answers, 204)) as hook:
        assert notify_due(sessions, configure_webhook(tmp_path, hook.url), now=lambda: later) == 2, (
            "one that answers is asked for each"
        )
    assert list_notifications(sessions)[0].reason == f"127.0.0.1:{hook.port} answers 500"


def test_what_was_sent_but_not_recorded_is_sent_again_under_its_id(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    with Hook() as hook:
        config = configure_webhook(tmp_path, hook.url)
        end_job(sessions, "held", now)
        with sessions.begin() as session:
            (due,) = notifications.claim_due(session, name="ward", worker="dead", lease_s=60, limit=9, now=now)
        facts = notices.make_facts(due, config, patient_data=False)
        notification.send(config.notifications.webhook[0], config, facts, due.created_at)
        assert notify_due(sessions, config, now=lambda: now + timedelta(seconds=59)) == 0
        assert notify_due(sessions, config, now=lambda: now + timedelta(seconds=61)) == 1
    first, second = hook.posts
    assert first.id == second.id
    assert first.body == second.body


def test_a_lost_acknowledgement_of_a_mail_makes_the_same_mail_again(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    with Mailbox(silent=True) as box:
        config = configure_email(tmp_path, box.port)
        end_job(sessions, "held", now)
        assert notify_due(sessions, config, now=lambda: now) == 0
        box.silent = False
        assert notify_due(sessions, config, now=lambda: now + timedelta(seconds=10)) == 1
    first, second = box.mails
    assert first["Message-ID"] == second["Message-ID"]
    assert box.raw[0] == box.raw[1]


def test_a_node_that_starts_again_sends_at_once_what_it_was_sending(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    end_job(sessions, "held", now)
    with sessions.begin() as session:
        worker = jobs.worker_name(1)
        assert notifications.claim_due(session, name="ward", worker=worker, lease_s=3600, limit=9, now=now)
    assert notification.resume(sessions, now=now) == 1
    with Hook() as hook:
        assert notify_due(sessions, configure_webhook(tmp_path, hook.url), now=lambda: now) == 1


def test_a_notification_is_given_up_at_the_configured_age_with_its_reason(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    with Hook(lambda post: 503) as hook:
        config = configure_webhook(tmp_path, hook.url)
        end_job(sessions, "held", now)
        notify_due(sessions, config, now=lambda: now + timedelta(hours=71, minutes=59))
        assert list_states(sessions) == [NotificationState.WAITING]
        notify_due(sessions, config, now=lambda: now + timedelta(hours=72, minutes=1))
    (row,) = list_notifications(sessions)
    assert (row.state, row.reason) == (
        NotificationState.GIVEN_UP,
        f"given up: 127.0.0.1:{hook.port} answers 503",
    )


def test_the_job_goes_on_whatever_becomes_of_its_notification(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    (tmp_path / "broken").write_text("{{ nobody }}")
    with Hook() as hook:
        job_id = end_job(sessions, "held", now)
        assert notify_due(sessions, configure_webhook(tmp_path, hook.url, template_file="broken"), now=lambda: now) == 0
        assert "'nobody' is undefined" in list_notifications(sessions)[0].reason
        with sessions() as session:
            assert session.get_one(Job, job_id).state is JobState.HELD
        later = now + timedelta(minutes=1)
        assert notify_due(sessions, configure_webhook(tmp_path, hook.url), now=lambda: later) == 1, "mended"


@pytest.mark.parametrize("event", ["held", "refused", "failed"])
def test_no_patient_data_leave_unless_allowed(
    sessions: Sessions, tmp_path: Path, now: datetime, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    caplog.set_level(logging.DEBUG)
    # digits as words of their own: ports and digests may hold them
    private = [r"\b4711\b", "üller", "ürgen", r"\b0815\b", "20261119", r"1\.2\.840\.77\.1", r"\b93\b", "secret-path"]
    reason = (
        "flair: Patient's Age (0010,1010) is 93 years; m 1.0 takes 18 to 90 years; covariates: age is 93, but 71; "
        "study 1.2.840.77.1 of MÜLLER, ID PAT-4711, is odd"
    )
    with Mailbox() as box, Hook(lambda post: 500) as hook:
        config = make_config(
            tmp_path,
            smtp={"host": "127.0.0.1", "port": box.port, "security": "none", "from": "node@hospital.example"},
            email=[{"name": "mail", "to": ["ward@hospital.example"]}],
            webhook=[{"name": "web", "url": hook.url}],
        )
        recipients = {"mail": [event], "web": [event]}
        end_job(sessions, event, now, reason=reason, study="1.2.840.77.1", notify=recipients)
        notify_due(sessions, config, now=lambda: now)
    (mail,), (post,) = box.mails, hook.posts
    said = [mail.as_string(), mail["Subject"], mail.get_content(), post.body.decode(), str(post.headers)]
    said += [record.getMessage() for record in caplog.records if record.name.startswith("dicomnode")]
    assert len(said) > 5, "the failure is in the log"
    assert [(pattern, each) for pattern in private for each in said if re.search(pattern, each)] == []
    assert "m 1.0 takes 18 to 90 years" in mail.get_content()
    assert "93" in list_notifications(sessions)[0].message, "the row has it all"


def test_patient_data_are_told_where_they_are_allowed(sessions: Sessions, tmp_path: Path, now: datetime) -> None:
    with Hook() as hook:
        end_job(sessions, "held", now, reason="Patient's Age (0010,1010) is 93 years")
        notify_due(sessions, configure_webhook(tmp_path, hook.url, patient_data=True), now=lambda: now)
    said = hook.posts[0].json
    assert (said["patient_id"], said["accession_number"], said["study_date"]) == ("PAT-4711", "ACC-0815", "20261119")
    assert said["study_uid"] == "1.2.1"
    assert said["reason"].endswith("93 years")
    assert "üller" not in hook.posts[0].body.decode(), "nobody needs the name"


def test_a_notification_links_to_the_page_of_its_job(sessions: Sessions, tmp_path: Path, now: datetime) -> None:
    with Hook() as hook:
        config = configure_webhook(tmp_path, hook.url)
        web = config.web.model_copy(update={"public_url": "https://node.hospital.example/"})
        id = end_job(sessions, "held", now)
        notify_due(sessions, config.model_copy(update={"web": web}), now=lambda: now)
    assert hook.posts[0].json["link"] == f"https://node.hospital.example/jobs/{id}"


def test_nothing_in_a_name_makes_a_header(sessions: Sessions, tmp_path: Path, now: datetime) -> None:
    route = "flair\r\nBcc: thief@example.com\r\n\r\nhello\x07"
    with Mailbox() as box:
        end_job(sessions, "held", now, route=route, reason="line\r\n.\r\nMAIL FROM:<thief@example.com>")
        assert notify_due(sessions, configure_email(tmp_path, box.port), now=lambda: now) == 1
    (mail,) = box.mails
    assert mail["Bcc"] is None
    assert str(mail["Subject"]).endswith(", flair Bcc: thief@example.com hello")
    assert [each for each in box.commands if "thief" in each] == []
