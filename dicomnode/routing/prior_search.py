"""The search for a prior examination at a peer, and for its series that a route compares with: C-FIND."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.config import Peer, Route
from dicomnode.dimse import queries
from dicomnode.errors import NotFound
from dicomnode.routing import series_search
from dicomnode.routing.examination import Examination, read_examination

__all__ = ["find_prior_study"]

_MAX_STUDIES = 10
"""The number of the patient's earlier studies whose series are queried, the newest first."""


def find_prior_study(
    peer: Peer, route: Route, study_uid: str, current: Examination, *, requestor: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Return the newest earlier study with a series for the route's first ``prior`` input, and its series to retrieve.

    ``current``: the examination of the study ``study_uid``. ``requestor``: see ``series_search``.
    Raises NotFound or PeerError.
    """
    keys = {
        "PatientID": current.patient_id,
        "StudyDate": f"-{current.date}",
        "StudyTime": "",
        "IssuerOfPatientID": "",
        "PatientBirthDate": "",
    }
    earlier = [
        (then, str(answer.StudyInstanceUID))
        for answer in queries.find(peer, keys, **requestor)
        for then in [_read_answer(answer, current)]
        if then.is_same_patient(current) and then.precedes(current)
    ]
    newest_first = sorted(earlier, key=lambda each: (each[0].date, each[0].time), reverse=True)
    first = next(iter(route.prior))
    for _, uid in newest_first[:_MAX_STUDIES]:
        if uid == study_uid:
            continue
        candidates = series_search.find_candidate_series(peer, uid, route.prior, requestor=requestor)
        if candidates.get(first):
            return uid, tuple(dict.fromkeys(series for uids in candidates.values() for series in uids))
    raise NotFound(f"{len(earlier)} earlier studies there, none with a series for {first}" if earlier else "none there")


def _read_answer(answer: Dataset, current: Examination) -> Examination:
    """Read an answer; an issuer that the peer leaves out is checked once the study is here."""
    keywords = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "StudyDate", "StudyTime")
    then = read_examination({keyword: answer.get(keyword) for keyword in keywords})
    return then if then.issuer else replace(then, issuer=current.issuer)
