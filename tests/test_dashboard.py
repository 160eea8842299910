"""The dashboard's pages and decisions, over HTTP, on real rows and files in every state."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import event, select

from db import audit, workers
from db.models import Delivery, Event, Job, Study
from db.overview import Tally
from db.states import DeliveryState, JobState, StudyState
from dicomnode.results.page import Page
from dicomnode.web import server, study_progress
from dicomnode.web.app import create_app
from model_zoo import registry
from tests.peers.answering import Answering
from tests.web_node import Web
from tests.web_studies import (
    MARKUP,
    PEERS,
    ROUTES,
    claim_job,
    finish_job,
    make_results,
    make_series,
    receive,
    route_study,
    run_all_states,
    study_uid,
)

pytestmark = pytest.mark.slow

ANATOMY = f"/models/anatomy@{registry.find('anatomy').version}"
SECTIONS = {"routes": ROUTES, "peers": PEERS}


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, Mapping[str, int]]]:
    """Yield a node with a study in every state, for tests that change nothing, and its jobs by outcome."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "node.toml").write_text('[node]\ndata_dir = "data"\n')
    with run_all_states(folder) as running:
        yield running


@pytest.fixture
def decidable(tmp_path: Path) -> Iterator[tuple[Web, Mapping[str, int]]]:
    """Yield a node with a study in every state, for tests that decide, and its jobs by outcome."""
    with run_all_states(tmp_path) as running:
        yield running


def get_page(web: Web, path: str, status: int = 200) -> str:
    answer = web.get(path, "text/html")
    assert answer.status_code == status
    return answer.text


def load_job(web: Web, id: int) -> Job:
    found: Job = next(row for row in web.rows(Job) if row.id == id)
    return found


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("receiving", "Receiving, 5 instances so far"),
        ("complete", "Complete, waiting for routing"),
        ("unrouted", "Not routed: no route took it"),
        ("waiting", "Waiting for a worker"),
        ("running", "42 %, about "),
        ("held", "Held for your decision"),
        ("dead", "Failed"),
        ("refused", "Refused"),
        ("cancelled", "Cancelled"),
        ("partly", "4 of 8 delivered"),
        ("given up", "Delivery given up, 0 of 4 delivered"),
        ("delivered", "Delivered, 4 objects"),
    ],
)
def test_the_list_says_where_each_study_stands(
    read_only: tuple[Web, Mapping[str, int]], study: str, words: str
) -> None:
    web, _ = read_only
    rows = re.split(r'<li class="study"', get_page(web, "/"))
    matching = [row for row in rows if study_uid(study) in row]
    assert len(matching) == 1
    assert words in matching[0]
    assert re.search(r'<p class="facts"><span>study \d+</span><span>2026-', matching[0]), (
        "the number that commands take"
    )


@pytest.mark.parametrize(
    ("state", "studies"),
    [
        ("receiving", {"receiving"}), ("complete", {"complete"}), ("unrouted", {"unrouted"}), ("waiting", {"waiting"}),
        ("running", {"running"}), ("held", {"held"}), ("failed", {"dead", "given up"}), ("refused", {"refused"}),
        ("delivering", {"partly"}), ("delivered", {"delivered"}),
    ],
)  # fmt: skip
def test_the_list_can_be_narrowed_to_a_state(
    read_only: tuple[Web, Mapping[str, int]], state: str, studies: set[str]
) -> None:
    web, _ = read_only
    listed = set(re.findall(r'<h2><a href="/studies/([0-9.]+)"', get_page(web, f"/?state={state}")))
    assert listed == {study_uid(study) for study in studies}


