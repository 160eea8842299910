"""The reading page: sentence, pictures at one place, table, and a decision that becomes a note and a record."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RawDataStorage
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import jobs, readings
from db.models import Delivery, Event, Job, Output, Reading, Series
from db.result_files import OutputFile
from db.states import JobState, ReadingVerdict
from dicomnode.execution import reading_notes
from dicomnode.results import marking
from dicomnode.storage import spool
from dicomnode.web import figures, pictures
from dicomnode.web.figures import JobPictures
from tests.dciodvfy import find_errors_of_file
from tests.identifying import make_deidentifier
from tests.rows import add_job
from tests.web_node import Web
from tests.web_readings import SHIFT_MM, SLICE_OF_LESION_2, make_reading, study_page
from tests.web_studies import PEERS, ROUTES, study_uid

TWO_DESTINATIONS = ("pacs", "research")
TAKERS = [peer | {"key_object": True} for peer in PEERS]
"""Peers that take Key Object notes."""
REASON = "motion as in the scan of her sister Anna Schmidt"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": TAKERS}) as running:
        yield running


def decide(web: Web, job: int, verdict: str, who: str = "MK", reason: str = REASON) -> httpx.Response:
    fields = {"verdict": verdict, "who": who, "reason": reason}
    return web.client.post(f"/jobs/{job}/reading", data=fields, follow_redirects=True)


def list_notes(web: Web) -> list[Output]:
    return [row for row in web.rows(Output) if row.kind == "key object note"]


def open_viewer(web: Web, query: str) -> str:
    answer = web.client.get(f"/viewer?{query}", follow_redirects=False)
    assert answer.status_code == 307
    return answer.headers["location"]


def test_the_viewer_opens_a_study_with_the_source_beside_the_result(web: Web) -> None:
    make_reading(web)
    study = f"StudyInstanceUIDs={study_uid('reading')}"
    source = next(row.series_uid for row in web.rows(Series) if row.attributes["SeriesDescription"] == "FLAIR 3D")
    results = {row.kind: row.series_uid for row in web.rows(Output)}
    start, _, layout = open_viewer(web, study).partition("#layout=")
    assert start == f"/viewer/viewer/node?{study}&hangingProtocolId=@dicomnode/reading"
    assert layout.split(",")[0] == source
    assert layout.split(",")[1] in (source, results["image"])
    assert layout.split(",")[2:] == [results["segmentation"], ""]
    with_series = f"{study}&initialSeriesInstanceUID={source}"
    assert open_viewer(web, with_series) == f"/viewer/viewer/node?{with_series}", "as the address says"
    assert open_viewer(web, "StudyInstanceUIDs=1.2") == "/viewer/viewer/node?StudyInstanceUIDs=1.2"


def test_the_viewer_opens_the_result_alone_where_the_source_is_kspace(web: Web) -> None:
    make_reading(web)
    with web.sessions.begin() as session:
        for series in session.scalars(select(Series)):
            series.attributes = {**series.attributes, "SOPClassUID": RawDataStorage}
    study = f"StudyInstanceUIDs={study_uid('reading')}"
    (image,) = (row.series_uid for row in web.rows(Output) if row.kind == "image")
    assert open_viewer(web, study) == f"/viewer/viewer/node?{study}&initialSeriesInstanceUID={image}"


def test_the_viewer_opens_a_study_whose_result_is_held_without_it(web: Web) -> None:
    make_reading(web, is_held=True)
    study = f"StudyInstanceUIDs={study_uid('reading')}"
    assert open_viewer(web, study) == f"/viewer/viewer/node?{study}"


def test_the_page_says_first_what_changed(web: Web) -> None:
    make_reading(web)
    text = web.get(study_page()).text
    sentence = "2 new and 1 enlarged lesions since 2009-04-12; total load 3.28 ml, was 4.77."
    assert sentence in text
    assert text.index("SYNTHETIC - RESEARCH USE ONLY") < text.index(sentence) < text.index("<img")
    assert "The load fell by 31 %" in text
    assert "FLAIR 2009" in text
    assert "nearest slice after registration" in text


def test_rows_lead_to_the_slice_of_their_lesion(web: Web) -> None:
    make_reading(web)
    text = web.get(study_page()).text
    row = text[text.index("Lesion 2<", text.index("<tbody>")) - 200 :]
    assert f'value="{SLICE_OF_LESION_2}"' in row
    assert "Juxtacortical lesion" in row
    assert "523" in row


def test_a_mask_is_shown_at_its_own_slice_only(web: Web) -> None:
    job = make_reading(web)
    uid = next(row.series_uid for row in web.rows(Output) if row.kind == "segmentation")
    for at, is_coloured in ((SLICE_OF_LESION_2, True), (1, False)):
        answer = web.get(f"/jobs/{job}/pictures/{uid}?at={at}")
        pixels = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"), int)
        spread = np.ptp(pixels[len(pixels) // 6 :], axis=2).max()  # below the mark SYNTHETIC
        assert (spread > 60) == is_coloured, "another slice's lesions are not painted on this one"


def test_the_earlier_examination_is_shown_where_the_registration_puts_it(web: Web) -> None:
    job = make_reading(web)
    shown = JobPictures(web.sessions, web.config.spool_dir, job)
    place = shown.reference_planes()[4]
    with web.sessions() as session:
        report = session.get_one(Job, job).report
    moved = figures.move_to_prior(place, figures.find_correction(report, "prior_flair"))
    assert moved.centre_mm[2] - place.centre_mm[2] == pytest.approx(SHIFT_MM)
    prior = next(row.series_uid for row in web.rows(Series) if row.attributes["SeriesDescription"] == "FLAIR 2009")
    planes = shown.load_series(prior)[1]
    nearest = pictures.find_nearest_plane(planes, moved)
    assert nearest is not None
    assert planes.index(nearest) == 6
    expected = pictures.draw_frame(nearest, 384)
    assert web.get(f"/jobs/{job}/pictures/{prior}?at=4").content == expected


def test_one_window_changes_images_of_every_unit(web: Web) -> None:
    job = make_reading(web)
    uid = next(row.series_uid for row in web.rows(Output) if row.kind == "image")
    usual, brighter, flatter = (
        np.asarray(Image.open(io.BytesIO(web.get(f"/jobs/{job}/pictures/{uid}?at=4&{query}").content)), float)
        for query in ("", "level=-40", "width=300")
    )
    assert brighter.mean() > usual.mean() + 10
    assert flatter.std() < 0.7 * usual.std()
    assert web.get(f"/jobs/{job}/pictures/{uid}?width=0").status_code == 400


@pytest.mark.slow
def test_a_decision_becomes_a_note_for_each_destination_and_a_record(web: Web) -> None:
    job = make_reading(web, destinations=TWO_DESTINATIONS)
    answer = decide(web, job, "rejected")
    assert "Job 1: rejected; a note goes to the destinations that take Key Objects." in answer.text
    assert REASON in answer.text
    (note,) = list_notes(web)
    sent = sorted(row.destination for row in web.rows(Delivery) if row.output_id == note.id)
    assert sent == sorted(TWO_DESTINATIONS)
    ds = dcmread(spool.path(web.config.spool_dir, note.sha256))
    marking.check_marks(ds)
    assert ds.ConceptNameCodeSequence[0].CodeMeaning == "Quality Issue"
    assert f"rejected by a reader.\r\nReader's words: MK: {REASON}" in read_texts(ds)
    items = [item for item in ds.ContentSequence if "ReferencedSOPSequence" in item]
    referred = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items}
    own = {row.sop_instance_uid for row in web.rows(Output) if row.id != note.id}
    assert referred == own, "the note is about the result, not about the patient's images"
    reading = web.rows(Reading)[0]
    assert (reading.verdict, reading.who, reading.model) == ("rejected", "MK", "synthetic_dir@1.1.0")
    assert [event.event for event in web.rows(Event)][-2:] == ["read", "reading noted"]
    rows = list(csv.DictReader(io.StringIO(web.get("/readings.csv").text)))
    assert rows[0]["study_uid"] == study_uid("reading")
    assert rows[0]["sentence"].startswith("2 new and 1 enlarged")


def read_texts(ds: Dataset) -> str:
    return "\n".join(item.TextValue for item in ds.ContentSequence if "TextValue" in item)


@pytest.mark.slow
def test_the_note_keeps_to_the_standard(web: Web) -> None:
    job = make_reading(web)
    decide(web, job, "accepted", "Jörg")
    (note,) = list_notes(web)
    assert find_errors_of_file(spool.path(web.config.spool_dir, note.sha256)) == []


@pytest.mark.slow
def test_a_deidentified_note_has_nothing_of_what_the_reader_wrote(web: Web) -> None:
    job = make_reading(web)
    decide(web, job, "rejected", "Mueller-Klein")
    (note,) = list_notes(web)
    for keeps_age in (False, True):
        deidentifier = make_deidentifier(patient_characteristics=keeps_age)
        ds = deidentifier.read(spool.path(web.config.spool_dir, note.sha256))
        marking.check_marks(ds)
        assert "rejected by a reader." in read_texts(ds)
        for word in ("Schmidt", "Anna", "sister", "Mueller", "Klein", "Meier"):
            assert word not in str(ds.to_json_dict()), word


def test_a_destination_without_key_objects_gets_no_note(tmp_path: Path) -> None:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as web:
        job = make_reading(web)
        assert "No destination is configured for Key Object notes" in web.get(study_page()).text
        before = len(web.rows(Delivery))
        assert "Job 1: rejected and recorded here." in decide(web, job, "rejected").text
        assert list_notes(web) == []
        assert len(web.rows(Delivery)) == before
        assert len(web.rows(Reading)) == 1
        assert "this decision was recorded before" in decide(web, job, "rejected").text


@pytest.mark.slow
def test_a_decision_that_is_sent_twice_counts_once(web: Web) -> None:
    job = make_reading(web)
    decide(web, job, "accepted")
    assert "this decision was recorded before" in decide(web, job, "accepted").text
    assert (len(web.rows(Reading)), len(list_notes(web))) == (1, 1)
    decide(web, job, "rejected")
    assert [row.verdict for row in web.rows(Reading)] == ["accepted", "rejected"], "another decision is another row"


@pytest.mark.slow
def test_a_note_that_was_lost_is_sent_when_the_decision_is_repeated(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_reading(web)
    decide(web, job, "accepted")
    with monkeypatch.context() as broken:
        broken.setattr(spool, "write", fail_as_full_disk)
        assert "no note could be written. Send the decision again." in decide(web, job, "rejected").text
    assert len(list_notes(web)) == 1
    assert "rejected; a note goes to the destinations" in decide(web, job, "rejected").text
    assert "this decision was recorded before" in decide(web, job, "rejected").text
    notes = list_notes(web)
    assert (len(web.rows(Reading)), len(notes)) == (2, 2)
    assert [row.output_id for row in web.rows(Delivery) if row.output_id == notes[1].id] == [notes[1].id]
    ds = dcmread(spool.path(web.config.spool_dir, notes[1].sha256))
    assert "rejected by a reader" in read_texts(ds)


def fail_as_full_disk(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.slow
def test_two_clicks_at_once_send_one_note(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_reading(web)
    write = reading_notes.write_notes

    def click_again_while_writing(*arguments: Any) -> list[OutputFile]:
        monkeypatch.setattr(reading_notes, "write_notes", write)
        assert "a note goes to the destinations" in decide(web, job, "accepted").text
        return write(*arguments)

    monkeypatch.setattr(reading_notes, "write_notes", click_again_while_writing)
    assert "this decision was recorded before" in decide(web, job, "accepted").text
    assert [event.event for event in web.rows(Event)].count("reading noted") == 1
    assert len(list_notes(web)) == 1


def test_notes_belong_to_one_decision(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        job = add_job(session, now)
        jobs.claim(session, worker="w", lease_s=9, now=now)
        jobs.finish(session, job_id=job.id, worker="w", outputs=[], report={}, now=now)
        common: dict[str, Any] = {"who": "MK", "reason": "x", "sentence": "", "now": now}
        first, _ = readings.record(session, job, verdict=ReadingVerdict.ACCEPTED, **common)
        second, is_new = readings.record(session, job, verdict=ReadingVerdict.REJECTED, **common)
        assert is_new
        assert readings.record(session, job, verdict=ReadingVerdict.REJECTED, **common) == (second, False)
        readings.add_notes(session, first, [], now=now)
    with sessions() as session:
        are_noted = [readings.is_noted(session, each) for each in session.query(Reading).order_by(Reading.id)]
        assert are_noted == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verdict", "state", "words"),
    [
        ("accepted", JobState.DONE, "Released by a person"),
        ("rejected", JobState.CANCELLED, "Discarded by a person"),
    ],
)
def test_a_decision_on_a_held_result_ends_the_wait(web: Web, verdict: str, state: JobState, words: str) -> None:
    job = make_reading(web, is_held=True)
    assert web.rows(Delivery) == []
    decide(web, job, verdict)
    assert web.rows(Job)[0].state is state
    assert bool(web.rows(Delivery)) == bool(list_notes(web)) == (verdict == "accepted")
    text = web.get(study_page()).text
    assert "Held by the output gate" in text
    assert words in text
    assert "Passed the output gate" not in text
    result = "result" if verdict == "accepted" else "discarded result"
    assert f'/reading?job={job}">Read the {result}' in web.get(f"/jobs/{job}").text
    again = decide(web, job, "accepted", reason="again")
    assert again.status_code == (200 if state is JobState.DONE else 409)


@pytest.mark.slow
def test_a_rejection_after_a_release_elsewhere_is_noted(web: Web) -> None:
    """The page was loaded while the result was held; it was released before the rejection came."""
    job = make_reading(web, is_held=True)
    web.client.post(f"/jobs/{job}/release", data={"reason": "plausible", "who": "MK"})
    decide(web, job, "rejected")
    assert web.rows(Job)[0].state is JobState.DONE
    assert len(list_notes(web)) == 1


def test_a_study_with_trials_only_says_where_they_are_read(web: Web) -> None:
    job = make_reading(web, with_prior=False)
    with web.sessions.begin() as session:
        session.get_one(Job, job).route = "trial:synthetic_dir"
    answer = web.get(study_page())
    assert answer.status_code == 404
    assert "The result of a trial is read from the page of its job." in answer.text
    assert f'/reading?job={job}">Read the result' in web.get(f"/jobs/{job}").text
    assert "<b>Trial</b>" in web.get(f"{study_page()}?job={job}").text


def test_a_decision_needs_initials_and_a_reason(web: Web) -> None:
    job = make_reading(web, with_prior=False)
    complete = {"verdict": "accepted", "who": "MK", "reason": "x"}
    for missing in complete:
        fields = {name: value for name, value in complete.items() if name != missing}
        assert web.client.post(f"/jobs/{job}/reading", data=fields).status_code == 400
    for who in ("A\\B", "a=b=c=d", "M^K", "M\x1bK<", "-", "(MK)"):
        assert decide(web, job, "accepted", who).status_code == 400, who
    assert web.rows(Reading) == []
    assert decide(web, 99, "accepted").status_code == 404
    assert web.get(f"/studies/{study_uid('nobody')}/reading").status_code == 404
