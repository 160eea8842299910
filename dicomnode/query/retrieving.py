"""The sub-operations of C-GET and C-MOVE: stored instances over an association, one at a time, as they are stored.

A result passes the gate before it goes. What the receiver does not take as it is stored is decompressed where pydicom
can; what cannot be sent counts as failed and is named in the last response.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context

from db.catalogue import StoredObject
from dicomnode.datasets.encoded import check_size
from dicomnode.delivery import gate
from dicomnode.errors import NodeError
from dicomnode.storage import spool
from dicomnode.transcoding import pixels
from dicomnode.transcoding.convert import explicit_little_endian

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

__all__ = ["Tally", "batches", "contexts", "send"]

_log = logging.getLogger(__name__)
_MOST_DECOMPRESSED = 256 << 20
_MAX_CONTEXTS = 128  # PS3.8 9.3.2.2
_NAMED_FAILURES = 1000  # a value of VR UI has no room for more than about so many UIDs (PS3.5 7.1.2)


@dataclass
class Tally:
    """Sub-operations as they are counted in responses (PS3.4 C.4.2.1.6)."""

    remaining: int
    completed: int = 0
    warned: int = 0
    failed: int = 0
    failed_uids: list[str] = field(default_factory=list)

    def add(self, stored: StoredObject, status: int | None) -> None:
        """One is done; None: no answer came, or it could not be sent."""
        self.remaining -= 1
        if status == 0x0000:
            self.completed += 1
        elif status is not None and status >> 12 == 0xB:  # PS3.4 B.2.3: stored, with a warning
            self.warned += 1
        else:
            self.failed += 1
            self.failed_uids.append(stored.sop_instance_uid)

    @property
    def status(self) -> int:
        """What the last response says (PS3.4 C.4.2.1.5, C.4.3.1.4)."""
        if not (self.failed or self.warned):
            return 0x0000
        return 0xB000 if self.completed or self.warned else 0xA702

    @property
    def failures(self) -> Dataset | None:
        """The identifier of the last response."""
        if not self.failed_uids:
            return None
        ds = Dataset()
        ds.FailedSOPInstanceUIDList = self.failed_uids[:_NAMED_FAILURES]
        return ds


def batches(objects: Sequence[StoredObject]) -> Iterator[list[StoredObject]]:
    """Objects together that one association has contexts for; they keep their order."""
    batch: list[StoredObject] = []
    offered: set[tuple[str, str]] = set()
    for stored in objects:
        together = offered | set(_offers(stored))
        if len(together) > _MAX_CONTEXTS:
            yield batch
            batch, together = [], set(_offers(stored))
        batch.append(stored)
        offered = together
    if batch:
        yield batch


def contexts(objects: Sequence[StoredObject]) -> list[PresentationContext]:
    """What to propose for them: each pair by itself, so that the receiver answers for each."""
    return [build_context(*pair) for pair in dict.fromkeys(pair for stored in objects for pair in _offers(stored))]


def send(
    assoc: Association,
    root: Path,
    stored: StoredObject,
    *,
    number: int,
    move_originator: tuple[str, int] | None = None,
) -> int | None:
    """One C-STORE as the SCU, also on an association that the peer opened (role selection); its status."""
    path = spool.path(root, stored.sha256)
    try:
        if stored.is_result:
            gate.check(path, stored.sha256)
        content = path if _accepts(assoc, stored, stored.transfer_syntax_uid) else _uncompressed(assoc, stored, path)
        originator_aet, originator_id = move_originator or (None, None)
        answer = assoc.send_c_store(
            content, msg_id=number % 65535 + 1, originator_aet=originator_aet, originator_id=originator_id
        )
    except NodeError as exc:
        _log.error("an instance was not sent: %s", exc)
        return None
    except Exception as exc:  # whatever a broken file makes a decoder raise: the others are sent all the same
        _log.warning("an instance was not sent: %s", type(exc).__name__)
        return None
    return int(answer.Status) if "Status" in answer else None


def _offers(stored: StoredObject) -> tuple[tuple[str, str], ...]:
    syntaxes = (stored.transfer_syntax_uid, str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
    return tuple(dict.fromkeys((stored.sop_class_uid, syntax) for syntax in syntaxes))


def _accepts(assoc: Association, stored: StoredObject, syntax: str) -> bool:
    return any(
        cx.abstract_syntax == stored.sop_class_uid and cx.transfer_syntax[0] == syntax and cx.as_scu
        for cx in assoc.accepted_contexts
    )


def _uncompressed(assoc: Association, stored: StoredObject, path: Path) -> Any:
    """The data set in a syntax that every DICOM application takes. Raises ValueError, NodeError and whatever pydicom
    does."""
    if not any(_accepts(assoc, stored, str(uid)) for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)):
        raise ValueError("the receiver takes no transfer syntax that this can be sent in")
    if not UID(stored.transfer_syntax_uid).is_encapsulated:
        check_size(path)
        return dcmread(path)
    place = pixels.layout(path)
    if place is not None and place.frames * place.frame_bits > 8 * _MOST_DECOMPRESSED:
        raise ValueError("decompressed, it is larger than what is sent so")
    return dcmread(io.BytesIO(b"".join(explicit_little_endian(path))))
