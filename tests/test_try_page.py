"""The pages /try: verdicts, a draft with its count and block, trials, files, and the addition to node.toml."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import numpy as np
import pytest
from starlette.exceptions import HTTPException

from db import audit, studies
from db.models import Event, Instance, Job, Series, Study
from db.states import JobState, StudyState
from db.studies import Sender
from dicomnode.config import load, route_blocks
from dicomnode.config.spool import SpoolConfig
from dicomnode.errors import OutOfSpace
from dicomnode.ingest.files import receive_files
from dicomnode.ingest.group_commit import Ledger
from dicomnode.web import try_upload
from dicomnode.web.try_draft import Draft
from tests.nifti_files import write_nifti
from tests.web_node import Web
from tests.web_studies import MARKUP, NAME, PEERS, ROUTES, make_grid, make_head, make_series, receive, study_uid

FIELDS = {
    "name": "mine",
    "pipeline": "ms_lesions",
    "match": 'Modality = "MR"\nSeriesDescription = "~(?i)flair"',
    "more": 'with.t1w = { SeriesDescription = "~T1" }',
    "to.pacs": "1",
}
ASKED = {"who": "MK", "reason": "to see it"}
FILE = """# the node of the ward
[node]
ae_title = "WARD"

[[peers]]
name = "pacs"
ae_title = "A"
port = 1
"""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, settings={"may_write_routes": True}, sections={"routes": ROUTES, "peers": PEERS}) as running:
        running.config.path.write_text(FILE)
        yield running


def add_study(web: Web, name: str = "a", **values: Any) -> str:
    """Add a complete study; return its page."""
    complete(web, receive(web, make_series(name, **values)[:2]))
    return f"/try/{study_uid(name)}"


def complete(web: Web, study_id: int) -> None:
    with web.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        studies.close(session, study, reason="quiet", now=web.now)
        audit.transition(session, study, StudyState.ROUTED, reason="nothing", now=web.now)


def get(web: Web, path: str, **fields: str) -> str:
    answer = web.client.get(path, params=fields or None, headers={"Accept": "text/html"})
    assert answer.status_code == 200, answer.text
    return unescape(answer.text)


def post(web: Web, path: str, **fields: str) -> httpx.Response:
    return web.client.post(path, data=FIELDS | ASKED | fields)


def read_hidden(page: str) -> dict[str, str]:
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', page)
    return {name: unescape(value) for name, value in found}


def send_nifti(web: Web, path: Path, **facts: Any) -> httpx.Response:
    header = quote(json.dumps({"name": path.name} | facts))
    return web.client.post("/try/nifti", content=path.read_bytes(), headers={"Nifti-Facts": header})


def test_the_page_of_a_study_says_which_routes_take_it_and_on_what(web: Web) -> None:
    path = add_study(web)
    page = get(web, path)
    assert '<script type="module" src="/static/try.js">' in page
    assert "takes 1 series" in page
    assert "matched on Modality is 'MR' (wanted MR), SeriesDescription is 'FLAIR 3D'" in page
    assert 'value="flair-to-dir-2"' in page, "a copy of the route that takes it, under a free name"
    assert "1 of 1 studies held" in page
    other = get(web, add_study(web, "t1", description="T1 MPRAGE"))
    assert "does not take it" in other
    assert "SeriesDescription is 'T1 MPRAGE' (wanted ~(?i)flair)" in other
    assert 'SeriesDescription = "T1 MPRAGE"' in other, "a draft for the series that is there"
    assert f'href="{path}"' in get(web, "/try")
    assert f'href="{path}"' in get(web, f"/studies/{study_uid('a')}")


def test_names_of_people_are_no_attributes_for_conditions(web: Web) -> None:
    page = get(web, add_study(web, ReferringPhysicianName="Grey^Meredith", PatientComments="Erika"))
    assert "<dt>MRAcquisitionType</dt><dd>3D</dd>" in page
    listed = " ".join(re.findall(r"<dt>(\w+)</dt>", page))
    assert "Patient" not in listed
    assert "Grey" not in page


def test_a_draft_is_judged_counted_and_written_out(web: Web) -> None:
    path = add_study(web)
    add_study(web, "t1", description="T1 MPRAGE")
    part = get(web, f"{path}/outcome", **FIELDS)
    assert "takes this study" in part
    assert "1 of 2 studies held</b>, 1 of the newest 2" in part
    assert "0 of these have a series for t1w" in part
    assert 'match = { Modality = "MR", SeriesDescription = "~(?i)flair" }' in part
    assert 'destinations = ["pacs"]' in part
    assert "does not take this study" in get(web, f"{path}/outcome", **FIELDS | {"match": 'Modality = "PT"'})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match": ""}, "match has no condition"),
        ({"match": 'Modalty = "MR"'}, "'Modalty' is no DICOM keyword"),
        ({"match": "Modality"}, "conditions: Expected '='"),
        ({"match": 'Modality = "~("'}, "is no regular expression"),
        ({"match": 'Modality = "~a{99999999999999999999}"'}, "is no regular expression: the repetition number is too"),
        ({"match": f'Modality = "~{"(" * 600}{")" * 600}"'}, "has too many nested groups"),
        ({"more": 'pipeline = "anatomy"'}, "further keys: 'pipeline' has a field of its own"),
        ({"more": 'colour = "red"'}, "a route has no key 'colour'"),
        ({"pipeline": "magic"}, "no pipeline is named 'magic'"),
        ({"name": ""}, "choose a name for the route"),
        ({"name": MARKUP, "match": 'Modality = "<script>"'}, "'<script>' compares with something that is no number"),
    ],
)
def test_what_is_wrong_in_a_draft_is_named(web: Web, changes: dict[str, str], message: str) -> None:
    path = add_study(web)
    answer = web.client.get(f"{path}/outcome", params=FIELDS | changes)
    assert answer.status_code == 200
    assert message in unescape(answer.text)
    assert MARKUP not in answer.text


def test_a_copy_of_a_route_reads_back_as_the_route(web: Web) -> None:
    (route,) = web.config.routes
    rich = route.model_copy(
        update={"with_": {"t1w": route.match}, "options": {"passes": 3, "words": "a b"}, "priority": 4}
    )
    draft = Draft.from_route(rich, "copy")
    assert draft.make_block().route == rich.model_copy(update={"name": "copy"})
    assert Draft.from_fields(draft.to_fields()) == draft


@pytest.mark.parametrize("condition", [["~x"], ["~("], ["exists"], ["<MPR Range>"], ["MR"], "any of MR", "~x", 3, [3]])
def test_a_copy_of_a_route_has_its_conditions(condition: Any) -> None:
    route = route_blocks.make_block(
        {
            "name": "a",
            "pipeline": "ms_lesions",
            "match": {"ImageType": condition},
            "with": {"t1w": {"Modality": condition}},
        }
    ).route
    draft = Draft.from_fields(Draft.from_route(route, "a").to_fields())
    assert draft.make_block().route == route
    assert tomllib.loads(draft.make_block().text)["routes"][0]["match"] == {"ImageType": condition}


@pytest.mark.parametrize(
    "value", ["1.5", "true", "", "[1]", '"a"', " a ", "a\nb", "words here", "2026-01-01", 1.5, True, [1]]
)
def test_a_copy_of_a_route_has_its_options(value: Any) -> None:
    values = {"name": "a", "pipeline": "ms_lesions", "match": {"Modality": "MR"}, "options": {"words": value}}
    route = route_blocks.make_block(values).route
    copy = Draft.from_fields(Draft.from_route(route, "a").to_fields()).make_block().route
    assert copy.options == {"words": value}
    assert type(copy.options["words"]) is type(value)


def test_a_trial_delivers_nothing_and_says_who_and_why(web: Web) -> None:
    answer = post(web, f"{add_study(web)}/run")
    (job,) = web.rows(Job)
    assert answer.headers["location"] == f"/jobs/{job.id}?done=trial-{job.id}"
    assert (job.state, job.destinations, job.pipeline) == (JobState.READY, [], "ms_lesions")
    assert "a trial, which waits for a worker" in get(web, answer.headers["location"])
    (event,) = [each for each in web.rows(Event) if each.event == "trial"]
    assert event.detail["reason"] == "tried by MK: to see it"
    assert post(web, f"/try/{study_uid('a')}/run").headers["location"].endswith(f"done=tried-{job.id}")


def test_a_trial_of_several_series_is_a_job_for_each(web: Web) -> None:
    complete(web, receive(web, [*make_series("c")[:1], *make_series("c", number=2)[:1]]))
    answer = post(web, f"/try/{study_uid('c')}/run")
    assert answer.headers["location"] == f"/studies/{study_uid('c')}?done=trials-2"
    assert "The trial has 2 jobs" in get(web, answer.headers["location"])
    assert len(web.rows(Job)) == 2


def test_a_trial_delivers_after_a_confirmation_only(web: Web) -> None:
    path = add_study(web)
    page = post(web, f"{path}/run", deliver="1")
    assert "Deliver the results to pacs?" in page.text
    assert web.rows(Job) == []
    confirmed = web.client.post(f"{path}/run", data=read_hidden(page.text))
    assert confirmed.status_code == 303
    assert [job.destinations for job in web.rows(Job)] == [["pacs"]]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"who": ""}, 400, "This needs your initials and a reason."),
        ({"reason": " "}, 400, "This needs your initials and a reason."),
        ({"match": 'Modality = "PT"'}, 409, "nothing of this study can be tried: no series matches"),
        ({"match": "= 1"}, 400, "conditions: "),
        ({"more": 'model = "nothing@9"'}, 400, "no bundle nothing@9"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(web: Web, fields: dict[str, str], status: int, message: str) -> None:
    answer = post(web, f"{add_study(web)}/run", **fields)
    assert answer.status_code == status
    assert message in unescape(answer.text)
    assert web.rows(Job) == []


@pytest.mark.slow
def test_options_come_from_the_pipeline_and_wrong_ones_are_refused_by_name(web: Web) -> None:
    web.client.timeout = 200  # a process that imports torch
    path = add_study(web)
    assert "Show the options of <span>anatomy</span>" in get(web, path, **FIELDS | {"pipeline": "anatomy"})
    part = get(web, f"{path}/options", **FIELDS | {"pipeline": "anatomy"})
    assert 'name="option.structures"' in part
    answer = post(web, f"{path}/run", **{"pipeline": "anatomy", "option.structures": '["nose"]'})
    assert answer.status_code == 400
    assert "options of anatomy: structures: " in unescape(answer.text)
    assert "no structure 'nose'" in unescape(answer.text)
    answer = post(web, f"{path}/run", **{"pipeline": "anatomy", "option.structures": '["hippocampus"]'})
    assert answer.status_code == 303
    assert [job.options for job in web.rows(Job)] == [{"structures": ["hippocampus"]}]
    assert 'name="option.structures"' in get(web, path, **FIELDS | {"pipeline": "anatomy"}), "now without waiting"


def test_a_study_that_is_still_arriving_is_not_tried(web: Web) -> None:
    receive(web, make_series("a")[:1])
    page = get(web, f"/try/{study_uid('a')}")
    assert "the study is still arriving" in page
    assert f'action="/studies/{study_uid("a")}/close"' in page
    assert post(web, f"/try/{study_uid('a')}/run").status_code == 409
    assert web.rows(Job) == []


def test_a_route_is_written_after_its_change_was_shown(web: Web) -> None:
    path = add_study(web)
    shown = post(web, f"{path}/write")
    assert '+name = "mine"' in unescape(shown.text)
    assert web.config.path.read_text() == FILE
    written = web.client.post(f"{path}/write", data=read_hidden(shown.text))
    assert "Restart the node" in written.text
    assert web.config.path.read_text().startswith(f"{FILE}\n# Added 2026-11-20 by MK: to see it\n[[routes]]\n")
    assert [route.name for route in load(web.config.path).routes] == ["mine"]
    kept_name = re.search(r"node\.toml\.\w+", written.text)
    assert kept_name
    assert (web.folder / kept_name[0]).read_text() == FILE
    assert [each.event for each in web.rows(Event)][-1] == "route added"


def test_a_change_that_was_not_shown_is_not_written(web: Web) -> None:
    path = add_study(web)
    shown = post(web, f"{path}/write")
    web.config.path.write_text(f"{FILE}# a colleague\n")
    answer = web.client.post(f"{path}/write", data=read_hidden(shown.text))
    assert answer.status_code == 409
    assert "node.toml has changed meanwhile" in answer.text
    assert web.config.path.read_text() == f"{FILE}# a colleague\n"
    assert post(web, f"{path}/write", confirm="1").status_code == 409, "without the digest of what was shown"


def test_the_loader_s_refusal_is_shown(web: Web) -> None:
    answer = post(web, f"{add_study(web)}/write", **{"to.research": "1"})
    assert answer.status_code == 400
    assert "delivers to 'research', which is no peer" in unescape(answer.text)


def test_a_draft_comes_back_after_a_refusal(web: Web) -> None:
    answer = post(web, f"{add_study(web)}/run", match='Modality = "PT"')
    back = re.search(r'href="(/try/[^"]+)">Go back', unescape(answer.text))
    assert back
    assert parse_qs(urlsplit(back[1]).query)["match"] == ['Modality = "PT"']
    assert 'Modality = "PT"' in get(web, back[1])


@pytest.mark.parametrize("action", ["run", "write"])
def test_another_site_cannot_send_the_forms(web: Web, action: str) -> None:
    path = add_study(web)
    headers = {"Origin": "https://evil.example"}
    answer = web.client.post(f"{path}/{action}", data=FIELDS | ASKED | {"confirm": "1"}, headers=headers)
    assert answer.status_code == 403
    assert web.rows(Job) == []
    assert web.config.path.read_text() == FILE


def test_a_nifti_file_is_received_as_a_derived_series(web: Web, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "sub-01_FLAIR.nii.gz", make_head().astype(np.int16), make_grid())
    answer = send_nifti(web, path, sidecar={"EchoTime": 0.12})
    assert answer.status_code == 200, answer.text
    (uid,) = answer.json()["studies"]
    (series,) = web.rows(Series)
    assert series.attributes["ImageType"] == ["DERIVED", "SECONDARY"]
    assert series.attributes["SeriesDescription"] == "NIFTI sub-01_FLAIR"
    assert series.attributes["EchoTime"] == 120
    assert not series.attributes.get("PatientName")
    assert {(row.sender_ae_title, row.sender_address) for row in web.rows(Instance)} == {("NIFTI-UPLOAD", "127.0.0.1")}
    assert len(web.rows(Instance)) == 9
    assert "NIFTI sub-01_FLAIR" in get(web, f"/try/{uid}")
    assert send_nifti(web, path, sidecar={"EchoTime": 0.12}).json()["studies"] == [uid], "the same file, once"
    assert len(web.rows(Instance)) == 9
    assert list((web.config.spool_dir / "incoming").iterdir()) == []


def test_a_nifti_file_that_cannot_be_used_is_refused_by_name(web: Web, tmp_path: Path) -> None:
    plain = write_nifti(tmp_path / "head.nii", make_head().astype(np.int16), make_grid())
    assert "head.nii: its modality is not known" in send_nifti(web, plain).text
    assert send_nifti(web, plain, modality="MR").status_code == 200
    synthetic = send_nifti(web, plain, modality="MR", sidecar={"SyntheticData": True})
    assert (synthetic.status_code, synthetic.text) == (
        409,
        "head.nii is marked as synthetic: a measured image is needed\n",
    )
    broken = tmp_path / "broken_T1w.nii.gz"
    broken.write_bytes(b"no image")
    assert "broken_T1w.nii.gz: no NIfTI image can be read" in send_nifti(web, broken).text
    for facts in ({"name": "../x.nii"}, {"name": "x.txt"}, {"modality": "US"}, {"sidecar": [1]}):
        assert send_nifti(web, plain, **facts).status_code == 400, facts
    assert len(web.rows(Study)) == 1


def test_a_nifti_file_has_the_limit_of_stow(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "head.nii", make_head().astype(np.int16), make_grid())
    with Web(tmp_path, settings={"max_store_gb": 1e-5}) as web:
        answer = send_nifti(web, path, modality="MR")
        assert answer.status_code == 413
        assert web.rows(Instance) == []


@pytest.mark.parametrize("marked", ["YES", "yes", "true", 1, True])
def test_every_spelling_of_synthetic_is_refused(web: Web, tmp_path: Path, marked: Any) -> None:
    path = write_nifti(tmp_path / "head.nii", make_head().astype(np.int16), make_grid())
    answer = send_nifti(web, path, modality="MR", sidecar={"SyntheticData": marked})
    assert (answer.status_code, web.rows(Instance)) == (409, [])


def test_a_file_with_the_name_of_a_generated_image_is_refused(web: Web, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "sub-01_desc-Dir_synthetic.nii.gz", make_head().astype(np.int16), make_grid())
    answer = send_nifti(web, path, modality="MR")
    assert answer.status_code == 409
    assert "sub-01_desc-Dir_synthetic.nii.gz is marked as synthetic" in answer.text


def test_a_full_disk_takes_no_nifti_file(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "head.nii", make_head().astype(np.int16), make_grid())
    with Web(tmp_path, {}, SpoolConfig(min_free_gb=1e9)) as web:
        answer = send_nifti(web, path, modality="MR")
        assert answer.status_code == 503
        assert "less than min_free_gb" in answer.text
        assert list((web.config.spool_dir / "incoming").iterdir()) == []


def test_a_series_for_which_the_disk_has_no_room_is_not_received_in_part(web: Web, tmp_path: Path) -> None:
    paths = []
    for at, ds in enumerate(make_series("a")[:3]):
        paths.append(tmp_path / f"{at}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    with paths[-1].open("r+b") as file:
        file.truncate(1 << 42)  # a hole
    ledger = Ledger(web.config.spool_dir, web.sessions, lambda: web.now)
    with pytest.raises(OutOfSpace):
        receive_files(ledger, web.config.spool, paths, Sender("A", ""))
    assert web.rows(Instance) == []


def test_nifti_files_come_one_at_a_time() -> None:
    turn = threading.Lock()
    refused = pytest.raises(HTTPException, match="another NIfTI file is being received")
    with try_upload.take_turn(turn), refused, try_upload.take_turn(turn):
        pass
    with try_upload.take_turn(turn):
        assert turn.locked()


def test_masked_names_are_no_values_of_conditions(tmp_path: Path) -> None:
    routes = [*ROUTES, ROUTES[0] | {"name": "named", "match": {"PatientName": "exists"}}]
    fields = FIELDS | {"match": 'PatientName = "exists"\nPatientID = "P-1"'}
    for masked in (True, False):
        with Web(
            tmp_path / str(masked), settings={"mask_names": masked}, sections={"routes": routes, "peers": PEERS}
        ) as web:
            path = add_study(web)
            reasons = get(web, path.replace("/try/", "/studies/")).partition("Routing decisions")[2]
            assert (NAME in reasons, "PatientName is hidden" in reasons) == (not masked, masked)
            pages = get(web, path) + get(web, f"{path}/outcome", **fields) + get(web, path, **fields)
            assert (NAME in pages, "P-a-00471" in pages, "PatientName is hidden" in pages) == (
                not masked,
                not masked,
                masked,
            )


def test_masked_names_stay_masked(tmp_path: Path) -> None:
    with Web(tmp_path, settings={"mask_names": True}, sections={"routes": ROUTES, "peers": PEERS}) as web:
        path = add_study(web)
        assert NAME.partition("^")[0] not in get(web, path) + get(web, "/try")


def test_the_pages_change_no_configuration_unless_it_is_allowed(tmp_path: Path) -> None:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as web:
        web.config.path.write_text(FILE)
        path = add_study(web)
        page = get(web, path)
        assert "Show the change" not in page
        assert "may_write_routes = true" in page
        assert "above" not in page[page.index('id="write-title"') :], "no block is above before the check"
        for fields in ({}, {"confirm": "1"}):
            answer = post(web, f"{path}/write", **fields)
            assert answer.status_code == 409
            assert "the pages may not change node.toml: copy the block into it" in unescape(answer.text)
        assert web.config.path.read_text() == FILE


def test_a_file_that_the_process_may_not_write_is_said(web: Web) -> None:
    path = add_study(web)
    assert "Show the change" in get(web, path)
    web.config.path.unlink()
    assert "This process may not write node.toml" in get(web, path)
    assert post(web, f"{path}/write").status_code == 400
