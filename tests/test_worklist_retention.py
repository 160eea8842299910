"""Retention and the worklist: open workitems keep their studies, and what they ordered without a destination may go."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import migrations, workitems
from db.models import Study
from db.workitem_rows import WorkitemStudy
from dicomnode import listings
from dicomnode.config import Config
from dicomnode.config.worklist import WorklistConfig
from dicomnode.maintenance.retention import explain_kept
from dicomnode.worklist import transactions
from tests.test_retention import NodeState
from tests.workitems import make_workitem, to_json

UID = "1.2.9"


@pytest.fixture
def node(sessions: sessionmaker[Session], tmp_path: Path, now: datetime) -> NodeState:
    return NodeState(sessions, tmp_path / "data", now)


def with_worklist(config: Config, **values: Any) -> Config:
    return config.model_copy(update={"worklist": WorklistConfig(enabled=True, **values)})


def create(session: Session, now: datetime, *study_uids: str) -> None:
    inputs = [{"StudyInstanceUID": uid} for uid in study_uids]
    workitem = make_workitem(InputInformationSequence=inputs)
    transactions.create(session, UID, workitem, most=9, who="test", now=now)


def test_an_open_workitem_keeps_the_studies_that_it_names(node: NodeState) -> None:
    study, config = node.add_study(), with_worklist(node.config)
    node.add_job(study)
    node.deliver()
    with node.sessions.begin() as session:
        create(session, node.now, "1.7", study.study_uid)
    node.pass_days(30, config)
    assert node.count_files() == 2
    with node.sessions() as session:
        row = session.get_one(Study, study.id)
        assert explain_kept(session, row, config, now=node.now) == f"workitem {UID} is SCHEDULED"
        assert listings.describe_study(session, row)["workitems"] == [{"uid": UID, "state": "SCHEDULED"}]
    with node.sessions.begin() as session:
        transactions.request_cancellation(session, UID, {}, who="test", now=node.now)
    node.pass_days(0, config)
    assert node.count_files() == 0


def test_an_update_of_the_inputs_changes_the_studies_that_are_kept(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        create(session, now, "1.7", "1.8")
        other = to_json({"InputInformationSequence": [{"StudyInstanceUID": "1.8"}, {"StudyInstanceUID": "1.6"}]})
        transactions.update(session, UID, other, "", now)
        found = [bool(workitems.list_open_of_study(session, uid)) for uid in ("1.6", "1.7", "1.8")]
        assert found == [True, False, True]
        assert workitems.delete_ended(session, before=now, locked_before=now, limit=1, now=now) == 0
        transactions.request_cancellation(session, UID, {}, who="test", now=now)
        assert not workitems.list_open_of_study(session, "1.8")
    with sessions.begin() as session:
        late = now.replace(year=2027)
        assert workitems.delete_ended(session, before=late, locked_before=late, limit=1, now=late) == 1
        assert session.scalars(select(WorkitemStudy)).all() == []


def test_workitems_from_before_name_their_studies_too(engine: Engine, now: datetime) -> None:
    with engines.sessions(engine).begin() as session:
        create(session, now, "1.7", "1.8")
    migrations.downgrade(engine, "0017")
    migrations.upgrade(engine)
    with engines.sessions(engine)() as session:
        assert [[row.uid for row in workitems.list_open_of_study(session, uid)] for uid in ("1.7", "1.8")] == [
            [UID]
        ] * 2


@pytest.mark.parametrize(("route", "files"), [(f"workitem:{UID}", 0), (f"workitem:{UID}:flair", 0), ("flair", 2)])
def test_results_ordered_without_a_destination_go_when_the_worklist_says(
    node: NodeState, route: str, files: int
) -> None:
    node.add_job(node.add_study(), to=(), route=route)
    config = with_worklist(node.make_config(sources_days=1, results_days=1), keep_results_days=40)
    node.pass_days(39, with_worklist(node.make_config(sources_days=1, results_days=1)))
    assert node.count_files() == 2, "nobody else has them"
    node.pass_days(2, config)
    assert node.count_files() == files
