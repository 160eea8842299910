"""The hold queue marks generated pictures and leads to the reading page."""

from __future__ import annotations

import re
from pathlib import Path

from tests.web_node import Web
from tests.web_readings import make_reading, study_page
from tests.web_studies import PEERS, ROUTES, make_series, receive, study_uid


def test_each_generated_picture_is_marked_and_no_source(tmp_path: Path) -> None:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as web:
        job = make_reading(web, is_held=True)
        text = web.get("/hold").text
        assert text.index('<p class="marks" role="note">SYNTHETIC - RESEARCH USE ONLY') < text.index("<article")
        marked = {
            words: "synthetic</span>" in figure
            for figure in re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
            for words in re.findall(r"<b>(.*?)</b>", figure)
        }
        assert marked == {"Source": False, "Result": True, "Uncertainty or map": True, "Segmentation": True}
        assert f'href="{study_page()}?job={job}">Read the result' in text
        assert web.get(f"{study_page()}?job={job}").status_code == 200


def test_a_study_without_a_date_is_of_unknown_date(tmp_path: Path) -> None:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as web:
        receive(web, make_series("undated", StudyDate=""))
        assert "<title>Study of unknown date" in web.get(f"/studies/{study_uid('undated')}").text
