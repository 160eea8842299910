"""A query or retrieval that asks for too much is refused with the reason; long lists of UIDs cost little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.errors import CannotUnderstand
from dicomnode.query import bounds
from tests.effort import measure_effort
from tests.peers.files import write_instance
from tests.receivers import Receiver, start
from tests.sending import read_encoded, store_all
from tests.test_query_retrieve import ask

__all__ = ["start"]  # fixtures

SUCCESS, PENDING, CANNOT = 0x0000, 0xFF00, 0xC000


@pytest.fixture
def receiver(start: Any) -> Receiver:
    """Start a receiver that every application entity may query."""
    found: Receiver = start()
    return found


def _make_uids(count: int, root: str = "1.2.826.0.1.3680043.8.498.1") -> list[str]:
    return [f"{root}.{number}" for number in range(1, count + 1)]


def _add_studies(receiver: Receiver, folder: Path, count: int) -> list[str]:
    uids = _make_uids(count)
    for uid in uids:
        write_instance(folder / f"{uid}.dcm", study_uid=uid, series_uid=f"{uid}.1")
    answers = store_all(receiver.port, [read_encoded(folder / f"{uid}.dcm") for uid in uids], folder / "sent")
    assert {answer.Status for answer in answers} == {SUCCESS}
    return uids


def test_a_list_of_a_thousand_uids_costs_little(receiver: Receiver, tmp_path: Path) -> None:
    held = _add_studies(receiver, tmp_path, 20)
    uids = held + _make_uids(980, "1.2.3.4")
    with measure_effort() as finding:
        *matches, (last, _) = ask(receiver, "find", {"StudyInstanceUID": uids})
    assert last.Status == SUCCESS
    assert {match.StudyInstanceUID for _, match in matches} == set(held)
    with measure_effort() as getting:
        *_, (moved, _) = ask(receiver, "get", {"StudyInstanceUID": uids})
    assert moved.NumberOfFailedSuboperations + moved.NumberOfCompletedSuboperations == 20
    assert max(finding.statements, getting.statements) < 10  # whatever the number of UIDs
    assert finding.cpu_s < 2
    assert finding.cpu_s + getting.cpu_s < 6
    assert finding.wall_s + getting.wall_s < 60, "PostgreSQL takes long for a statement"


_TOO_MUCH: dict[str, tuple[Any, dict[str, Any], str]] = {
    "UIDs": (ImplicitVRLittleEndian, {"StudyInstanceUID": ["1.2"] * 60_000}, "StudyInstanceUID"),
    "codes": (ImplicitVRLittleEndian, {"ModalitiesInStudy": ["MR"] * 60_000}, "ModalitiesInStudy"),
    "asterisks": (ExplicitVRLittleEndian, {"PatientID": "*a" * 500}, "PatientID"),
    "asterisks of a name": (ExplicitVRLittleEndian, {"PatientName": "*a*b*c*d*e*f*g*"}, "PatientName"),
    "bytes": (ExplicitVRLittleEndian, {"LongCodeValue": "x" * (2 << 20)}, "larger than 1048576 bytes"),
    "bytes once inflated": (DeflatedExplicitVRLittleEndian, {"LongCodeValue": "x" * (2 << 20)}, "inflates to more"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _TOO_MUCH)
def test_what_asks_for_too_much_is_refused_by_name(receiver: Receiver, name: str) -> None:
    syntax, keys, message = _TOO_MUCH[name]
    with measure_effort() as effort:
        ((last, _),) = ask(receiver, "find", keys, syntax=syntax)
    assert last.Status == CANNOT
    assert message in last.ErrorComment
    assert effort.statements == 0, "it is refused before the database is asked"
    assert effort.cpu_s < 3


def test_wildcards_within_the_bound_are_matched(receiver: Receiver, tmp_path: Path) -> None:
    _add_studies(receiver, tmp_path, 1)
    for pattern in ("*" * 500, "*H*A*N*T*O*M", "P" + "?" * 6):
        first, (last, _) = ask(receiver, "find", {"PatientID": pattern})
        assert (first[0].Status, last.Status) == (PENDING, SUCCESS)


@pytest.mark.parametrize("content", [b"\x08\0\x20\0DA\0\0" * 1001, b"\x08\0\x40\x11SQ\0\0\0\0\2\0" + bytes(1 << 17)])
def test_an_identifier_of_many_keys_or_items_is_not_decoded(content: bytes) -> None:
    with pytest.raises(CannotUnderstand):
        bounds.check_identifier(content, ExplicitVRLittleEndian)
