"""Rows for the tables of studies and jobs at the terminal, which name the patient unless [web] mask_names is set.

``--json`` prints the listings of ``dicomnode.listings`` instead, which name nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from db import overview
from db.models import Instance, Job, Series, Study
from db.states import JobState
from dicomnode.web import study_progress, template_filters

__all__ = ["JOB_COLUMNS", "STUDY_COLUMNS", "describe_report", "list_job_rows", "list_study_rows"]

STUDY_COLUMNS = ("study", "patient", "description", "state", "images", "received")
JOB_COLUMNS = ("job", "study", "patient", "route", "state", "left", "reason")


def list_study_rows(session: Session, *, mask: bool) -> list[dict[str, Any]]:
    """Return a row for every study, the newest last; ``mask``: without names."""
    instances = select(func.count(Instance.id)).join(Series).where(Series.study_id == Study.id).scalar_subquery()
    jobs = select(func.count(Job.id)).where(Job.study_id == Study.id).scalar_subquery()
    return [
        {
            "study": study.id,
            "patient": _name_patient(study, mask),
            "description": study.study_description,
            "state": overview.describe_study_state(study.state, made),
            "images": images,
            "received": study.last_received_at,
        }
        for study, images, made in session.execute(select(Study, instances, jobs).order_by(Study.id))
    ]


def list_job_rows(session: Session, state: JobState | None, *, mask: bool, now: datetime) -> list[dict[str, Any]]:
    """Return a row for every job, or those in a state, the newest last; running ones with their progress."""
    typical = overview.estimate_durations_s(session)
    query = select(Job).options(joinedload(Job.study)).order_by(Job.id)
    return [
        {
            "job": job.id,
            "study": job.study_id,
            "patient": _name_patient(job.study, mask),
            "route": job.route,
            "state": job.state_name,
            "left": _describe_rest(job, typical, now),
            "reason": job.reason,
        }
        for job in session.scalars(query if state is None else query.where(Job.state == state))
    ]


def describe_report(facts: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the parts of a job's description, each with a title and its rows."""
    report: Mapping[str, Any] = facts["report"]
    scalars = {name: value for name, value in facts.items() if not isinstance(value, list | dict)}
    scalars["key"] = facts["key"][:12]
    run = {name: report[name] for name in ("model", "device", "seed", "seconds") if name in report}
    run |= {"digest": str(report.get("digest", ""))[:12]} if report.get("digest") else {}
    why = [{"verdict": report.get("verdict", ""), "reason": reason} for reason in report.get("reasons", [])]
    parts = [
        ("Job", _pair(scalars)),
        ("Run", _pair(run)),
        ("Verdict", why or ([{"verdict": report["verdict"], "reason": ""}] if report.get("verdict") else [])),
        ("Against the current version", _pair(report.get("reference", {}))),
        ("Measurements", [_describe_measurement(each) for each in report.get("measurements", [])]),
        ("Notes", [{"note": each["name"], "text": each["text"]} for each in report.get("notes", [])]),
        ("Options", _pair(report.get("options") or facts["options"])),
        ("Acquisition", _pair(_flatten(report.get("acquisition", {})))),
        ("Inputs", _count_inputs(facts["inputs"])),
        ("Results", [_describe_output(each) for each in facts["outputs"]]),
    ]
    return [(title, rows) for title, rows in parts if rows]


def _name_patient(study: Study, mask: bool) -> str:
    return template_filters.format_person_name(study.patient_name, mask) or ("" if mask else study.patient_id)


def _describe_rest(job: Job, typical: Mapping[str, float], now: datetime) -> str:
    return study_progress.describe_job_progress(job, typical, now).text if job.state is JobState.RUNNING else ""


def _pair(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"what": name.replace("_", " "), "value": value} for name, value in values.items() if value not in ("", None)
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under names of the form ``outer inner``; lists become text."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name} ")
        else:
            flat[f"{prefix}{name}"] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


def _describe_measurement(each: Mapping[str, Any]) -> dict[str, Any]:
    name = ": ".join(part for part in (each.get("group", ""), each["name"]) if part)
    unit = each.get("unit", "")
    return {"measurement": name, "value": each.get("value"), "unit": "" if unit == "1" else unit}


def _count_inputs(inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(each["name"] for each in inputs)
    return [{"input": name, "instances": count} for name, count in counts.items()]


def _describe_output(each: Mapping[str, Any]) -> dict[str, Any]:
    deliveries = ", ".join(f"{name} {state}" for name, state in each["deliveries"].items())
    return {"kind": each["kind"], "sha256": each["sha256"], "deliveries": deliveries or "none"}
