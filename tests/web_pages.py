"""Every page that the node shows in a browser, with something of everything on it.

A new page joins the tests of accessibility by one line of ``PAGES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from db import destinations
from db.models import Output
from model_zoo import registry
from tests.prior_bundle import write_prior_bundle
from tests.test_learning_pages import add_run
from tests.web_node import Web
from tests.web_readings import make_reading
from tests.web_studies import PEERS, ROUTES, make_all_states, make_series, study_uid
from tests.work_orders import create, order

__all__ = ["PAGES", "TOKEN", "run_node"]

TOKEN = "a-token-of-the-tests-0123456789"
PAGES = {
    "studies": "/",
    "studies without a match": "/?description=nothing",
    "study": "/studies/{held_study}",
    "study without a route": "/studies/{unrouted_study}",
    "reading": "/studies/{read_study}/reading",
    "hold": "/hold",
    "failures": "/failures",
    "jobs": "/jobs",
    "job": "/jobs/{held_job}",
    "worklist": "/worklist",
    "try": "/try",
    "try on a study": "/try/{held_study}?name=a&pipeline=anatomy&match=wrong",
    "models": "/models",
    "model": "/models/{model}",
    "learning": "/learning",
    "learning run": "/learning/1",
    "peers": "/peers",
    "senders": "/senders",
    "system": "/system",
    "login": "/login",
    "error": "/studies/1.2.3",
    "structured report": "/dicom-web/studies/{read_study}/series/{report_series}/instances/{report}/rendered",
}
"""Addresses by name; the parts in braces are facts of the node."""
_REFUSED = "127.0.0.1:1: Connection refused"


@contextmanager
def run_node(folder: Path) -> Iterator[tuple[Web, Mapping[str, str]]]:
    """Run a node that asks for ``TOKEN``; yield it with the addresses of its pages by name."""
    (folder / "web.token").write_text(TOKEN)
    sections = {"routes": ROUTES, "peers": PEERS, "worklist": {"enabled": True}}
    with Web(folder, {"token_file": "web.token"}, sections=sections) as web:
        web.client.headers["Authorization"] = f"Bearer {TOKEN}"
        read_job = make_reading(web)
        made = make_all_states(web)
        create(web, order("flair-to-dir", "held"))
        _let_a_destination_fail(web)
        web.meters.refused_callers.record("10.0.0.9", "CT7", "not among the senders", web.now)
        _quarantine_a_file(web, folder)
        deployed = {"pipeline": "anatomy", "mode": "current", "who": "AL", "why": "better"}
        write_prior_bundle(web.config.models_dir / "mri_prior" / "1.0.0+site.1", "1.0.0+site.1")
        add_run(web)
        model = f"anatomy@{registry.find('anatomy').version}"
        assert web.client.post(f"/models/{model}/deploy", data=deployed).status_code == 303
        facts = {
            "held_job": made["held"],
            "held_study": study_uid("held"),
            "unrouted_study": study_uid("unrouted"),
            "read_study": study_uid("reading"),
            "model": model,
            **_find_report(web, read_job),
        }
        yield web, {name: address.format(**facts) for name, address in PAGES.items()}


def _let_a_destination_fail(web: Web) -> None:
    with web.sessions.begin() as session:
        destinations.record_failure(
            session, "pacs", threshold=1, open_s=600, open_max_s=600, reason=_REFUSED, now=web.now
        )


def _quarantine_a_file(web: Web, folder: Path) -> None:
    changed = make_series("held")[0]
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(folder / "changed.dcm", enforce_file_format=True)
    assert web.store([folder / "changed.dcm"]).status_code == 409


def _find_report(web: Web, job_id: int) -> dict[str, str]:
    """Return the UIDs of the structured report among the results of a job."""
    with web.sessions() as session:
        output = session.scalars(select(Output).where(Output.job_id == job_id, Output.kind == "report")).one()
        return {"report_series": output.series_uid, "report": output.sop_instance_uid}
