"""Orders of workitems: how long they wait, what they may state, updates in between, and whose settings hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from db import studies
from db.models import Job
from db.states import StudyState
from dicomnode.config import Config
from dicomnode.errors import ConfigError, NotAllowed
from dicomnode.execution import option_process
from dicomnode.worklist import orders
from dicomnode.worklist.performing import Performer
from tests.web_node import Web
from tests.web_studies import PEERS, ROUTES, study_uid
from tests.work_orders import (
    UID,
    create,
    make_study,
    name_series,
    option,
    order,
    run_to_canceled,
    series_uid,
    step,
)
from tests.workitems import read, send, to_json


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    sections = {"worklist": {"enabled": True}, "routes": ROUTES, "peers": PEERS}
    with Web(tmp_path, sections=sections) as running:
        yield running


@pytest.fixture
def performer(web: Web) -> Performer:
    return Performer(web.sessions, web.config)


@pytest.mark.parametrize("start", ["20261124080000+0000", "20261124"])
def test_a_workitem_that_is_scheduled_ahead_waits_from_its_start(web: Web, performer: Performer, start: str) -> None:
    create(web, order("flair-to-dir", ScheduledProcedureStepStartDateTime=start))
    web.now += timedelta(days=4, hours=1)
    assert step(web, performer) == 0
    assert read(web.client, UID).ProcedureStepState == "SCHEDULED"
    web.now += timedelta(hours=24)
    assert "waited 24 h: the study is not here" in run_to_canceled(web, performer)


def test_a_workitem_whose_inputs_become_ready_late_waits_from_then(web: Web, performer: Performer) -> None:
    create(web, order("flair-to-dir", InputReadinessState="INCOMPLETE"))
    web.now += timedelta(days=2)
    ready = to_json({"InputReadinessState": "READY"})
    assert send(web.client, "POST", f"/workitems/{UID}", ready).status_code == 200
    assert step(web, performer) == 0
    assert read(web.client, UID).ProcedureStepState == "SCHEDULED"


def test_options_that_are_not_one_finite_number_are_canceled(web: Web, performer: Performer) -> None:
    values: list[dict[str, Any]] = [
        {"0040A30A": {"vr": "DS", "Value": value}} for value in ([None, 3], [1, 2], ["1e400"], ["-1e400"])
    ]
    values += [{"0040A160": {"vr": "UT", "Value": [word]}} for word in ("Infinity", "NaN", "1e400", "[1e400]")]
    make_study(web)
    for at, value in enumerate(values):
        workitem = order("flair-to-dir", ScheduledProcessingParametersSequence=[option("passes")])
        workitem["00741210"]["Value"][0] |= value
        create(web, workitem, f"1.2.{at}")
    assert step(web, performer) == len(values)
    for at in range(len(values)):
        (item,) = read(web.client, f"1.2.{at}").ProcedureStepProgressInformationSequence
        assert re.search("'passes' (is not finite|has to have one Numeric Value)", item.ReasonForCancellation)
    assert web.rows(Job) == []


def test_a_workitem_that_fails_stops_no_other(
    web: Web, performer: Performer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read_order = orders.read_order

    def fail(uid: str, *arguments: Any) -> orders.Order:
        if uid == UID:
            raise TypeError("Meier^Erika")
        return read_order(uid, *arguments)

    monkeypatch.setattr(orders, "read_order", fail)
    make_study(web)
    create(web, order("flair-to-dir"))
    create(web, order("flair-to-dir"), "1.2.9")
    assert [step(web, performer) for _ in range(2)] == [1, 0]
    assert read(web.client, "1.2.9").ProcedureStepState == "IN PROGRESS"
    assert read(web.client, UID).ProcedureStepState == "SCHEDULED"
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == [f"workitem {UID}: TypeError"]


@pytest.mark.parametrize("claims_to_cancel", [False, True])
def test_an_update_between_reading_and_claiming_counts(
    web: Web, performer: Performer, monkeypatch: pytest.MonkeyPatch, claims_to_cancel: bool
) -> None:
    peer = [{"DICOMStorageSequence": [{"DestinationAE": "ARCHIVE"}]}]
    updates = [to_json({"OutputDestinationSequence": peer})]

    def update_first(*_: object) -> None:
        if updates:
            assert send(web.client, "POST", f"/workitems/{UID}", updates.pop()).status_code == 200
            if claims_to_cancel:
                raise ConfigError("an option is wrong")

    monkeypatch.setattr(option_process, "check_route", update_first)
    make_study(web)
    create(web, order("flair-to-dir"))
    assert step(web, performer) == 0
    assert read(web.client, UID).ProcedureStepState == "SCHEDULED"
    step(web, performer)
    (job,) = web.rows(Job)
    assert job.destinations == ["research"]


def test_a_study_that_receives_again_before_the_claim_is_waited_for(
    web: Web, performer: Performer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive_more(*_: object) -> None:
        with web.sessions.begin() as session:
            study = studies.find_by_uid(session, study_uid("a"))
            assert study is not None
            study.state = StudyState.RECEIVING

    monkeypatch.setattr(option_process, "check_route", receive_more)
    make_study(web)
    create(web, order("flair-to-dir"))
    assert step(web, performer) == 0
    assert web.rows(Job) == []


def test_the_settings_of_the_route_hold_for_its_workitems(tmp_path: Path) -> None:
    hook = {"name": "ward", "url": "http://127.0.0.1:1/", "events": ["failed"]}
    sections: dict[str, Any] = {
        "worklist": {"enabled": True}, "peers": PEERS, "routes": [ROUTES[0] | {"refusal_note": True}],
        "notifications": {"webhook": [hook | {"routes": ["flair-to-dir"]}, hook | {"name": "all"}]},
    }  # fmt: skip
    with Web(tmp_path, sections=sections) as web:
        performer = Performer(web.sessions, web.config)
        make_study(web)
        create(web, order("flair-to-dir"))
        create(web, order("synthetic_dir"), "1.2.9")
        step(web, performer)
        found = {job.route: (sorted(job.notify), web.config.sends_refusal_notes(job.route)) for job in web.rows(Job)}
        assert found == {f"workitem:{UID}:flair-to-dir": (["all", "ward"], True), "workitem:1.2.9": (["all"], False)}


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_part_of_a_series_is_refused(web: Web, performer: Performer, is_whole: bool) -> None:
    images = make_study(web)
    references = [
        {"ReferencedSOPClassUID": ds.SOPClassUID, "ReferencedSOPInstanceUID": ds.SOPInstanceUID}
        for ds in (images if is_whole else images[1:])
    ]
    item = {"StudyInstanceUID": study_uid("a"), "SeriesInstanceUID": images[0].SeriesInstanceUID}
    create(web, order("flair-to-dir", InputInformationSequence=[item | {"ReferencedSOPSequence": references}]))
    if is_whole:
        assert step(web, performer) == 1
        assert len(web.rows(Job)) == 1
    else:
        assert "names a part of series" in run_to_canceled(web, performer)
        assert web.rows(Job) == []


def test_a_named_series_that_the_route_does_not_take_is_canceled_by_name(web: Web, performer: Performer) -> None:
    make_study(web, "a", "localizer")
    create(web, order("flair-to-dir", InputInformationSequence=name_series(1, 2)))
    assert run_to_canceled(web, performer) == (
        f"flair-to-dir cannot use what is named; series {series_uid(2)} is none of its inputs: "
        "SeriesDescription is 'localizer' (wanted ~(?i)flair)"
    )
    assert web.rows(Job) == []


def test_named_series_go_before_others_as_further_inputs(tmp_path: Path) -> None:
    route = ROUTES[0] | {"with": {"t1w": {"SeriesDescription": "~T1"}}}
    with Web(tmp_path, sections={"worklist": {"enabled": True}, "peers": PEERS, "routes": [route]}) as web:
        performer = Performer(web.sessions, web.config)
        make_study(web, "a", "T1 before", "T1 after")
        create(web, order("flair-to-dir", InputInformationSequence=name_series(1, 3)))
        step(web, performer)
        with web.sessions() as session:
            (job,) = session.query(Job)
            taken = {(each.name, each.instance.series.series_uid) for each in job.inputs}
            assert taken == {("match", series_uid(1)), ("t1w", series_uid(3))}
        create(web, order("flair-to-dir", InputInformationSequence=name_series(1, 2, 3)), "1.2.9")
        step(web, performer)
        (item,) = read(web.client, "1.2.9").ProcedureStepProgressInformationSequence
        assert f"series {series_uid(3)} is none of its inputs: another series is already the input t1w" in (
            item.ReasonForCancellation
        )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"StudyInstanceUID": study_uid("a")}, "names a whole study beside series of it"),
        (
            {"StudyInstanceUID": study_uid("a"), "ReferencedSOPSequence": [{"ReferencedSOPInstanceUID": "1.2"}]},
            "names instances without their series",
        ),
        ({"TypeOfInstances": "CDA"}, "names no study; one is a must"),
    ],
)
def test_input_items_of_which_a_part_would_be_ignored_are_refused(
    tmp_path: Path, item: dict[str, Any], message: str
) -> None:
    config = Config(routes=ROUTES, path=tmp_path / "node.toml")
    values = order("flair-to-dir", InputInformationSequence=[*name_series(1), item])
    with pytest.raises(NotAllowed, match=message):
        orders.read_order(UID, values, config)
