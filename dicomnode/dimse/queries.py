"""Query and retrieve at a peer, study root (PS3.4 C.6.2): find, fetch by C-GET, move by C-MOVE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pynetdicom import ALL_TRANSFER_SYNTAXES, build_context, build_role, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicomnode.dimse.associations import association
from dicomnode.errors import PeerRefused, PeerUnreachable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pynetdicom.association import Association

    from dicomnode.config import Peer
    from dicomnode.config.tls import TlsConfig

__all__ = ["LEVELS", "RetrievalCounts", "fetch", "find", "move"]

LEVELS = {
    "STUDY": ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyDescription", "ModalitiesInStudy"),
    "SERIES": ("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription"),
    "IMAGE": ("SOPInstanceUID", "SOPClassUID", "InstanceNumber"),
}
"""Return keys of each level, besides those of the caller."""

_PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4
_TIMEOUT_S = 60.0
_STORAGE_CONTEXTS = 127  # of 128, one of them for C-GET itself


@dataclass(frozen=True)
class RetrievalCounts:
    """Counts of sub-operations from the peer's responses (PS3.4 C.4.2.1.6)."""

    completed: int = 0
    warned: int = 0
    failed: int = 0

    def __add__(self, other: RetrievalCounts) -> RetrievalCounts:
        return RetrievalCounts(self.completed + other.completed, self.warned + other.warned, self.failed + other.failed)


def find(
    peer: Peer,
    keys: Mapping[str, str],
    *,
    level: str = "STUDY",
    calling_aet: str,
    timeout_s: float = _TIMEOUT_S,
    tls: TlsConfig | None = None,
) -> list[Dataset]:
    """Return the matches of a C-FIND.

    ``keys``: DICOM keywords with the value to match, empty for a key that is only to be returned.
    """
    identifier = _make_identifier(level, {**dict.fromkeys(LEVELS[level], ""), **keys})
    model = StudyRootQueryRetrieveInformationModelFind
    contexts = [build_context(model)]
    with association(peer, contexts, calling_aet=calling_aet, timeout_s=timeout_s, tls=tls) as assoc:
        return [match for match in _matches(peer, "C-FIND", assoc.send_c_find(identifier, model)) if match is not None]


def fetch(
    peer: Peer,
    study_uid: str,
    *,
    on_store: Callable[[evt.Event], Any],
    calling_aet: str,
    series_uid: str = "",
    timeout_s: float = _TIMEOUT_S,
    tls: TlsConfig | None = None,
) -> RetrievalCounts:
    """Retrieve a study, or one of its series, by C-GET.

    ``on_store`` handles EVT_C_STORE and returns the status. A query for the SOP classes of each series precedes its
    retrieval, so that the contexts can offer every transfer syntax for them and the peer can send each instance as it
    is stored.
    """
    counts = RetrievalCounts()
    find_at_peer = partial(find, peer, calling_aet=calling_aet, timeout_s=timeout_s, tls=tls)
    associate = partial(association, peer, calling_aet=calling_aet, timeout_s=timeout_s, tls=tls)
    unique = {"StudyInstanceUID": study_uid} | ({"SeriesInstanceUID": series_uid} if series_uid else {})
    for series in find_at_peer(unique, level="SERIES"):
        unique = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": str(series.SeriesInstanceUID)}
        images = find_at_peer(unique, level="IMAGE")
        classes = sorted({str(image.SOPClassUID) for image in images if image.get("SOPClassUID")})
        if images and not classes:
            raise PeerRefused(f"peer {peer.name} does not tell the SOP classes of a series: fetch it by C-MOVE")
        if classes:
            counts += _get(peer, unique, classes, on_store, associate)
    return counts


def move(
    peer: Peer,
    study_uid: str,
    *,
    destination_aet: str,
    calling_aet: str,
    series_uid: str = "",
    timeout_s: float = _TIMEOUT_S,
    tls: TlsConfig | None = None,
) -> RetrievalCounts:
    """Let the peer send a study, or one of its series, to an application entity by C-MOVE."""
    model = StudyRootQueryRetrieveInformationModelMove
    unique = {"StudyInstanceUID": study_uid} | ({"SeriesInstanceUID": series_uid} if series_uid else {})
    identifier = _make_identifier("SERIES" if series_uid else "STUDY", unique)
    contexts = [build_context(model)]
    with association(peer, contexts, calling_aet=calling_aet, timeout_s=timeout_s, tls=tls) as assoc:
        return _read_counts(peer, "C-MOVE", assoc.send_c_move(identifier, destination_aet, model))


def _get(
    peer: Peer,
    unique: Mapping[str, str],
    classes: list[str],
    on_store: Callable[[evt.Event], Any],
    associate: Callable[..., AbstractContextManager[Association]],
) -> RetrievalCounts:
    model = StudyRootQueryRetrieveInformationModelGet
    syntaxes = ALL_TRANSFER_SYNTAXES[: _STORAGE_CONTEXTS // len(classes)]
    contexts = [build_context(model), *(build_context(uid, syntax) for uid in classes for syntax in syntaxes)]
    roles = [build_role(uid, scp_role=True) for uid in classes]
    with associate(contexts, roles=roles, handlers=[(evt.EVT_C_STORE, on_store)]) as assoc:
        return _read_counts(peer, "C-GET", assoc.send_c_get(_make_identifier("SERIES", unique), model))


def _make_identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    if not all(value.isascii() for value in keys.values()):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _matches(peer: Peer, service: str, responses: Iterable[tuple[Dataset, Dataset | None]]) -> Iterator[Dataset | None]:
    """Yield the identifiers of pending responses. Raises where the last response is no success or does not come."""
    for status, identifier in responses:
        if "Status" not in status:
            raise PeerUnreachable(f"peer {peer.name} did not answer the {service}")
        if status.Status in _PENDING:
            yield identifier
        elif status.Status != 0x0000:
            raise PeerRefused(f"peer {peer.name} ended the {service} with status 0x{status.Status:04X}")


def _read_counts(peer: Peer, service: str, responses: Iterable[tuple[Dataset, Dataset | None]]) -> RetrievalCounts:
    last = Dataset()
    for last, _ in responses:
        if "Status" not in last:
            raise PeerUnreachable(f"peer {peer.name} broke off the {service}")
    # What a peer left out when it ended early, as after a cancellation, counts as failed.
    counts = RetrievalCounts(
        int(last.get("NumberOfCompletedSuboperations") or 0),
        int(last.get("NumberOfWarningSuboperations") or 0),
        int(last.get("NumberOfFailedSuboperations") or 0) + int(last.get("NumberOfRemainingSuboperations") or 0),
    )
    # 0xB000: complete, some failed (PS3.4 C.4.3.1.4); the counts tell which.
    if last.Status not in (0x0000, 0xB000) and not counts.failed:
        raise PeerRefused(f"peer {peer.name} ended the {service} with status 0x{last.Status:04X}")
    return counts
