"""Each destination gets its preferred kinds, or the next that it accepts, and the rows record the choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import destinations, jobs
from db.models import Delivery, Event, Job, Output
from db.states import DeliveryState, JobState
from dicomnode import results
from dicomnode.config import Config, Peer
from dicomnode.config.node import NodeConfig
from dicomnode.config.results import Preferences, ResultsConfig
from dicomnode.delivery import negotiation
from dicomnode.delivery.delivery import deliver_due
from dicomnode.execution import job_run, renditions
from dicomnode.execution.processing import TaskResult
from pipelines.quality import Outcome, Verdict
from tests.findings import NOW, PROVENANCE, grid, make_findings, source
from tests.peers import free_port
from tests.rows import add_job

Sessions = sessionmaker[Session]
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
EVERYTHING = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
MULTIFRAME = MultiFrameGrayscaleWordSecondaryCaptureImageStorage


@contextmanager
def serve_storage(port: int, *refused: str) -> Iterator[list[str]]:
    """Serve storage of every class but the refused ones; yield the classes received, in order."""
    got: list[str] = []

    def store(event: evt.Event) -> int:
        got.append(str(event.request.AffectedSOPClassUID))
        return 0x0000

    ae = AE("SERVER")
    for uid in sorted(EVERYTHING - set(refused)):
        ae.add_supported_context(uid)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield got
    finally:
        server.shutdown()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(node=NodeConfig(data_dir=tmp_path / "data"))


def make_peer(name: str = "pacs", port: int | None = None, **preferences: Any) -> Peer:
    return Peer(name=name, ae_title="SERVER", port=port or free_port(), **preferences)


def with_peers(config: Config, *peers: Peer) -> Config:
    return config.model_copy(update={"peers": peers})


def end_job(
    sessions: Sessions, config: Config, to: list[str], now: datetime, *, held: str = ""
) -> dict[str, negotiation.KindChoice]:
    """End a job as the worker ends it, with findings in place of a pipeline."""
    findings = make_findings(grid("axial")).findings
    verdict = Verdict(Outcome.HOLD, (held,)) if held else Verdict()
    chosen = negotiation.negotiate_kinds(sessions, config, to, now=now)

    def write_results(form: ResultsConfig) -> list[Dataset]:
        return results.write(findings, [source()], PROVENANCE, form, NOW, verdict)

    forms = {form: write_results(form) for form in negotiation.list_renditions(chosen) if form != config.results}
    produced = TaskResult(write_results(config.results), {}, held, forms)
    outputs = job_run.store_outputs(config, produced, chosen)
    with sessions.begin() as session:
        job = add_job(session, now, destinations=to)
        jobs.claim(session, worker="w", lease_s=60, now=now)
        reasons = {name: each.why for name, each in chosen.items() if each.why}
        jobs.finish(session, job_id=job.id, worker="w", outputs=outputs, report={}, held_because=held,
                    chosen_kinds=reasons, now=now)  # fmt: skip
    return chosen


def list_sent_classes(sessions: Sessions, name: str, *states: DeliveryState) -> list[str]:
    """Return the SOP classes of the deliveries to a destination, in the order of their rows."""
    with sessions() as session:
        rows = session.scalars(select(Delivery).where(Delivery.destination == name).order_by(Delivery.id))
        return [row.output.sop_class_uid for row in rows if not states or row.state in states]


@pytest.mark.parametrize(
    ("preferences", "refused", "kinds", "why"),
    [
        ({}, [], ("multiframe", "binary"), ""),
        ({}, [MULTIFRAME], ("single", "binary"), "single instead of multiframe"),
        ({"image_kind": "single"}, [SecondaryCaptureImageStorage], ("multiframe", "binary"), "multiframe instead"),
        ({"image_kind": "parametric"}, [ParametricMapStorage], ("multiframe", "binary"), "Parametric Map Storage"),
        ({"image_kind": "parametric"}, [ParametricMapStorage, MULTIFRAME], ("single", "binary"), "single instead"),
        ({"image_kind": "modality"}, [], ("modality", "binary"), ""),
        ({"segmentation_kind": "labelmap"}, [LABEL_MAP], ("multiframe", "binary"), "binary instead of labelmap"),
        ({"segmentation_kind": "labelmap"}, [], ("multiframe", "labelmap"), ""),
        ({}, [MULTIFRAME, SecondaryCaptureImageStorage], ("multiframe", "binary"), "takes no other kind either"),
    ],
)
def test_the_first_kind_that_is_taken_is_chosen_and_said(
    preferences: dict[str, Any], refused: list[str], kinds: tuple[str, str], why: str
) -> None:
    own = ResultsConfig().with_overrides(Preferences(**preferences))
    chosen = negotiation.choose_kinds(own, EVERYTHING - set(refused))
    assert (chosen.results.image_kind, chosen.results.segmentation_kind, chosen.spare) == (*kinds, None)
    assert why in chosen.why
    assert bool(chosen.why) == bool(why)


def test_a_page_that_is_not_taken_as_pdf_is_sent_as_a_picture() -> None:
    chosen = negotiation.choose_kinds(ResultsConfig(report_page=("pdf",)), EVERYTHING - {EncapsulatedPDFStorage})
    assert chosen.results.report_page == ("sc",)


def test_a_peer_is_asked_by_an_association_that_carries_nothing(config: Config) -> None:
    server = make_peer()
    with serve_storage(server.port, MULTIFRAME) as got:
        accepted = negotiation.query_accepted_classes(server, config)
    assert accepted >= {SecondaryCaptureImageStorage, SegmentationStorage}
    assert MULTIFRAME not in accepted
    assert got == []


@pytest.mark.slow
def test_every_destination_gets_its_own_kinds(sessions: Sessions, config: Config, now: datetime) -> None:
    plain, maps, old = (
        make_peer("plain"),
        make_peer("maps", segmentation_kind="labelmap", clean=False),
        make_peer("old"),
    )
    config = with_peers(config, plain, maps, old)
    with (
        serve_storage(plain.port) as one,
        serve_storage(maps.port) as two,
        serve_storage(old.port, MULTIFRAME) as three,
    ):
        chosen = end_job(sessions, config, ["plain", "maps", "old"], now)
        deliver_due(sessions, config, now=lambda: now)
    report = "1.2.840.10008.5.1.4.1.1.88.34"
    assert sorted(one) == sorted([MULTIFRAME, MULTIFRAME, ParametricMapStorage, SegmentationStorage, report])
    assert sorted(two) == sorted([MULTIFRAME, ParametricMapStorage, LABEL_MAP, report])
    assert sorted(three) == sorted(
        [*[SecondaryCaptureImageStorage] * 8, ParametricMapStorage, SegmentationStorage, report]
    )
    assert "does not take" in chosen["old"].why
    with sessions() as session:
        (event,) = session.scalars(select(Event).where(Event.event == "kinds chosen"))
        assert event.detail == {"old": chosen["old"].why}


@pytest.mark.slow
def test_the_node_keeps_and_shows_its_own_kinds_whoever_wants_others(
    sessions: Sessions, config: Config, now: datetime
) -> None:
    config = with_peers(config, make_peer("old", image_kind="single"))
    with serve_storage(config.peers[0].port):
        end_job(sessions, config, ["old"], now)
    with sessions() as session:
        rows = list(session.scalars(select(Output)))
    own = [row.sop_class_uid for row in rows if not row.rendition]
    assert own.count(MULTIFRAME) == 2
    assert SecondaryCaptureImageStorage not in own
    assert {row.rendition for row in rows} == {"", "image_kind=single"}
    assert MULTIFRAME not in list_sent_classes(sessions, "old")


@pytest.mark.slow
def test_a_peer_that_was_down_gets_what_it_takes_when_it_is_back_and_nothing_that_refers_to_the_rest(
    sessions: Sessions, config: Config, now: datetime
) -> None:
    config = with_peers(config, make_peer("down"))
    chosen = end_job(sessions, config, ["down"], now)
    assert chosen["down"].spare is not None
    assert MULTIFRAME in list_sent_classes(sessions, "down")
    with serve_storage(config.peers[0].port, MULTIFRAME) as got:
        deliver_due(sessions, config, now=lambda: now)
        deliver_due(sessions, config, now=lambda: now + timedelta(minutes=1))
    assert got.count(SecondaryCaptureImageStorage) == 8
    assert (got.count(SegmentationStorage), MULTIFRAME in got) == (1, False)
    assert MULTIFRAME in list_sent_classes(sessions, "down", DeliveryState.GIVEN_UP)
    assert set(list_sent_classes(sessions, "down", DeliveryState.WAITING)) == set()
    with sessions() as session:
        given_up = session.scalars(select(Delivery).where(Delivery.state == DeliveryState.GIVEN_UP)).first()
        assert given_up is not None
        assert "does not take Multi-frame Grayscale Word" in given_up.reason


@pytest.mark.slow
def test_a_peer_that_was_down_and_takes_what_it_wants_gets_no_spare(
    sessions: Sessions, config: Config, now: datetime
) -> None:
    config = with_peers(config, make_peer("down"))
    end_job(sessions, config, ["down"], now)
    with serve_storage(config.peers[0].port) as got:
        deliver_due(sessions, config, now=lambda: now)
    assert got.count(MULTIFRAME) == 2
    assert SecondaryCaptureImageStorage not in got


@pytest.mark.slow
def test_what_a_peer_took_is_remembered_while_it_is_down(sessions: Sessions, config: Config, now: datetime) -> None:
    config = with_peers(config, make_peer("old"))
    with serve_storage(config.peers[0].port, MULTIFRAME):
        negotiation.negotiate_kinds(sessions, config, ["old"], now=now)
    chosen = negotiation.negotiate_kinds(sessions, config, ["old"], now=now)["old"]
    assert (chosen.results.image_kind, chosen.spare) == ("single", None)
    with sessions() as session:
        assert MULTIFRAME not in (destinations.find_accepted_classes(session, "old") or set())


def test_the_circuit_breaker_and_what_is_taken_do_not_mix(sessions: Sessions, now: datetime) -> None:
    with sessions.begin() as session:
        destinations.record_failure(session, "pacs", threshold=1, open_s=30, open_max_s=60, now=now)
        destinations.record_accepted_classes(session, "pacs", {MULTIFRAME}, now=now)
    with sessions() as session:
        assert destinations.load_breaker(session, "pacs").failures == 1
        assert destinations.find_accepted_classes(session, "pacs") == frozenset({MULTIFRAME})


@pytest.mark.slow
def test_a_held_result_waits_and_its_key_object_note_does_not(
    sessions: Sessions, config: Config, now: datetime
) -> None:
    config = with_peers(config, make_peer("pacs", key_object=True), make_peer("quiet"))
    with serve_storage(config.peers[0].port) as got, serve_storage(config.peers[1].port) as nothing:
        end_job(sessions, config, ["pacs", "quiet"], now, held="chi-square is 3")
        deliver_due(sessions, config, now=lambda: now)
        assert got == ["1.2.840.10008.5.1.4.1.1.88.59"]
        assert nothing == []
        with sessions.begin() as session:
            job = session.scalars(select(Job)).one()
            assert job.state is JobState.HELD
            jobs.release(session, job, reason="by hand", now=now)
        deliver_due(sessions, config, now=lambda: now)
    assert (got.count(MULTIFRAME), len(got), len(nothing)) == (2, 6, 5)


def test_an_object_that_two_forms_share_is_kept_once() -> None:
    findings = make_findings(grid("axial")).findings
    own, other = ResultsConfig(report=False), ResultsConfig(report=False, segmentation_kind="labelmap")
    write: Callable[[ResultsConfig], list[Dataset]] = lambda form: results.write(  # noqa: E731
        findings, [source()], PROVENANCE, form, NOW
    )
    produced = TaskResult(write(own), {}, "", {other: write(other)})
    chosen = {"a": negotiation.KindChoice(own), "b": negotiation.KindChoice(other)}
    assigned = renditions.assign_objects(produced, own, chosen)
    whose = {each.ds.SOPClassUID: each.destinations for each in assigned}
    assert len(assigned) == 5
    assert whose[MULTIFRAME] == whose[ParametricMapStorage] == ("a", "b")
    assert (whose[SegmentationStorage], whose[LABEL_MAP]) == (("a",), ("b",))
