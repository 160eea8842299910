"""The reading page: sentence, pictures at one place, table, and a decision that becomes a note and a record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from db.models import Delivery, Event, Job, Output, Reading, Series
from db.states import JobState
from dicomnode.results import marking
from dicomnode.storage import spool
from dicomnode.web import figures, pictures
from dicomnode.web.figures import JobPictures
from tests.dciodvfy import find_errors_of_file
from tests.web_node import Web
from tests.web_readings import SHIFT_MM, SLICE_OF_LESION_2, make_reading, study_page
from tests.web_studies import PEERS, ROUTES, study_uid

TWO_DESTINATIONS = ("pacs", "research")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as running:
        yield running


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
        spread = np.ptp(pixels, axis=2).max()
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
    expected = pictures.draw_frame(nearest.path, nearest.index, 384)
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
    fields = {"verdict": "rejected", "who": "MK", "reason": "motion, the new lesions are artefacts"}
    answer = web.client.post(f"/jobs/{job}/reading", data=fields, follow_redirects=True)
    assert "Job 1: rejected; the decision goes to the destinations" in answer.text
    assert "motion, the new lesions are artefacts" in answer.text
    note = next(row for row in web.rows(Output) if row.kind == "key object note")
    sent = sorted(row.destination for row in web.rows(Delivery) if row.output_id == note.id)
    assert sent == sorted(TWO_DESTINATIONS)
    ds = dcmread(spool.path(web.config.spool_dir, note.sha256))
    marking.check_marks(ds)
    assert ds.ConceptNameCodeSequence[0].CodeMeaning == "Quality Issue"
    texts = [item.TextValue for item in ds.ContentSequence if "TextValue" in item]
    assert "rejected by MK: motion, the new lesions are artefacts" in "\n".join(texts)
    items = [item for item in ds.ContentSequence if "ReferencedSOPSequence" in item]
    referred = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items}
    own = {row.sop_instance_uid for row in web.rows(Output) if row.id != note.id}
    assert referred == own, "the note is about the result, not about the patient's images"
    reading = web.rows(Reading)[0]
    assert (reading.verdict, reading.who, reading.model) == ("rejected", "MK", "synthetic_dir@1.1.0")
    assert any(event.event == "read" and event.detail["who"] == "MK" for event in web.rows(Event))
    rows = list(csv.DictReader(io.StringIO(web.get("/readings.csv").text)))
    assert rows[0]["study_uid"] == study_uid("reading")
    assert rows[0]["sentence"].startswith("2 new and 1 enlarged")


@pytest.mark.slow
def test_the_note_keeps_to_the_standard(web: Web) -> None:
    job = make_reading(web)
    web.client.post(f"/jobs/{job}/reading", data={"verdict": "accepted", "who": "Jörg", "reason": "plausible"})
    note = next(row for row in web.rows(Output) if row.kind == "key object note")
    assert find_errors_of_file(spool.path(web.config.spool_dir, note.sha256)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("verdict", "state"), [("accepted", JobState.DONE), ("rejected", JobState.CANCELLED)])
def test_a_decision_on_a_held_result_ends_the_wait(web: Web, verdict: str, state: JobState) -> None:
    job = make_reading(web, is_held=True)
    assert web.rows(Delivery) == []
    web.client.post(f"/jobs/{job}/reading", data={"verdict": verdict, "who": "MK", "reason": "looked at it"})
    assert web.rows(Job)[0].state is state
    assert bool(web.rows(Delivery)) == (verdict == "accepted"), "a rejected result leaves the node nowhere"
    again = web.client.post(f"/jobs/{job}/reading", data={"verdict": "accepted", "who": "MK", "reason": "again"})
    assert again.status_code == (303 if state is JobState.DONE else 409)
    assert web.get(study_page()).status_code == 200, "what was decided stays on the page"


def test_a_decision_needs_initials_and_a_reason(web: Web) -> None:
    job = make_reading(web, with_prior=False)
    complete = {"verdict": "accepted", "who": "MK", "reason": "x"}
    for missing in complete:
        fields = {name: value for name, value in complete.items() if name != missing}
        assert web.client.post(f"/jobs/{job}/reading", data=fields).status_code == 400
    assert web.rows(Reading) == []
    assert web.get(f"/studies/{study_uid('nobody')}/reading").status_code == 404
