"""Which study at a peer is the earlier examination that a route compares with, and which of its series: C-FIND."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.config import Peer, Route
from dicomnode.dimse import queries
from dicomnode.errors import NotFound
from dicomnode.routing import series_search
from dicomnode.routing.priors import Examination, examination

__all__ = ["find"]

_STUDIES = 10
"""So many of the patient's earlier studies are looked into, the newest first."""


def find(
    peer: Peer, route: Route, study_uid: str, now: Examination, *, asking: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """The newest study earlier than this one with what the route asks for first, and its series to fetch.

    Raises NotFound, or PeerError.
    """
    asked = {
        "PatientID": now.patient_id,
        "StudyDate": f"-{now.date}",
        "StudyTime": "",
        "IssuerOfPatientID": "",
        "PatientBirthDate": "",
    }
    found = [
        (then, str(answer.StudyInstanceUID))
        for answer in queries.find(peer, asked, **asking)
        for then in [_answered(answer, now)]
        if then.is_of(now) and then.precedes(now)
    ]
    newest_first = sorted(found, key=lambda each: (each[0].date, each[0].time), reverse=True)
    first = next(iter(route.prior))
    for _, earlier in newest_first[:_STUDIES]:
        named = series_search.find(peer, earlier, route.prior, asking=asking) if earlier != study_uid else {}
        if named.get(first):
            return earlier, tuple(dict.fromkeys(uid for uids in named.values() for uid in uids))
    raise NotFound(f"{len(found)} earlier studies there, none with a series for {first}" if found else "none there")


def _answered(answer: Dataset, now: Examination) -> Examination:
    """An issuer that a peer does not tell is checked when the study is here."""
    then = examination({name: answer.get(name) for name in ("PatientID", "IssuerOfPatientID", "PatientBirthDate",
                                                            "StudyDate", "StudyTime")})  # fmt: skip
    return then if then.issuer else replace(then, issuer=now.issuer)
