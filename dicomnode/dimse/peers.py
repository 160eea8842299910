"""Verification and storage at other DICOM nodes, as service class user; queries.py has query and retrieval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)
from pynetdicom import build_context
from pynetdicom.sop_class import Verification

from dicomnode.config import Peer
from dicomnode.deidentify import outgoing
from dicomnode.dimse.associations import association
from dicomnode.errors import ConfigError, PeerRefused, PeerUnreachable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

    from dicomnode.config import Config
    from dicomnode.config.tls import TlsConfig

__all__ = ["ECHO_TIMEOUT_S", "TIMEOUT_S", "Outcome", "StoreResult", "echo", "find_dicom_files", "resolve_peer", "store"]

TIMEOUT_S = 60.0
ECHO_TIMEOUT_S = 5.0

_MAX_CONTEXTS = 127  # 128 odd numbers below 256 (PS3.8 9.3.2.2), one of them for Verification
_SILENT_ASSOCIATIONS = 2
_SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.4 B.2.3


class Outcome(StrEnum):
    """Outcome of sending one file."""

    STORED = "stored"
    REFUSED = "refused"
    UNANSWERED = "unanswered"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class StoreResult:
    """Result of sending one file; ``status`` is None where the peer gave none: no answer is not success.

    ``comment`` is the peer's own text, which may name a patient: it is shown to the user and never logged or stored.
    """

    path: Path
    sop_instance_uid: str
    outcome: Outcome
    status: int | None
    text: str
    comment: str = ""

    @property
    def is_stored(self) -> bool:
        """True where the peer has stored the instance."""
        return self.outcome is Outcome.STORED


@dataclass(frozen=True)
class _Instance:
    """A file to send, with the identifiers of its file meta information."""

    path: Path
    sop_instance_uid: UID
    sop_class_uid: UID
    transfer_syntax_uid: UID

    @property
    def as_stored(self) -> tuple[UID, UID]:
        return self.sop_class_uid, self.transfer_syntax_uid

    @property
    def offers(self) -> dict[tuple[UID, UID], None]:
        """Contexts to propose: as stored, and for uncompressed data the default syntax (PS3.5 10.1)."""
        pairs = {self.as_stored: None}
        if self.transfer_syntax_uid in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
            pairs[(self.sop_class_uid, ImplicitVRLittleEndian)] = None
        return pairs


def echo(peer: Peer, *, calling_aet: str, timeout_s: float = TIMEOUT_S, tls: TlsConfig | None = None) -> float:
    """Send a C-ECHO; return its duration in seconds. Raises PeerUnreachable or PeerRefused."""
    start = time.perf_counter()
    contexts = [build_context(Verification)]
    with association(peer, contexts, calling_aet=calling_aet, timeout_s=timeout_s, tls=tls) as assoc:
        answer = assoc.send_c_echo()
    if "Status" not in answer:
        raise PeerUnreachable(f"peer {peer.name} at {peer.host}:{peer.port} did not answer the C-ECHO")
    if answer.Status != 0x0000:
        raise PeerRefused(f"peer {peer.name} answered the C-ECHO with status 0x{answer.Status:04X}")
    return time.perf_counter() - start


def resolve_peer(name: str, config: Config) -> Peer:
    """Return the configured peer of the name, or the peer at ``host:port:AET``. Raises ConfigError."""
    if name in {peer.name for peer in config.peers} or name.count(":") < 2:
        return config.find_peer(name)
    host, port, ae_title = name.rsplit(":", 2)
    try:
        return Peer(name=name, host=host.strip("[]"), port=int(port), ae_title=ae_title)
    except ValueError:  # pydantic's ValidationError is one
        raise ConfigError(f"{name!r} is no HOST:PORT:AE_TITLE") from None


def find_dicom_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the given files, and the DICOM instances below the given folders in order of their names."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for below in sorted(p for p in path.rglob("*") if p.is_file()):
            if isinstance(_read_instance(below), _Instance):
                yield below


def store(
    peer: Peer,
    paths: Iterable[Path],
    *,
    calling_aet: str,
    on_result: Callable[[StoreResult], None] = lambda result: None,
    timeout_s: float = TIMEOUT_S,
    tls: TlsConfig | None = None,
) -> list[StoreResult]:
    """Send files by C-STORE, without transcoding; return one result for each path, in their order.

    A failure of the peer raises nothing: an instance without an answer has the outcome UNANSWERED. Instances whose
    association was lost are sent again on a new one, which is safe since their UIDs are the same.
    """
    results: dict[Path, StoreResult] = {}

    def report(result: StoreResult) -> None:
        results[result.path] = result
        on_result(result)

    instances: dict[Path, _Instance] = {}
    ordered = list(dict.fromkeys(paths))
    for path in ordered:
        instance = _read_instance(path, peer.deidentify)
        if isinstance(instance, StoreResult):
            report(instance)
        else:
            instances[path] = instance
    for batch in _make_batches(list(instances.values())):
        _store_batch(
            partial(association, peer, calling_aet=calling_aet, timeout_s=timeout_s, tls=tls),
            batch,
            report,
        )
    return [results[path] for path in ordered]


def _read_instance(path: Path, profile: str = "") -> _Instance | StoreResult:
    """Return the instance by its file meta information (PS3.10 7.1), or the result for a file that is not sent.

    ``profile``: de-identification profile of a peer that gets only copies made by it.
    """
    try:
        meta = read_file_meta_info(path)
        uids = meta.MediaStorageSOPInstanceUID, meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID
    except OSError as exc:
        return StoreResult(path, "", Outcome.UNREADABLE, None, f"cannot be read: {exc.strerror}")
    except (InvalidDicomError, AttributeError, ValueError, EOFError):
        return StoreResult(path, "", Outcome.UNREADABLE, None, "not a DICOM file with its meta information")
    if uids[1] == MediaStorageDirectoryStorage:
        return StoreResult(path, "", Outcome.UNREADABLE, None, "a DICOMDIR, which C-STORE does not carry")
    if profile and not outgoing.is_deidentified_copy(path, profile):
        text = f"not sent: the peer gets only what is de-identified; 'dicomnode deidentify --profile {profile}' copies"
        return StoreResult(path, "", Outcome.UNREADABLE, None, text)
    return _Instance(path, *uids)


def _make_batches(instances: list[_Instance]) -> Iterator[list[_Instance]]:
    """Yield batches with few enough contexts for one association; instances of one kind stay together."""
    kinds: dict[tuple[UID, UID], list[_Instance]] = {}
    for instance in instances:
        kinds.setdefault(instance.as_stored, []).append(instance)
    batch: list[_Instance] = []
    offered: dict[tuple[UID, UID], None] = {}
    for kind in kinds.values():
        together = offered | kind[0].offers
        if len(together) > _MAX_CONTEXTS:
            yield batch
            batch, together = [], kind[0].offers
        batch, offered = batch + kind, together
    if batch:
        yield batch


def _store_batch(
    associate: Callable[[Sequence[PresentationContext]], AbstractContextManager[Association]],
    batch: list[_Instance],
    report: Callable[[StoreResult], None],
) -> None:
    """Send a batch over one association, and instances that it lost over another, until the peer stays silent."""
    pairs = {pair: None for instance in batch for pair in instance.offers}
    # With Verification as well, a peer that takes none of the pairs still accepts the association and answers for each.
    contexts = [build_context(Verification), *(build_context(*pair) for pair in pairs)]
    waiting, silent, reason = batch, 0, "no answer"
    while waiting and silent < _SILENT_ASSOCIATIONS:
        before = len(waiting)
        try:
            with associate(contexts) as assoc:
                waiting = _send_all(assoc, waiting, report)
            reason = "no answer: the association was lost"
        except (PeerRefused, PeerUnreachable) as exc:
            reason = str(exc)
            break
        silent = silent + 1 if len(waiting) == before else 0
    for instance in waiting:
        report(StoreResult(instance.path, instance.sop_instance_uid, Outcome.UNANSWERED, None, reason))


def _send_all(assoc: Association, waiting: list[_Instance], report: Callable[[StoreResult], None]) -> list[_Instance]:
    """Send instances; return those without an answer, last the one that was sent when the association broke."""
    accepted = {(cx.abstract_syntax, cx.transfer_syntax[0]) for cx in assoc.accepted_contexts}
    for number, instance in enumerate(waiting):
        result = _send(assoc, accepted, instance, number)
        if result is None:
            return [*waiting[number + 1 :], instance]
        report(result)
    return []


def _send(assoc: Association, accepted: set[tuple[UID, UID]], instance: _Instance, number: int) -> StoreResult | None:
    """Send one instance by C-STORE; return None where the association broke before an answer."""
    result = StoreResult(instance.path, instance.sop_instance_uid, Outcome.REFUSED, _SOP_CLASS_NOT_SUPPORTED, "")
    content: Any = instance.path
    if instance.as_stored not in accepted:
        if not accepted.intersection(instance.offers):
            name, syntax = instance.sop_class_uid.name, instance.transfer_syntax_uid.name
            return replace(result, text=f"the peer does not take {name} as {syntax}")
        content = dcmread(instance.path)
    try:
        answer = assoc.send_c_store(content, msg_id=number % 65535 + 1)
    except OSError as exc:
        if exc.filename is not None:
            return replace(result, outcome=Outcome.UNREADABLE, status=None, text=f"cannot be read: {exc.strerror}")
        assoc.abort()
        return None
    except RuntimeError:  # the association is no longer established
        return None
    except (ValueError, AttributeError) as exc:
        return replace(result, outcome=Outcome.UNREADABLE, status=None, text=f"cannot be sent: {type(exc).__name__}")
    if "Status" not in answer:
        return None
    return _read_answer(result, answer)


def _read_answer(result: StoreResult, answer: Dataset) -> StoreResult:
    """Complete the result by the response: 0x0000 and the warnings 0xBxxx mean stored (PS3.4 B.2.3)."""
    status = int(answer.Status)
    result = replace(result, status=status, comment=str(answer.get("ErrorComment", "")))
    if status == 0x0000:
        return replace(result, outcome=Outcome.STORED, text="stored")
    if status >> 12 == 0xB:
        return replace(result, outcome=Outcome.STORED, text=f"stored with warning 0x{status:04X}")
    return replace(result, text=f"refused with status 0x{status:04X}")
