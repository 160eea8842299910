"""No page shows a generated picture without saying so, in words, in the picture and in its alternative text."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from db.models import Job, Output, Series
from db.states import JobState
from dicomnode.deployment.display_names import name_pipeline, title_pipeline
from tests.web_node import Web
from tests.web_readings import SLICE_OF_LESION_2, make_reading, study_page
from tests.web_studies import PEERS, ROUTES, make_series, receive, study_uid

BANNER = '<p class="marks" role="note">SYNTHETIC - RESEARCH USE ONLY</p>'
RED = np.array([160, 0, 25])


def open_web(folder: Path) -> Web:
    return Web(folder, sections={"routes": ROUTES, "peers": PEERS})


def has_mark(web: Web, address: str) -> bool:
    """Return whether the upper left corner of a picture is in the red of the mark."""
    picture = Image.open(io.BytesIO(web.get(address).content)).convert("RGB")
    return bool(np.abs(np.asarray(picture, int)[1:4, 1:30] - RED).max() < 60)


def test_every_page_with_a_generated_picture_has_the_marking(tmp_path: Path) -> None:
    with open_web(tmp_path) as web:
        job = make_reading(web, is_held=True)
        receive(web, make_series("measured only"))
        study = f"/studies/{study_uid('reading')}"
        for path in (study, f"/jobs/{job}", "/hold", f"{study_page()}?job={job}"):
            text = web.get(path).text
            assert text.index(BANNER) < text.index("<img"), path
        assert BANNER not in web.get(f"/studies/{study_uid('measured only')}").text
        for words in re.findall(r'<img [^>]*alt="([^"]*)"', web.get(f"{study_page()}?job={job}").text):
            assert words.startswith(("Synthetic ", "Source", "Earlier examination")), words


def test_generated_pictures_are_marked_by_themselves_and_measured_ones_are_not(tmp_path: Path) -> None:
    with open_web(tmp_path) as web:
        job = make_reading(web)
        kinds = {row.kind: row.series_uid for row in web.rows(Output)}
        for kind in ("image", "parametric map", "segmentation"):
            for at in (1, SLICE_OF_LESION_2):
                assert has_mark(web, f"/jobs/{job}/pictures/{kinds[kind]}?at={at}"), kind
        for row in web.rows(Series):
            assert not has_mark(web, f"/jobs/{job}/pictures/{row.series_uid}?at=4")


def test_the_hold_queue_begins_at_the_slice_of_the_first_finding(tmp_path: Path) -> None:
    with open_web(tmp_path) as web:
        job = make_reading(web, is_held=True)
        first = web.get(f"/jobs/{job}/depth").json()["first"]
        assert f"at={first}&" in web.get(f"{study_page()}?job={job}").text.replace("&amp;", "&")
        assert first == 3, "lesion 1"
        uid = next(row.series_uid for row in web.rows(Output) if row.kind == "segmentation")
        shown, other = (web.get(f"/jobs/{job}/pictures/{uid}{at}").content for at in ("", "?at=4"))
        assert shown == web.get(f"/jobs/{job}/pictures/{uid}?at={first}").content != other


def test_a_discarded_result_is_discarded_on_every_page_and_has_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_web(tmp_path) as web:
        job = make_reading(web, is_held=True)
        fields = {"verdict": "rejected", "who": "MK", "reason": "motion"}
        assert web.client.post(f"/jobs/{job}/reading", data=fields).status_code == 303
        study = f"/studies/{study_uid('reading')}"
        (row,) = web.rows(Job)
        assert (row.state, row.state_name) == (JobState.CANCELLED, "discarded")
        for path in ("/jobs", f"/jobs/{job}", study, study_page()):
            text = web.get(path).text
            assert re.search(r'class="chip cancelled">\s*Discarded', text), path
        assert "Read the result" in web.get(study).text
        assert "report.png" not in web.get(study).text
        monkeypatch.setattr("subprocess.run", None)
        assert web.get(f"{study}/report.png").status_code == 404, "at once, without a process that draws"


@pytest.mark.parametrize(
    ("pipeline", "name", "title"),
    [
        ("ms_lesions", "MS lesions", "MS lesions"),
        ("mri_reconstruction", "MRI reconstruction", "MRI reconstruction"),
        ("synthetic_dir", "synthetic DIR", "Synthetic DIR"),
        ("standard_dose_pet", "standard dose PET", "Standard dose PET"),
        ("translate:t1_to_pet", "translate:t1_to_pet", "translate:t1_to_pet"),
    ],
)
def test_pipelines_have_names_for_people(pipeline: str, name: str, title: str) -> None:
    assert (name_pipeline(pipeline), title_pipeline(pipeline)) == (name, title)
