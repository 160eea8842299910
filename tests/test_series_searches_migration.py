"""Migration 0008: searches for series in addition to those for prior examinations, and the downgrade."""

from __future__ import annotations

from datetime import datetime

import pytest
from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.exc import IntegrityError

from db import engine as engines
from db import migrations
from db.models import Retrieval, Study
from db.states import RetrievalPurpose


def test_what_was_searched_before_was_a_prior_and_only_those_go_back(engine: Engine, now: datetime) -> None:
    with engines.sessions(engine).begin() as session:
        study = Study(study_uid="1.2", opened_at=now, last_received_at=now)
        session.add(study)
        session.flush()
        both = {"study_id": study.id, "revision": 1, "route": "r", "peer": "pacs", "series_uids": [], "created_at": now}
        session.add_all(Retrieval(purpose=purpose, **both) for purpose in RetrievalPurpose)
    migrations.downgrade(engine, "0007")
    assert "purpose" not in {column["name"] for column in inspect(engine).get_columns("prior_searches")}
    again = text("INSERT INTO prior_searches (study_id, revision, route, peer, state, prior_study_uid, series_uids,"
                 " reason, created_at) SELECT study_id, revision, route, peer, state, '', '[]', '', created_at"
                 " FROM prior_searches")  # fmt: skip
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(again)
    update = text("UPDATE prior_searches SET state = 'nonsense'")
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(update)
    migrations.upgrade(engine)
    with engines.readers(engine)() as session:
        (search,) = session.scalars(select(Retrieval)).all()
        assert (search.purpose, search.attempts, search.not_before) == (RetrievalPurpose.PRIOR, 0, None)
