"""``dicomnode worklist`` and the page /worklist: what is listed, what names nobody, and cancelling by hand."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from db import engine as engines
from db import workitems
from db.models import Event
from dicomnode import cli, config
from dicomnode.worklist import transactions
from tests import databases
from tests.peers import write_config
from tests.web_node import Web
from tests.workitems import make_workitem, read, send, to_json

OPEN, CLAIMED, ENDED = "1.2.1", "1.2.2", "1.2.3"


def claim(state: str = "IN PROGRESS") -> dict[str, Any]:
    return to_json({"ProcedureStepState": state, "TransactionUID": "1.9"})


@pytest.fixture
def node_file(tmp_path: Path, now: datetime) -> Path:
    """Return the node.toml of a node with an open, a claimed and an ended workitem."""
    path = write_config(tmp_path, worklist={"enabled": True})
    loaded = config.load(path)
    databases.prepare(loaded)
    engine = engines.connect(loaded.database_url)
    inputs = [{"StudyInstanceUID": "1.7"}]
    with engines.sessions(engine).begin() as session:
        for uid in (OPEN, CLAIMED, ENDED):
            workitem = make_workitem(InputInformationSequence=inputs)
            transactions.create(session, uid, workitem, most=9, who="test", now=now)
        transactions.change_state(session, CLAIMED, claim(), who="PACS2", now=now)
        transactions.request_cancellation(session, ENDED, {}, who="test", now=now)
    engine.dispose()
    return path


def test_the_commands_list_show_and_cancel(node_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str]:
        status = cli.main(["--config", str(node_file), "worklist", *words])
        return status, capsys.readouterr().out

    status, out = run("list", "--json")
    assert (status, [(row["uid"], row["state"]) for row in json.loads(out)]) == (
        0, [(OPEN, "SCHEDULED"), (CLAIMED, "IN PROGRESS"), (ENDED, "CANCELED")],
    )  # fmt: skip
    assert "Meier" not in out
    assert "P-1" not in out
    status, out = run("list", "--state", "CANCELED")
    assert (status, ENDED in out, OPEN in out) == (0, True, False)
    assert run("list", "--state", "nonsense")[0] == 2
    status, out = run("show", CLAIMED, "--json")
    assert (status, json.loads(out)["studies"], json.loads(out)["performer"]) == (0, ["1.7"], "PACS2")
    assert "MS lesions" in run("show", CLAIMED)[1]
    assert run("cancel", OPEN, "--reason", "wrong patient", "--who", "MK") == (0, f"workitem {OPEN} is CANCELED\n")
    assert json.loads(run("show", OPEN, "--json")[1])["note"] == "wrong patient"
    assert run("cancel", CLAIMED, "--reason", "late") == (
        0, f"workitem {CLAIMED} is IN PROGRESS: its performer is asked to cancel it\n",
    )  # fmt: skip
    assert [run(words, "1.2.99")[0] for words in ("show", "cancel")] == [1, 1]


def test_a_progress_that_is_no_finite_number_breaks_no_page(tmp_path: Path) -> None:
    progress = to_json({"TransactionUID": "1.9", "ProcedureStepProgressInformationSequence": [{}]})
    progress["00741002"]["Value"][0]["00741004"] = {"vr": "DS", "Value": ["1e999"]}
    with Web(tmp_path, sections={"worklist": {"enabled": True, "performs": False}}) as web:
        send(web.client, "POST", f"/workitems?workitem={CLAIMED}", make_workitem())
        send(web.client, "PUT", f"/workitems/{CLAIMED}/state", claim())
        assert send(web.client, "POST", f"/workitems/{CLAIMED}?transaction-uid=1.9", progress).status_code == 200
        assert CLAIMED in web.get("/worklist").text


def test_the_page_lists_workitems_and_cancels_one(tmp_path: Path) -> None:
    with Web(tmp_path, sections={"worklist": {"enabled": True, "performs": False}}) as web:
        for uid in (OPEN, CLAIMED):
            assert send(web.client, "POST", f"/workitems?workitem={uid}", make_workitem()).status_code == 201
        assert send(web.client, "PUT", f"/workitems/{CLAIMED}/state", claim()).status_code == 200
        page = web.get("/worklist").text
        assert page.index(CLAIMED) < page.index(OPEN), "the newest first"
        assert 'href="/worklist" aria-current="page"' in page
        assert OPEN not in web.get("/worklist?state=IN%20PROGRESS").text
        with web.sessions() as session:
            row = workitems.find(session, OPEN)
            assert row is not None
        answer = web.client.post(f"/worklist/{row.id}/cancel", data={"who": "MK"}, follow_redirects=True)
        assert "The workitem is canceled." in answer.text
        assert read(web.client, OPEN).ProcedureStepState == "CANCELED"
        assert {"asked by MK"} & {each.detail.get("reason") for each in web.rows(Event)}
        assert web.client.post("/worklist/99/cancel", data={}).status_code == 404
        answer = web.client.post(f"/worklist/{row.id + 1}/cancel", data={}, follow_redirects=True)
        assert "asked to cancel" in answer.text
        finished = to_json({"ProcedureStepState": "CANCELED", "TransactionUID": "1.9"})
        assert send(web.client, "PUT", f"/workitems/{CLAIMED}/state", finished).status_code == 200
        assert "/cancel" not in web.get("/worklist").text


def test_pages_name_the_worklist_only_where_it_is_enabled(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        assert 'href="/worklist"' not in web.get("/jobs").text
        assert "The worklist is not enabled" in web.get("/worklist").text