def test_the_list_is_searched_by_description_and_dates(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = read_only
    assert "11 studies" in get_page(web, "/?description=FOLLOW")
    assert "No study matches this search" in get_page(web, "/?first=2026-11-20")
    assert "12 studies" in get_page(web, "/?first=2026-11-19&last=2026-11-19")
    assert "No study matches this search" in get_page(web, "/?last=2026-11-18")
    assert "No study matches this search" in get_page(web, "/?description=%25")


def test_a_patient_is_searched_for_without_standing_in_an_address(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = read_only
    for search, count in (("p-held", "1 study"), ("meier", "11 studies"), ("nobody", "No study matches this search")):
        answer = web.client.post("/", data={"patient": search})
        assert answer.status_code == 200
        assert count in answer.text
        assert f"={search}" not in answer.text
        assert f"patient={search}" not in str(answer.url)
    assert "12 studies" in get_page(web, "/?patient=nobody")
    answer = web.client.post("/", data={"patient": "", "state": "held"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?state=held")


def test_no_title_and_no_address_names_a_patient(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, made = read_only
    for path in ("/", "/hold", "/failures", "/jobs", f"/jobs/{made['held']}", f"/studies/{study_uid('held')}"):
        text = get_page(web, path)
        title = re.search(r"<title>(.*?)</title>", text)
        texts = [title[1] if title else "", *re.findall(r'(?:href|src|action)="([^"]*)"', text)]
        assert "Meier" in text or path == "/jobs"
        assert not [each for each in texts if "Meier" in each or "Erika" in each or "00471" in each]


def test_names_are_masked_where_the_configuration_says_so(tmp_path: Path) -> None:
    with run_all_states(tmp_path, mask_names=True) as (web, made):
        for path in ("/", "/hold", "/failures", "/jobs", f"/jobs/{made['held']}", f"/studies/{study_uid('held')}"):
            text = get_page(web, path)
            assert "Meier" not in text
            assert "P-held-00471" not in text
            assert "815" not in re.sub(r"[0-9.]{20,}", "", text)
        assert "…471" in get_page(web, "/")
        assert "No study matches this search" in web.client.post("/", data={"patient": "meier"}).text


def test_what_a_data_set_says_is_text_and_no_markup(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, made = read_only
    for path in ("/", "/jobs", f"/studies/{study_uid('waiting')}", f"/jobs/{made['waiting']}"):
        text = get_page(web, path)
        assert MARKUP not in text
        assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(
    "path", ["/", "/hold", "/failures", "/jobs", "/models", "/peers", "/system", "/jobs/4", ANATOMY]
)
def test_no_page_needs_more_than_its_policy_allows(read_only: tuple[Web, Mapping[str, int]], path: str) -> None:
    web, _ = read_only
    answer = web.get(path, "text/html")
    assert answer.status_code == 200
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=\"|javascript:", answer.text)
    assert answer.text.count("<h1") == 1


@pytest.mark.parametrize(
    "path",
    [
        "/studies/1.2.3", "/studies/1.2.3/thumbnail", "/studies/x", "/studies/..%2f..%2fetc", "/jobs/99", "/jobs/x",
        "/studies/1.2.3/report.pdf", "/models/nothing@1", "/models/..@1", "/jobs/4/pictures/1.2",
        "/jobs/99/pictures/1.2", f"{ANATOMY}/..%2f..%2fconfigs%2fmetadata.png", "/api/studies/1.2",
        "/api/jobs/99", "/api/models/none", "/studies/" + "1" * 65,
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(read_only: tuple[Web, Mapping[str, int]], path: str) -> None:
    web, _ = read_only
    assert web.get(path, "text/html").status_code == 404


def test_pages_that_make_no_sense_are_the_first_or_the_last(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = read_only
    for query in ("page=0", "page=-1", "page=99999999999", "page=x", "state=nothing", "page=900&state=held"):
        assert web.get(f"/?{query}", "text/html").status_code == 200
        assert web.get(f"/jobs?{query}", "text/html").status_code == 200
        assert web.get(f"/hold?{query}", "text/html").status_code == 200


def test_the_list_has_pages(tmp_path: Path) -> None:
    with Web(tmp_path, sections=SECTIONS) as web:
        for number in range(45):
            web.now += timedelta(seconds=1)
            receive(web, make_series(f"many {number}")[:1])
        first, second = get_page(web, "/"), get_page(web, "/?page=2")
        assert (first.count('<li class="study"'), second.count('<li class="study"')) == (40, 5)
        assert 'rel="next" href="/?page=2"' in first
        assert 'rel="prev" href="/"' in second
        assert study_uid("many 44") in first
        assert study_uid("many 4") in second


def test_a_page_costs_as_many_queries_with_many_studies_as_with_few(tmp_path: Path) -> None:
    with Web(tmp_path, sections=SECTIONS) as web:
        counts = []
        for study in range(12):
            receive(web, make_series(f"one {study}")[:2])
            if study in (0, 11):
                observed: list[str] = []
                listener = lambda *edit, observed=observed: observed.append(edit[2])  # noqa: E731
                event.listen(web.engine, "before_cursor_execute", listener)
                get_page(web, "/")
                event.remove(web.engine, "before_cursor_execute", listener)
                counts.append(len(observed))
        assert counts[0] == counts[1] < 25


def test_a_study_shows_what_came_what_was_made_and_why(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, made = read_only
    text = get_page(web, f"/studies/{study_uid('held')}")
    for words in (
        "FLAIR 3D sagittal", "9 instances", "low-confidence fraction 0.184 is above 0.15", "SYN Synthetic DIR",
        "matched on ", "SeriesDescription is", "Job 4 running → held", "Open in viewer with held results",
        f"/viewer/review?StudyInstanceUIDs={study_uid('held')}",
    ):  # fmt: skip
        assert words in text
    assert "no series matches; nearest failed on SeriesDescription" in get_page(
        web, f"/studies/{study_uid('unrouted')}"
    )
    text = get_page(web, f"/studies/{study_uid('partly')}")
    assert "no association: connection refused" in text
    assert f'href="/jobs/{made["partly"]}"' in text


def test_thumbnails_are_small_pictures_of_the_series(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = read_only
    answer = web.get(f"/studies/{study_uid('held')}/thumbnail")
    assert answer.headers["content-type"] == "image/jpeg"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"))
    assert picture.shape == (120, 120)
    assert picture[60, 30:90].mean() > 100 > picture[:10, :10].mean()


def test_source_result_and_uncertainty_are_of_one_slice(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, made = read_only
    text = get_page(web, "/hold")
    addresses = re.findall(r'<img src="(/jobs/\d+/pictures/[0-9.]+)"', text)
    assert len(addresses) == 4
    assert [re.sub(r":.*", "", words) for words in re.findall(r'<img src="/jobs/[^>]*? alt="([^"]*)"', text)] == [
        "Source", "Synthetic result", "Synthetic uncertainty or map", "Synthetic segmentation",
    ]  # fmt: skip
    assert web.get(f"/jobs/{made['held']}/depth").json() == {"slices": 9, "first": 4}
    ends = [_grey(web, addresses[0], at) for at in (0, 8)]
    for at, expected in ((0, ends[0]), (8, ends[1])):
        assert np.corrcoef(_grey(web, addresses[1], at)[:96].ravel(), expected.ravel())[0, 1] > 0.97
    assert _grey(web, addresses[1], 4).shape[1] == _grey(web, addresses[0], 4).shape[1] == 96
    middle = np.asarray(Image.open(io.BytesIO(web.get(f"{addresses[2]}?size=96").content)))
    assert np.ptp(middle.astype(int), axis=2).max() > 60, "the uncertainty is in colours"


def _grey(web: Web, address: str, at: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    answer = web.get(f"{address}?at={at}&size=96")
    assert answer.status_code == 200
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"), float)


def decide(web: Web, id: int, decision: str, **fields: str) -> httpx.Response:
    origin, who = {"Origin": web.address}, {"who": "MK"} if decision in ("release", "discard") else {}
    return web.client.post(f"/jobs/{id}/{decision}", data=who | fields, headers=origin)


def event_reasons(web: Web, id: int) -> list[str]:
    return [
        row.detail.get("reason", "") for row in web.rows(Event) if (row.subject, row.subject_id) == ("jobs", str(id))
    ]


def test_a_release_delivers_once_and_the_trail_says_who_and_why(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, made = decidable
    answer = decide(web, made["held"], "release", reason="looks  right\nto me", who="MK", back="/hold")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/hold?done=release-{made['held']}")
    assert f"Job {made['held']}: its results are released" in get_page(web, answer.headers["location"])
    assert load_job(web, made["held"]).state is JobState.DONE
    assert "released at the dashboard by MK: looks right to me" in event_reasons(web, made["held"])
    waiting = len(web.rows(Delivery))
    again = decide(web, made["held"], "release", reason="again")
    assert again.status_code == 409
    assert "cannot be released" in again.text
    assert len(web.rows(Delivery)) == waiting
    with web.sessions() as session:
        assert audit.verify(session) is None


def test_a_discarded_result_is_delivered_nowhere(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, made = decidable
    before = len(web.rows(Delivery))
    assert decide(web, made["held"], "discard", reason="motion").status_code == 303
    assert load_job(web, made["held"]).state is JobState.CANCELLED
    assert len(web.rows(Delivery)) == before
    (row,) = (each for each in re.split(r'<li class="study"', get_page(web, "/")) if study_uid("held") in each)
    assert '<span class="chip cancelled">Discarded</span>' in row
    assert "Cancelled" not in row
    assert 'Delivered</span><span class="hidden">: nothing to deliver' in row
    assert decide(web, made["held"], "release", reason="after all").status_code == 409
    assert "Nothing waits for a decision" in get_page(web, "/hold")


def test_a_result_discarded_in_the_hold_queue_is_still_read_and_called_so(
    decidable: tuple[Web, Mapping[str, int]],
) -> None:
    web, made = decidable
    decide(web, made["held"], "discard", reason="motion")
    reading = f"/studies/{study_uid('held')}/reading?job={made['held']}"
    for page in (f"/studies/{study_uid('held')}", f"/jobs/{made['held']}"):
        assert f'href="{reading}">Read the discarded result' in get_page(web, page)
    text = get_page(web, reading)
    assert "<b>Discarded</b> This result was held and not released: " in text
    assert "motion" in text
    assert 'name="verdict"' not in text, "it is read only"
    assert "data-viewer" not in text, "the viewer has no discarded results"


def test_pages_say_that_no_worker_runs_until_one_reports(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = decidable
    for path in ("/", "/system"):
        assert "<b>No worker runs</b>, so no job starts" in get_page(web, path)
    with web.sessions.begin() as session:
        workers.report(session, "here:7", gpus={}, now=web.now)
    for path in ("/", "/system"):
        assert "No worker runs" not in get_page(web, path)
    assert "1 worker</p>" in get_page(web, "/system")


@pytest.mark.parametrize("decision", ["release", "discard"])
def test_a_decision_needs_initials_and_a_reason(decidable: tuple[Web, Mapping[str, int]], decision: str) -> None:
    web, made = decidable
    for fields in ({"reason": "", "who": "MK"}, {"reason": "motion", "who": " "}):
        assert decide(web, made["held"], decision, **fields).status_code == 400
    assert load_job(web, made["held"]).state is JobState.HELD


@pytest.mark.parametrize("name", ["dead", "refused", "cancelled"])
def test_what_failed_runs_again_once(decidable: tuple[Web, Mapping[str, int]], name: str) -> None:
    web, made = decidable
    assert decide(web, made[name], "retry", back="/failures").status_code == 303
    assert load_job(web, made[name]).state is JobState.READY
    assert decide(web, made[name], "retry").status_code == 409


@pytest.mark.parametrize("name", ["running", "waiting"])
def test_a_job_is_cancelled_once(decidable: tuple[Web, Mapping[str, int]], name: str) -> None:
    web, made = decidable
    assert decide(web, made[name], "cancel").headers["location"] == f"/jobs/{made[name]}?done=cancel-{made[name]}"
    assert load_job(web, made[name]).state is JobState.CANCELLED
    assert decide(web, made[name], "cancel").status_code == 409


def test_deliveries_that_were_given_up_are_tried_again_once(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = decidable
    answer = web.client.post("/destinations/pacs/resend", data={"back": "/failures"})
    assert answer.headers["location"] == "/failures?done=resend-4"
    assert not [row for row in web.rows(Delivery) if row.state is DeliveryState.GIVEN_UP]
    assert web.client.post("/destinations/pacs/resend").status_code == 409
    assert web.client.post("/destinations/nobody/resend").status_code == 409


def test_a_study_is_taken_as_complete_by_hand(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = decidable
    assert web.client.post(f"/studies/{study_uid('receiving')}/close").status_code == 303
    assert web.client.post(f"/studies/{study_uid('receiving')}/close").status_code == 409
    assert web.client.post("/studies/1.2.3/close").status_code == 404
    with web.sessions() as session:
        study = session.scalar(select(Study).where(Study.study_uid == study_uid("receiving")))
        assert study is not None
        assert study.completed_by == "closed by hand"


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_another_sites_page_decides_nothing(decidable: tuple[Web, Mapping[str, int]], headers: dict[str, str]) -> None:
    web, made = decidable
    for path in (f"/jobs/{made['held']}/release", "/destinations/pacs/resend", "/peers/pacs/echo", "/"):
        assert web.client.post(path, data={"reason": "x"}, headers=headers).status_code == 403
    assert load_job(web, made["held"]).state is JobState.HELD


def test_nothing_is_decided_by_get(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, made = decidable
    for decision in ("release", "discard", "retry", "cancel"):
        assert web.get(f"/jobs/{made['held']}/{decision}").status_code == 405
    assert load_job(web, made["held"]).state is JobState.HELD


def test_a_decision_leads_to_no_other_site(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, made = decidable
    answer = decide(web, made["waiting"], "cancel", back="//evil.example")
    assert answer.headers["location"].startswith(f"/jobs/{made['waiting']}?")
    assert decide(web, made["held"], "destroy").status_code == 404
    assert decide(web, 99, "release", reason="none").status_code == 404
    assert decide(web, made["held"], "release", reason="x" * 20_000).status_code == 413
    assert load_job(web, made["held"]).state is JobState.HELD


def test_an_echo_says_what_the_peer_said(tmp_path: Path) -> None:
    with Answering(lambda event: 0) as answering:
        peers = [{"name": "there", "ae_title": "SERVER", "port": answering.peer.port}, PEERS[0]]
        with Web(tmp_path, sections={"peers": peers}) as web:
            assert re.search(r"C-ECHO: answered in \d+ ms", web.client.post("/peers/there/echo").text)
            assert 'class="echo bad"' in web.client.post("/peers/pacs/echo").text
            assert web.client.post("/peers/nobody/echo").status_code == 404


def test_the_api_tells_what_the_command_line_does(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, made = read_only
    studies = web.get("/api/studies").json()
    assert len(studies) == 12
    assert "Meier" not in json.dumps(studies)
    assert len(web.get("/api/studies?limit=5&offset=10").json()) == 2
    assert [row["id"] for row in web.get("/api/jobs?state=held").json()] == [made["held"]]
    assert web.get(f"/api/jobs/{made['held']}").json()["report"]["verdict"] == "hold"
    assert web.get(f"/api/studies/{study_uid('held')}").json()["jobs"][0]["state"] == "held"
    assert web.get(f"/api/studies/{study_uid('unrouted')}/explain").json()[0]["matched"] == []
    assert web.get("/api/status").json()["jobs"]["held"] == 1
    assert {"anatomy", "mri_prior"} <= {row["name"] for row in web.get("/api/models").json()}
    assert [row["name"] for row in web.get("/api/peers").json()] == ["pacs", "research"]
    assert web.get("/api/jobs?state=nothing").status_code == 400


def test_a_finished_study_without_destinations_says_so_in_one_wording(now: datetime) -> None:
    done = Tally(jobs=(Job(state=JobState.DONE, pipeline="ms_lesions", progress=1.0),))
    progress = study_progress.describe_study_progress(Study(state=StudyState.ROUTED, completed_by=""), done, {}, now)
    assert progress.headline == "Finished, nothing to deliver"
    assert progress.steps[-1].text == "nothing to deliver"


def test_remaining_time_follows_its_own_speed_and_earlier_jobs() -> None:
    assert study_progress.estimate_remaining_s(0.0, 10, None) is None
    assert study_progress.estimate_remaining_s(0.0, 10, 60) == 50
    assert study_progress.estimate_remaining_s(0.0, 100, 60) == 0
    assert study_progress.estimate_remaining_s(0.5, 30, None) == pytest.approx(30)
    assert study_progress.estimate_remaining_s(0.9, 90, 100) == pytest.approx(10)
    slow = study_progress.estimate_remaining_s(0.9, 900, 100)
    assert slow is not None
    assert slow > 90


@pytest.mark.parametrize(
    ("percent", "remaining_s", "text"),
    [
        (0, None, "0 %"), (0, 50.0, "0 %, about 50 s left"), (0, 0.0, "0 %, longer than the last runs"),
        (1, 0.3, "1 %, about 1 s left"), (49, 0.0, "49 %, longer than the last runs"),
        (99, 0.2, "99 %, nearly finished"),
    ],
)  # fmt: skip
def test_a_job_that_has_just_begun_is_not_nearly_finished(percent: int, remaining_s: float | None, text: str) -> None:
    assert study_progress.JobProgress(1, percent, "", remaining_s).text == text


def listen_until_line(web: Web, until: str, lines: list[str], ready: threading.Event) -> None:
    with httpx.Client(base_url=web.address, timeout=30) as client, client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            lines.append(line)
            if line == "event: hello":
                ready.set()
            if until and until in line:
                return


def test_listeners_hear_of_a_change_and_of_progress(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, made = decidable
    received: list[list[str]] = [[] for _ in range(3)]
    ready = [threading.Event() for _ in received]
    threads = [
        threading.Thread(target=listen_until_line, args=(web, '"jobs"', *each))
        for each in zip(received, ready, strict=True)
    ]
    for thread in threads:
        thread.start()
    assert all(each.wait(20) for each in ready)
    decide(web, made["held"], "discard", reason="x")
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    for lines in received:
        assert any("42, " in line and '"sampling 17 of 40"' in line for line in lines)


def test_the_server_stops_at_once_while_somebody_listens(tmp_path: Path) -> None:
    with Web(tmp_path, sections=SECTIONS) as web:
        app = create_app(web.config, web.sessions, now=lambda: web.now)
        running = server.start_server(app, "127.0.0.1", 0)
        ready, ended = threading.Event(), threading.Event()

        def follow() -> None:
            with httpx.Client(timeout=30) as client, client.stream("GET", f"{running.address}/events") as answer:
                for _ in answer.iter_lines():
                    ready.set()
            ended.set()

        thread = threading.Thread(target=follow)
        thread.start()
        assert ready.wait(20)
        running.stop()
        assert ended.wait(20), "the stream was ended, not cut off by the server's patience"
        thread.join()


def test_a_look_at_the_list_of_events_folds_arrivals(read_only: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = read_only
    text = get_page(web, "/system")
    assert "9 instances received from MR1" in text
    assert "Job 4 running → held" in text


def test_a_report_page_among_the_results_is_shown_as_it_is(decidable: tuple[Web, Mapping[str, int]]) -> None:
    web, made = decidable
    decide(web, made["waiting"], "cancel")
    report = Page(np.random.default_rng(1).integers(0, 255, (40, 30, 3), np.uint8), b"%PDF-1.4 a page")
    images = make_series("paged")
    route_study(web, receive(web, images))
    finish_job(web, claim_job(web), make_results(images, report))
    png = web.get(f"/studies/{study_uid('paged')}/report.png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.content)).convert("RGB")), report.pixels)
    pdf = web.get(f"/studies/{study_uid('paged')}/report.pdf")
    assert (pdf.headers["content-type"], pdf.content) == ("application/pdf", report.pdf)
    assert "SYN Report page" in get_page(web, f"/studies/{study_uid('paged')}")


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_report_page_is_drawn_on_demand_by_another_process(
    read_only: tuple[Web, Mapping[str, int]], kind: str, begins: bytes
) -> None:
    web, _ = read_only
    assert f'/studies/{study_uid("delivered")}/report.{kind}"' in get_page(web, f"/studies/{study_uid('delivered')}")
    answer = web.client.get(f"/studies/{study_uid('delivered')}/report.{kind}", timeout=120)
    assert answer.content.startswith(begins)
    assert web.get(f"/studies/{study_uid('delivered')}/report.{kind}").content == answer.content
    assert web.get(f"/studies/{study_uid('unrouted')}/report.{kind}").status_code == 404
    assert web.get(f"/studies/{study_uid('delivered')}/report.exe").status_code == 404
