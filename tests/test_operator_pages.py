"""The pages that tell an operator what is wrong: unreachable peers, refused callers, senders, quarantine."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from db import destinations
from db.models import Delivery, Event
from db.states import DeliveryState, QuarantineState
from dicomnode.config.limits import LimitsConfig
from dicomnode.config.senders import SenderConfig
from dicomnode.monitoring.refused_callers import RefusedCallers
from tests.web_node import Web
from tests.web_studies import (
    NAME,
    PEERS,
    ROUTES,
    claim_job,
    finish_job,
    make_results,
    make_series,
    receive,
    route_study,
    study_uid,
)

REFUSED = "127.0.0.1:1: Connection refused"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as running:
        yield running


def get(web: Web, path: str) -> str:
    return web.get(path, "text/html").text


def fail_deliveries(web: Web, times: int) -> None:
    """Let a study wait for a destination that does not answer."""
    images = make_series("waits")
    job_id = route_study(web, receive(web, images))
    assert claim_job(web) == job_id
    finish_job(web, job_id, make_results(images))
    with web.sessions.begin() as session:
        for row in session.query(Delivery):
            row.not_before = web.now + timedelta(hours=1)
    for _ in range(times):
        with web.sessions.begin() as session:
            destinations.record_failure(
                session, "pacs", threshold=3, open_s=600, open_max_s=600, reason=REFUSED, now=web.now
            )


@pytest.mark.slow
def test_a_destination_that_is_down_is_a_banner_on_every_page_until_it_answers(web: Web) -> None:
    assert "does not answer" not in get(web, "/")
    fail_deliveries(web, 3)
    for path in ("/", "/hold", "/jobs", "/peers", "/system", f"/studies/{study_uid('waits')}"):
        page = get(web, path)
        assert "<b>pacs does not answer.</b>" in page, path
        assert REFUSED in page
        assert "4 objects wait; 3 attempts without an answer" in page
        assert 'Peers <b class="count bad">1</b>' in page
    with web.sessions.begin() as session:
        destinations.record_success(session, "pacs", now=web.now)
    page = get(web, "/")
    assert "does not answer" not in page
    assert 'Peers <b class="count' not in page


@pytest.mark.slow
def test_try_now_makes_waiting_deliveries_due_and_keeps_the_banner(web: Web) -> None:
    fail_deliveries(web, 3)
    with web.sessions() as session:
        assert destinations.load_breaker(session, "pacs").is_open(web.now)
    answer = web.client.post("/destinations/pacs/try", data={"back": "/peers"})
    assert answer.headers["location"] == "/peers?done=try-4"
    page = get(web, "/peers?done=try-4")
    assert "4 deliveries are tried now." in page
    assert "Nothing is tried now: no delivery waits for this destination." in get(web, "/peers?done=try-0")
    assert "1 delivery is tried now." in get(web, "/peers?done=try-1")
    assert "<b>pacs does not answer.</b>" in page
    with web.sessions() as session:
        breaker = destinations.load_breaker(session, "pacs")
        assert not breaker.is_open(web.now)
        assert (breaker.failures, breaker.reason) == (3, REFUSED)
        rows = session.query(Delivery).all()
        assert {(row.state, row.not_before) for row in rows} == {(DeliveryState.WAITING, web.now)}
        assert session.query(Event).filter_by(event="tried again").one().detail["by"] == "tried again at the dashboard"
    assert web.client.post("/destinations/nobody/try").status_code == 404


def test_given_up_is_called_so(web: Web) -> None:
    fail_deliveries(web, 1)
    with web.sessions.begin() as session:
        session.query(Delivery).update({"state": DeliveryState.GIVEN_UP})
    page = get(web, "/peers")
    assert "4 given up" in page
    assert "given_name" not in page


def test_refused_callers_are_listed_with_title_and_address(web: Web) -> None:
    assert "No caller was refused" in get(web, "/senders")
    for _ in range(3):
        web.meters.refused_callers.record("10.0.0.9", "CT<7>", "not among the senders", web.now)
    page = get(web, "/senders")
    assert "<td>CT&lt;7&gt;</td><td>10.0.0.9</td><td>not among the senders</td>" in page
    assert '<td class="right">3</td>' in page


def test_refused_callers_are_bounded_and_the_latest_come_first(web: Web) -> None:
    callers = RefusedCallers()
    for number in range(500):
        callers.record(f"10.0.{number // 250}.{number % 250}", "A", "too many", web.now)
    callers.record("10.0.1.100", "A", "too many", web.now + timedelta(minutes=1))
    found = callers.list()
    assert len(found) == 200
    assert (found[0].address, found[0].count, found[0].last_at) == ("10.0.1.100", 2, web.now + timedelta(minutes=1))


def test_senders_are_shown_with_the_limits_that_hold_for_them(tmp_path: Path) -> None:
    senders = (SenderConfig(ae_title="CT1", max_associations=4, max_object_mb=250.0),)
    limits = LimitsConfig(max_object_mb=500.0, max_mb_per_minute=3000.0)
    with Web(tmp_path, sections={"senders": senders, "limits": limits}) as web:
        page = get(web, "/senders")
    cells = "".join(f'<td class="right">{value}</td>' for value in ("4", "250", "3000", "no limit"))
    assert f"<td>CT1</td><td>any address</td>{cells}" in page.replace("3,000", "3000").replace("3 000", "3000")


@pytest.mark.parametrize(("decision", "state"), [("release", "released"), ("discard", "discarded")])
def test_quarantined_files_are_decided_on_with_the_patient_in_sight(
    web: Web, tmp_path: Path, decision: str, state: str
) -> None:
    series = make_series("first")
    receive(web, series)
    series[0].PixelData = bytes(len(series[0].PixelData))
    series[0].save_as(tmp_path / "changed.dcm", enforce_file_format=True)
    assert web.store([tmp_path / "changed.dcm"]).status_code == 409
    page = get(web, "/system")
    assert 'System <b class="count">1</b>' in page
    assert "has this SOP Instance UID with other content" in page
    assert NAME.split("^")[0] in page
    assert f'href="/studies/{study_uid("first")}"' in page
    waits = '<a href="/system#quarantine">1 object of this study waits in quarantine</a>'
    assert waits in get(web, f"/studies/{study_uid('first')}")
    assert "<span>study 1</span>" in get(web, f"/studies/{study_uid('first')}")
    assert web.get(f"/api/studies/{study_uid('first')}").json()["quarantined"] == 1
    form = {"reason": "the scanner sent it twice", "who": "MK"}
    for missing in form:
        unsigned = web.client.post(f"/quarantine/1/{decision}", data=form | {missing: " "})
        assert unsigned.status_code == 400
        assert "A decision needs your initials and a reason." in unsigned.text
    assert web.quarantined()[0].state is QuarantineState.KEPT
    answer = web.client.post(f"/quarantine/1/{decision}", data=form)
    assert answer.headers["location"] == f"/system?done={state}-1"
    assert web.quarantined()[0].state is QuarantineState(state)
    is_swapped = decision == "release"  # the instance that was there waits in its place
    assert (waits in get(web, f"/studies/{study_uid('first')}")) == is_swapped
    with web.sessions() as session:
        event = session.query(Event).filter_by(subject="quarantine", event="moved").first()
        assert event is not None
        assert event.detail["reason"] == f"{state} at the dashboard by MK: the scanner sent it twice"
    assert web.client.post(f"/quarantine/1/{decision}", data=form).status_code == 409
    assert web.client.post(f"/quarantine/9/{decision}", data=form).status_code == 404
