"""The database stores states, times and events correctly, on both kinds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session, sessionmaker

from db import audit, jobs, migrations, studies
from db.engine import connect, readers
from db.models import Base, Event, Job, Study
from db.states import TRANSITIONS, InvalidTransition, JobState, StudyState
from tests.rows import add_job, make_arrival


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index ix_instances_number")
def test_migrated_schema_equals_the_models(engine: Engine, tmp_path: Path) -> None:
    """The comparison leaves out one index on an expression, which each database writes in its own way."""
    opts = {"compare_server_default": True, "include_name": lambda name, *_: name != "ix_instances_number"}
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, Base.metadata) == []
    assert migrations.current(engine) == migrations.head()


def test_migrations_check_the_same_states_as_the_models(engine: Engine) -> None:
    created = connect("sqlite://")
    Base.metadata.create_all(created)
    for table in Base.metadata.tables:
        migrated = {check["name"] for check in inspect(engine).get_check_constraints(table)}
        assert migrated == {check["name"] for check in inspect(created).get_check_constraints(table)}
    created.dispose()


def test_upgrade_may_be_called_again(engine: Engine) -> None:
    migrations.upgrade(engine)
    assert migrations.current(engine) == migrations.head()


def test_states_are_stored_as_values_and_checked(
    engine: Engine, sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        add_job(session, now)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT state FROM jobs")) == "ready"
        assert connection.scalar(text("SELECT state FROM studies")) == "receiving"
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'READY'"))


def test_moments_come_back_in_utc(sessions: sessionmaker[Session]) -> None:
    moment = datetime(2026, 3, 29, 3, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=moment)
    with sessions() as session:
        stored = session.query(Study).one().opened_at
        assert stored == moment
        assert stored.tzinfo is UTC


def test_moment_without_zone_is_refused(sessions: sessionmaker[Session]) -> None:
    with pytest.raises(StatementError, match="without time zone"), sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=datetime(2026, 1, 1))


def test_sqlite_is_durable_and_keeps_foreign_keys(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'node.sqlite'}")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    engine.dispose()


def test_reader_does_not_wait_for_a_writer(engine: Engine, sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as writer:
        studies.register_instances(writer, [make_arrival()], now=now)
        with readers(engine)() as reader:
            assert reader.query(Study).count() == 0


def test_forbidden_move_changes_nothing(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        job = add_job(session, now)
        with pytest.raises(InvalidTransition, match="ready may not become done"):
            audit.transition(session, job, JobState.DONE, reason="no", now=now)
        assert job.state is JobState.READY


def test_every_state_has_its_moves() -> None:
    for states, moves in TRANSITIONS.items():
        assert set(moves) == set(states)


def test_move_writes_its_event_in_the_same_transaction(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        add_job(session, now)
    with sessions() as session:
        jobs.claim(session, worker="w", lease_s=10, now=now)
        session.rollback()
    with sessions.begin() as session:
        assert session.query(Job).one().state is JobState.READY
        assert session.query(Event).filter_by(event="moved").count() == 0
        jobs.claim(session, worker="w", lease_s=10, now=now)
    with sessions() as session:
        event = session.query(Event).filter_by(event="moved").one()
        assert (event.detail["from"], event.detail["to"]) == ("ready", "running")
        assert audit.verify(session) is None


def test_changed_event_breaks_the_chain(engine: Engine, sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival(number=n) for n in range(1, 4)], now=now)
    with engine.begin() as connection:
        connection.execute(text("UPDATE events SET subject_id = '99' WHERE seq = 2"))
    with sessions() as session:
        assert audit.verify(session) == audit.Break(2, "was changed after it was written")


@pytest.mark.parametrize(("seq", "why"), [(1, "missing"), (2, "missing"), (3, "missing at the end")])
def test_removed_event_breaks_the_chain(
    engine: Engine, sessions: sessionmaker[Session], now: datetime, seq: int, why: str
) -> None:
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival(number=n) for n in range(1, 4)], now=now)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM events WHERE seq = :seq"), {"seq": seq})
    with sessions() as session:
        assert audit.verify(session) == audit.Break(seq, why)


def test_study_states_are_a_closed_table(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=now)
        study = studies.find_by_uid(session, "1.2.1")
        assert study is not None
        with pytest.raises(InvalidTransition):
            audit.transition(session, study, StudyState.ROUTED, reason="not complete yet", now=now)
